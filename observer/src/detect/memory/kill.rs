//! The kernel has killed somebody for want of memory: who, and who made it so.

use std::time::Duration;

use super::{
    bytes,
    history::{MAX_FOLLOWED, Marks, private_bytes},
};
use crate::{
    config::{self, Config, Setting},
    detect::{Detector, Judgement, Kind, Level, Party, Seen, State, evidence, party},
    signal::oom::OomKill,
};

/// The kind.
pub static KIND: Kind = Kind {
    name: "memory.oom_kill",
    signal: "oom",
    help: "the kernel killed a process for want of memory",
    reason: "A kill is a fact: it is told at once and stays for ten minutes. In a control group it is WARN, because the limit \
             did its work; of the host, or three times the same program, CRITICAL. To blame is who grew in the ten minutes \
             before, which often is not who was killed.",
    raise: Duration::ZERO,
    clear: Duration::from_secs(10),
    hazard: false,
    settings: &[TOLD],
    detector: |config| Box::new(Kill::new(config)),
};

/// A kill is told for so long.
pub const TOLD: Setting = Setting {
    key: "detect.kill_told",
    kind: config::Kind::Duration { min_ms: 60_000, max_ms: 86_400_000 },
    default: "10m",
    otel: &[],
    help: "how long a kill for want of memory is told; three of one program within that time are CRITICAL",
};
/// So many kills of one program within that time are a loop.
const REPEATED: usize = 3;

struct Kill {
    told_ns: u64,
    marks: Marks,
    /// Culprit of each kill that is still told, by when it was.
    blamed: Vec<(u64, Option<Party>)>,
}

impl Detector for Kill {
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        let kills = &seen.snapshot.oom.kills;
        let now_ns = seen.snapshot.time_unix_ns;
        let told_ns = self.told_ns;
        let is_told = |kill: &&OomKill| now_ns.saturating_sub(kill.time_unix_ns) < told_ns;
        self.blamed.retain(|(at, _)| kills.iter().any(|kill| kill.time_unix_ns == *at));
        let mut subjects: Vec<&str> = Vec::new();
        for kill in kills.iter().filter(is_told) {
            if subjects.contains(&kill.victim_name.as_str()) {
                continue;
            }
            subjects.push(&kill.victim_name);
            let same = kills.iter().filter(is_told);
            let count = same.filter(|other| other.victim_name == kill.victim_name).count();
            let known = self.blamed.iter().find(|(at, _)| *at == kill.time_unix_ns);
            let culprit = match known {
                Some((_, culprit)) => culprit.clone(),
                None => {
                    let culprit = self.culprit(seen, kill);
                    self.blamed.push((kill.time_unix_ns, culprit.clone()));
                    culprit
                }
            };
            found.push(judgement(seen, kill, count, culprit));
        }
        // After the judgement: the killed process is in the marks of before.
        self.marks.tick(seen.snapshot, seen.now_ns as f64 / 1e9);
    }
}

impl Kill {
    fn new(config: &Config) -> Self {
        let told_ns = config.duration(&TOLD).as_nanos() as u64;
        Self { told_ns, marks: Marks::default(), blamed: Vec::new() }
    }

    /// Who grew most, among those who are in the same control group if its limit killed.
    fn culprit(&self, seen: &Seen<'_>, kill: &OomKill) -> Option<Party> {
        let snapshot = seen.snapshot;
        let group = |pid: u32| snapshot.processes.get(&pid).map(|process| process.cgroup.as_str());
        let own = group(kill.victim_pid).or_else(|| group(kill.trigger_pid));
        let apart = |pid: u32| kill.in_cgroup && own.is_some() && group(pid) != own;
        let rows = snapshot.alloc.processes.iter().take(MAX_FOLLOWED);
        let mut causes: Vec<party::Cause<'_>> = rows
            .filter(|row| row.pid != kill.victim_pid && !apart(row.pid))
            .map(|row| (row.pid, row.name.as_str(), self.marks.growth(row.pid, private_bytes(row))))
            .collect();
        let held = kill.anon_bytes as f64;
        causes.push((kill.victim_pid, &kill.victim_name, self.marks.growth(kill.victim_pid, held)));
        party::culprit(snapshot, &causes)
    }
}

