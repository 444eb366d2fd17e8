//! When a control group comes to its memory limit: a kill there, however much the host has left.

use std::{collections::BTreeMap, time::Duration};

use super::{
    bytes,
    envelope::Envelope,
    history::Histories,
    levels::{Levels, Told},
    outlook::{Outlook, Pool},
    seconds,
};
use crate::{
    config::Config,
    detect::{
        Judgement, Kind, Level, Quality, Seen, State, evidence, judgement::Never, key::ByKey,
    },
    signal::oom::MemoryCgroup,
};

/// The kind.
pub static KIND: Kind = Kind {
    name: "memory.cgroup_exhaustion",
    signal: "oom",
    help: "a control group's memory limit will be reached soon",
    reason: "The same clock as the host's, over the anonymous memory of the group's processes: its usage counts the page cache, \
             which is full by design and costs nobody anything. Hits of the limit say that reclaim is at work and corroborate.",
    raise: Duration::from_secs(2),
    clear: Duration::from_secs(60),
    hazard: false,
    settings: &[],
    detector: |_| Box::new(Never),
};

/// Control groups with a limit that are followed.
const MAX_GROUPS: usize = 128;
/// The last of a limit goes to page tables, stacks and sockets of the kernel.
const USABLE: f64 = 0.97;

pub(super) struct Cgroups {
    levels: Levels,
    groups: BTreeMap<String, Followed>,
    round: u64,
}

#[derive(Default)]
struct Followed {
    usage: Envelope,
    first_s: f64,
    hits: u64,
    told: Told,
    round: u64,
}

/// Whether a control group is another one, or within it.
fn is_within(path: &str, group: &str) -> bool {
    path.strip_prefix(group)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || group.ends_with('/'))
}

/// What the processes of a group hold, in bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    anon: f64,
    /// Shared memory is charged once, to who touched it first, but shown by all who map it: the most of one process.
    shmem: f64,
}

/// What the processes of each group hold: one walk over all of them.
fn held<'a>(seen: &'a Seen<'_>, groups: &mut Groups<'a>) -> Vec<Held> {
    let mut held = vec![Held::default(); groups.len()];
    for row in &seen.snapshot.alloc.processes {
        let Some(process) = seen.process(row.pid) else { continue };
        for at in groups.above(&process.cgroup) {
            if let Some(held) = held.get_mut(*at) {
                held.anon += row.anon_bytes as f64;
                held.shmem = held.shmem.max(row.shmem_bytes as f64);
            }
        }
    }
    held
}

/// Some control groups of a tick, by number. Processes of one control group lie in the same of them, which are looked for
/// once.
#[derive(Default)]
pub(in crate::detect) struct Groups<'a> {
    numbers: ByKey<&'a str, usize>,
    above: ByKey<&'a str, Vec<usize>>,
}

impl<'a> Groups<'a> {
    /// Of these paths, numbered as they come.
    pub fn of(paths: impl Iterator<Item = &'a str>) -> Self {
        Self { numbers: paths.zip(0..).collect(), ..Self::default() }
    }

    /// One more than the highest number.
    pub fn len(&self) -> usize {
        self.numbers.values().max().map_or(0, |last| last + 1)
    }

    /// The number of a group.
    pub fn number(&self, path: &str) -> Option<usize> {
        self.numbers.get(path).copied()
    }

    /// Those that a control group is, or lies in.
    pub fn above(&mut self, path: &'a str) -> &[usize] {
        let Self { numbers, above } = self;
        let find = || ancestors(path).filter_map(|above| numbers.get(above).copied()).collect();
        above.entry(path).or_insert_with(find)
    }
}

/// `/a/b` is within `/a/b`, `/a` and `/`.
pub(in crate::detect) fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    fn parent<'a>(path: &&'a str) -> Option<&'a str> {
        let at = path.rfind('/').filter(|_| path.len() > 1)?;
        path.get(..at.max(1))
    }
    std::iter::successors(Some(path).filter(|path| !path.is_empty()), parent)
}

impl Cgroups {
    pub(super) fn new(config: &Config) -> Self {
        Self { levels: Levels::new(config), groups: BTreeMap::new(), round: 0 }
    }

