//! `observer check`: what this kernel and these privileges allow, per program.

use std::io::{self, Write};

use serde::Serialize;

use crate::{
    cli,
    kernel::Support,
    snapshot::{Program, Verdict},
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

/// Prints the verdicts.
///
/// # Errors
/// If `out` fails.
pub fn print(
    programs: &[Program],
    has_probes: bool,
    support: &Support,
    json: bool,
    out: &mut dyn Write,
) -> io::Result<()> {
    let code = exit_code(programs, has_probes);
    let kernel = support.release.as_str();
    let verdict = ["all", "degraded", "impossible"][usize::from(code.min(2))];
    if json {
        serde_json::to_writer_pretty(
            &mut *out,
            &Report { version: VERSION, verdict, kernel, programs, support },
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
    writeln!(out, "kernel {kernel}: {summary}")
}

#[cfg(test)]
mod tests {
    use super::*;

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
        print(&rows(&[Verdict::Impossible]), false, &Support::default(), true, &mut out).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!((&value["version"], &value["verdict"]), (&1.into(), &"impossible".into()));
        assert_eq!(value["programs"][0]["reason"], "why");
        assert!(value["support"]["bpf"].is_object());
    }
}
