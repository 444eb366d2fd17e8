//! `observer check`: what this kernel and these privileges allow, per program, and what on this host is set so that a small
//! fault becomes a dead host.

use std::{
    io::{self, Write},
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    cli,
    config::Config,
    detect::{Judgement, Level, Seen, State, limit::hazard},
    kernel::Support,
    sampler::Sampler,
    snapshot::{Program, Snapshot, Verdict},
};

/// Version of the JSON form.
const VERSION: u32 = 1;

/// The JSON form.
#[derive(Serialize)]
struct Report<'a> {
    version: u32,
    /// `all`, `degraded` or `impossible`.
    verdict: &'static str,
    kernel: &'a str,
    programs: &'a [Program],
    /// What the verdicts follow from.
    support: &'a Support,
    hazards: &'a [Hazard],
}

/// What is set wrong on this host.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Hazard {
    /// Its kind, as `hazard.no_swap`.
    pub kind: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What it is about.
    pub subject: String,
    /// One sentence.
    pub message: String,
    /// What to do.
    pub advice: String,
}

/// Limits are read on a thread of their own, which may wait for a disk: for so long it is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks.
const STEP: Duration = Duration::from_millis(100);

/// Looks at the host for as long as it takes to read its limits; `None` if they could not be read.
pub fn audit(sampler: &mut Sampler, config: &Config) -> Option<Vec<Hazard>> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        sampler.tick(false);
        let snapshot = sampler.snapshot(Vec::new(), Vec::new());
        if snapshot.limit.read_unix_ns != 0 {
            return Some(hazards(&snapshot, config));
        }
        thread::sleep(STEP);
    }
    None
}

fn hazards(snapshot: &Snapshot, config: &Config) -> Vec<Hazard> {
    let seen = Seen { snapshot, now_ns: snapshot.uptime_ns, elapsed_ns: 0 };
    let mut all = Vec::new();
    for kind in hazard::ALL {
        let mut found = Vec::new();
        (kind.detector)(config).look(&seen, &mut found);
        all.extend(found.into_iter().filter_map(|judgement| {
            let Judgement { subject, message, advice, state, .. } = judgement;
            let State::Firing(level) = state else { return None };
            Some(Hazard { kind: kind.name, level, subject, message, advice })
        }));
    }
    all
}

/// Exit code: 0 if everything runs, 1 if something does not, 2 if no BPF program does.
pub fn exit_code(programs: &[Program], has_probes: bool) -> u8 {
    let whole =
        programs.iter().all(|row| matches!(row.verdict, Verdict::Attached | Verdict::Standby));
    match (has_probes, whole) {
        (false, _) => cli::EXIT_USAGE,
        (true, false) => cli::EXIT_FAILED,
        (true, true) => cli::EXIT_OK,
    }
}

/// Prints the verdicts, and what is set wrong; `None` if that could not be read.
///
/// # Errors
/// If `out` fails.
pub fn print(
    programs: &[Program],
    has_probes: bool,
    support: &Support,
    hazards: Option<&[Hazard]>,
    json: bool,
    out: &mut dyn Write,
) -> io::Result<()> {
    let code = exit_code(programs, has_probes);
    let kernel = support.release.as_str();
    let verdict = ["all", "degraded", "impossible"][usize::from(code.min(2))];
    if json {
        serde_json::to_writer_pretty(
            &mut *out,
            &Report {
                version: VERSION,
                verdict,
                kernel,
                programs,
                support,
                hazards: hazards.unwrap_or_default(),
            },
        )?;
        return writeln!(out);
    }
    for row in programs {
        let verdict = match row.verdict {
            Verdict::Attached => "attached",
            Verdict::Standby => "standby",
            Verdict::Degraded => "degraded",
            Verdict::Impossible => "impossible",
        };
        writeln!(out, "{:<6} {:<22} {verdict:<10} {}", row.signal, row.name, row.hook)?;
        if !row.reason.is_empty() {
            writeln!(out, "       why: {}", row.reason)?;
            writeln!(out, "       do:  {}", row.remedy)?;
        }
    }
    let summary = match code {
        0 => "everything that observer can see is visible here",
        1 => "some of it cannot be seen here; the rest works",
        _ => "no BPF program can run here; what /proc and sock_diag tell is seen",
    };
    writeln!(out, "kernel {kernel}: {summary}")?;
    let Some(hazards) = hazards else {
        return writeln!(out, "limits and settings of this host could not be read in time");
    };
    for hazard in hazards {
        writeln!(out, "{:<5} {}: {}", hazard.level.text(), hazard.kind, hazard.message)?;
        writeln!(out, "       do:  {}", hazard.advice)?;
    }
    if hazards.is_empty() {
        writeln!(out, "no setting of this host was found to be a hazard")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signal::limit::{Facts, Redis, Runtime};

    fn rows(verdicts: &[Verdict]) -> Vec<Program> {
        verdicts
            .iter()
            .map(|verdict| Program {
                verdict: *verdict,
                reason: "why".into(),
                ..Program::default()
            })
            .collect()
    }

    #[test]
    fn the_code_says_how_much_runs() {
        let check = |verdicts: &[Verdict], probes, expect| {
            assert_eq!(exit_code(&rows(verdicts), probes), expect)
        };
        check(&[Verdict::Attached, Verdict::Standby], true, 0);
        check(&[Verdict::Attached, Verdict::Degraded], true, 1);
        check(&[Verdict::Attached, Verdict::Impossible], true, 1);
        check(&[Verdict::Impossible], false, 2);
    }

    #[test]
    fn json_has_a_version_and_every_row() {
        let mut out = Vec::new();
        let hazards = [hazard()];
        let (rows, support) = (rows(&[Verdict::Impossible]), Support::default());
        print(&rows, false, &support, Some(&hazards), true, &mut out).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!((&value["version"], &value["verdict"]), (&1.into(), &"impossible".into()));
        assert_eq!(value["programs"][0]["reason"], "why");
        assert!(value["support"]["bpf"].is_object());
        assert_eq!(value["hazards"][0]["kind"], "hazard.no_swap");
    }

    fn hazard() -> Hazard {
        Hazard {
            kind: "hazard.no_swap",
            level: Level::Watch,
            subject: "host".into(),
            message: "no swap".into(),
            advice: "add some".into(),
        }
    }

    #[test]
    fn hazards_stand_below_the_programs() {
        #[track_caller]
        fn check(hazards: Option<&[Hazard]>, expect: &str) {
            let mut out = Vec::new();
            print(&[], true, &Support::default(), hazards, false, &mut out).unwrap();
            let text = String::from_utf8(out).unwrap();
            assert!(text.ends_with(expect), "{text}");
        }
        check(Some(&[hazard()]), "WATCH hazard.no_swap: no swap\n       do:  add some\n");
        check(Some(&[]), "no setting of this host was found to be a hazard\n");
        check(None, "could not be read in time\n");
    }

    #[test]
    fn what_a_host_lacks_is_found_at_one_look() {
        let mut snapshot = Snapshot::default();
        let facts = Facts::Redis(Redis { maxmemory_known: true, ..Redis::default() });
        snapshot.limit.runtimes = vec![Runtime { pid: 7, name: "redis-server".into(), facts }];
        snapshot.limit.read_unix_ns = 1;
        let found = hazards(&snapshot, &Config::default_for_tests(&crate::config::all_settings()));
        assert!(found.iter().any(|hazard| hazard.kind == "hazard.redis_maxmemory"), "{found:?}");
        snapshot.limit = Default::default();
        assert_eq!(
            hazards(&snapshot, &Config::default_for_tests(&crate::config::all_settings())),
            []
        );
    }
}