fn judgement(seen: &Seen<'_>, kill: &OomKill, count: usize, culprit: Option<Party>) -> Judgement {
    let level = if kill.in_cgroup && count < REPEATED { Level::Warn } else { Level::Critical };
    let whose = if kill.in_cgroup { "its control group's limit" } else { "the host's memory" };
    let mut message = format!(
        "{} {} was killed for {whose}, with {} of its own",
        kill.victim_name,
        kill.victim_pid,
        bytes(kill.anon_bytes as f64)
    );
    if count > 1 {
        message += &format!(", {count} times");
    }
    match &culprit {
        Some(party) if party.pid != Some(kill.victim_pid) => {
            message += &format!("; {} grew most", party.title);
        }
        _ => {}
    }
    if kill.trigger_pid != kill.victim_pid {
        message += &format!("; {} {} asked for memory", kill.trigger_name, kill.trigger_pid);
    }
    Judgement {
        subject: kill.victim_name.clone(),
        state: State::Firing(level),
        culprit,
        victims: vec![party::process(seen.snapshot, kill.victim_pid, &kill.victim_name, 0.0)],
        evidence: vec![
            evidence("kills", count as f64, "1", "oom:mark_victim"),
            evidence("victim_anon", kill.anon_bytes as f64, "By", "oom:mark_victim"),
            evidence("victim_shmem", kill.shmem_bytes as f64, "By", "oom:mark_victim"),
        ],
        message,
        advice: "see what grew before; raise the limit only if it is the working set that grew"
            .to_owned(),
        ..Judgement::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Also, Host, actor, guest};
    use super::*;
    use crate::config::all_settings;

    /// A victim dies at 700 s; who is to blame, and how loud it is.
    #[track_caller]
    fn check(in_cgroup: bool, times: usize, victim_grows: bool, expect: (Level, u32)) {
        let mut host = Host {
            actors: vec![
                actor(1, "postgres", |_| 900.0),
                guest(2, "node", move |second| {
                    (second < 700.0).then_some(200.0 + if victim_grows { second } else { 0.0 })
                }),
                actor(3, "java", move |second| 300.0 + if victim_grows { 0.0 } else { second }),
            ],
            ..Host::default()
        };
        host.also = Box::new(move |second, snapshot| {
            let began_ns = snapshot.time_unix_ns - (second * 1e9) as u64;
            let kills = (0..times).filter(|_| second >= 700.0).map(|number| OomKill {
                time_unix_ns: began_ns + 700_000_000_000 + number as u64,
                victim_pid: 2,
                victim_name: "node".into(),
                trigger_pid: 1,
                trigger_name: "postgres".into(),
                anon_bytes: if victim_grows { 900 << 20 } else { 200 << 20 },
                in_cgroup,
                ..OomKill::default()
            });
            snapshot.oom.kills = kills.collect();
        });
        let told = host.run(KIND.name, 800.0);
        let (at, finding) = told.levels.first().expect("a kill is told");
        assert_eq!(*at, 700.0);
        let culprit = finding.culprit.as_ref().and_then(|party| party.pid).expect("somebody grew");
        assert_eq!((finding.level, culprit), expect, "{told:?}");
        assert_eq!(finding.victims.first().and_then(|party| party.pid), Some(2));
    }

    #[test]
    fn who_grew_is_blamed_and_not_who_was_killed() {
        check(false, 1, false, (Level::Critical, 3));
        check(false, 1, true, (Level::Critical, 2));
        check(true, 1, true, (Level::Warn, 2));
        check(true, 3, true, (Level::Critical, 2));
    }

    #[test]
    fn who_was_started_after_the_agent_and_grew_is_blamed() {
        let node = |second: f64| (5.0..40.0).contains(&second).then_some(50.0 + second * 10.0);
        let mut host = Host {
            actors: vec![
                actor(1, "postgres", |second| 100.0 + second / 10.0),
                guest(2, "node", node),
            ],
            ..Host::default()
        };
        host.also = Box::new(|second, snapshot| {
            let began_ns = snapshot.time_unix_ns - (second * 1e9) as u64;
            let kill = OomKill {
                time_unix_ns: began_ns + 40_000_000_000,
                victim_pid: 2,
                victim_name: "node".into(),
                anon_bytes: 440 << 20,
                ..OomKill::default()
            };
            snapshot.oom.kills.extend((second >= 40.0).then_some(kill));
        });
        let told = host.run(KIND.name, 60.0);
        let (_, finding) = told.levels.first().expect("a kill is told");
        assert_eq!(finding.culprit.as_ref().and_then(|party| party.pid), Some(2), "{told:?}");
    }

    #[test]
    fn a_kill_is_over_after_ten_minutes() {
        let also: Also = Box::new(|second, snapshot| {
            let began_ns = snapshot.time_unix_ns - (second * 1e9) as u64;
            snapshot.oom.kills = vec![OomKill { time_unix_ns: began_ns, ..OomKill::default() }];
        });
        let host = Host { also, ..Host::default() };
        let mut found = Vec::new();
        for (second, expect) in [(1.0, 1), (599.0, 1), (601.0, 0)] {
            let snapshot = host.snapshot(second);
            let seen = Seen { snapshot: &snapshot, now_ns: snapshot.uptime_ns, elapsed_ns: 1 };
            Kill::new(&Config::default_for_tests(&all_settings())).look(&seen, &mut found);
            assert_eq!(found.drain(..).count(), expect, "{second}");
        }
    }
}