    pub(super) fn look(
        &mut self,
        seen: &Seen<'_>,
        processes: &Histories,
        found: &mut Vec<Judgement>,
    ) {
        let now_s = seen.now_ns as f64 / 1e9;
        let rows = &seen.snapshot.oom.cgroups;
        let limited = |row: &&MemoryCgroup| row.limit_bytes.is_some_and(|limit| limit > 0);
        if !rows.iter().any(|row| limited(&row)) {
            self.groups.clear();
            return;
        }
        self.round += 1;
        let mut groups = Groups::of(rows.iter().filter(limited).map(|row| row.path.as_str()));
        let held = held(seen, &mut groups);
        let mut beyond = 0;
        for row in rows.iter().filter(limited) {
            if self.groups.len() >= MAX_GROUPS && !self.groups.contains_key(&row.path) {
                beyond += 1;
                continue;
            }
            let group = self.groups.entry(row.path.clone()).or_insert_with(|| Followed {
                first_s: now_s,
                hits: row.limit_hits,
                ..Followed::default()
            });
            group.round = self.round;
            let held = groups.number(&row.path).and_then(|at| held.get(at));
            found.extend(group.look(seen, row, held, processes, self.levels));
        }
        if beyond > 0 {
            found.push(Judgement {
                subject: format!("{beyond} more"),
                state: State::Undecided(
                    format!("only {MAX_GROUPS} control groups with limits are followed").into(),
                ),
                kind: Some(&KIND),
                ..Judgement::default()
            });
        }
        let round = self.round;
        self.groups.retain(|_, group| group.round == round);
    }
}

impl Followed {
    fn look(
        &mut self,
        seen: &Seen<'_>,
        row: &MemoryCgroup,
        held: Option<&Held>,
        processes: &Histories,
        levels: Levels,
    ) -> Option<Judgement> {
        let now_s = seen.now_ns as f64 / 1e9;
        let limit = row.limit_bytes? as f64;
        let held = held.map_or(0.0, |held| held.anon + held.shmem);
        let used = held.min(row.usage_bytes as f64);
        self.usage.add(now_s, used);
        let hit = row.limit_hits > self.hits;
        self.hits = row.limit_hits;
        let pool = Pool {
            usage: &self.usage,
            capacity: limit * USABLE,
            free_ratio: ((limit - used) / limit).max(0.0),
            pressed: hit,
            processes,
            is_member: &|process| is_within(&process.cgroup, &row.path),
            levels,
            parts: &[],
            first_s: self.first_s,
            told_s: self.told.since_s(),
            now_s,
        };
        let judged = pool.judge(self.told.level());
        self.told.next(judged.map(|(level, _)| level), now_s, KIND.raise);
        let (level, outlook) = judged?;
        Some(judgement(seen, row, &pool, level, &outlook, used))
    }
}

fn judgement(
    seen: &Seen<'_>,
    row: &MemoryCgroup,
    pool: &Pool<'_>,
    level: Level,
    outlook: &Outlook,
    used: f64,
) -> Judgement {
    let culprit = pool.culprit(seen.snapshot, outlook);
    let limit = row.limit_bytes.unwrap_or(0) as f64;
    let mut message = format!(
        "{} is at its memory limit of {} in {}",
        row.path,
        bytes(limit),
        seconds(outlook.left_s)
    );
    if let Some(party) = &culprit {
        message += &format!(
            ": {} grows by {}/s, {:.0} % of the group's growth",
            party.title,
            bytes(outlook.rate * party.share_ratio),
            party.share_ratio * 100.0
        );
    }
    Judgement {
        subject: row.path.clone(),
        state: State::Firing(level),
        culprit,
        evidence: vec![
            evidence("anonymous", used, "By", "iter/task").with(Quality::Estimated),
            evidence("limit", limit, "By", "memory.max"),
            evidence("usage", row.usage_bytes as f64, "By", "memory.current"),
            evidence("growth", outlook.rate, "By/s", "iter/task").with(Quality::Estimated),
            evidence("limit_hits", row.limit_hits as f64, "1", "memory.events"),
        ],
        time_left_seconds: Some(outlook.left_s),
        message,
        advice: "restart what grows; raise the limit only if the host can spare it and the growth \
                 is a working set"
            .to_owned(),
        kind: Some(&KIND),
        ..Judgement::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::testing::{Host, actor};
    use super::*;

    /// A group of 1 GiB whose process grows by so much a second after half an hour, and whose cache fills the rest. The
    /// process is moved there at this second.
    #[track_caller]
    fn check_moved(moved_s: f64, rate: f64, least_lead: Option<f64>) {
        let grown = move |second: f64| 200.0 + rate * (second - 1800.0).max(0.0);
        let mut host = Host {
            total: 16384.0,
            actors: vec![actor(7, "python3", grown), actor(8, "redis-server", |_| 900.0)],
            ..Host::default()
        };
        host.also = Box::new(move |second, snapshot| {
            snapshot.oom.cgroups = vec![MemoryCgroup {
                path: "/shop".into(),
                usage_bytes: 1020 << 20,
                limit_bytes: Some(1 << 30),
                limit_hits: second as u64 / 10,
                ..MemoryCgroup::default()
            }];
            if let Some(process) = snapshot.processes.get_mut(&7) {
                let cgroup = if second < moved_s { "/manager" } else { "/shop/worker" };
                Arc::make_mut(process).cgroup = cgroup.into();
            }
        });
        let full_s = if rate > 0.0 { 1800.0 + 824.0 / rate } else { 4000.0 };
        let told = host.run(KIND.name, full_s);
        let lead = told.at(Level::Warn).map(|at| full_s - at);
        match (lead, least_lead) {
            (Some(lead), Some(least)) => assert!(lead >= least, "{rate}: {lead} s, {told:?}"),
            (lead, least) => assert_eq!(lead.is_some(), least.is_some(), "{rate}: {told:?}"),
        }
        for (_, finding) in &told.levels {
            assert_eq!(finding.culprit.as_ref().and_then(|party| party.pid), Some(7));
            assert_eq!(finding.subject, "/shop");
        }
    }

    #[track_caller]
    fn check(rate: f64, least_lead: Option<f64>) {
        check_moved(0.0, rate, least_lead);
    }

    #[test]
    fn who_is_moved_into_its_group_after_it_began_is_named() {
        // By its manager before it runs exec, and by hand much later.
        check_moved(1.0, 2.0, Some(100.0));
        check_moved(900.0, 2.0, Some(100.0));
        check_moved(1.0, 20.0, Some(10.0));
    }

    #[test]
    fn the_limit_has_a_clock_and_the_cache_does_not_count() {
        check(0.0, None);
        check(0.2, Some(300.0));
        check(2.0, Some(100.0));
        check(20.0, Some(10.0));
    }

    #[test]
    fn of_thousands_with_limits_the_rest_is_counted() {
        let config = Config::default_for_tests(&crate::config::all_settings());
        let mut cgroups = Cgroups::new(&config);
        let mut look = |groups: usize| {
            let row = |number| MemoryCgroup {
                path: format!("/kubepods/pod{number}"),
                limit_bytes: Some(1 << 30),
                ..MemoryCgroup::default()
            };
            let mut snapshot = crate::snapshot::Snapshot::default();
            snapshot.oom.cgroups = (0..groups).map(row).collect();
            let seen = Seen { snapshot: &snapshot, now_ns: 1_000_000_000, elapsed_ns: 0 };
            let mut found = Vec::new();
            cgroups.look(&seen, &Histories::default(), &mut found);
            let subjects = found.into_iter().map(|one| one.subject).collect::<Vec<_>>().join(", ");
            (cgroups.groups.len(), subjects)
        };
        assert_eq!(look(5000), (MAX_GROUPS, "4872 more".to_owned()));
        assert_eq!(look(MAX_GROUPS), (MAX_GROUPS, String::new()));
        assert_eq!(look(2), (2, String::new()));
    }

    #[test]
    fn a_path_is_within_itself_and_its_parents() {
        assert!(is_within("/a/b", "/a") && is_within("/a", "/a") && is_within("/a", "/"));
        assert!(!is_within("/ab", "/a") && !is_within("/", "/a"));
        for path in ["/a/b", "/ab", "/", "", "/a/b/c/d"] {
            let ancestors: Vec<&str> = ancestors(path).collect();
            for group in ["/", "/a", "/a/b", "/ab", "/a/b/c", "/b"] {
                assert_eq!(ancestors.contains(&group), is_within(path, group), "{path} {group}");
            }
        }
    }
}
