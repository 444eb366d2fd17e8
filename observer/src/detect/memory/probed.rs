//! What was found in the allocator of a culprit: evidence for the kinds that name a process whose memory grows.

use super::{cgroup, exhaustion, leak};
use crate::{
    detect::{Judgement, Level, Quality, Seen, View, evidence},
    signal::alloc::asker,
};

/// Where it comes from.
const SOURCE: &str = "uprobe/malloc";

/// Processes that findings name as those whose memory grows, the worst first: at WARN or above.
pub fn growing_processes(view: &View) -> impl Iterator<Item = u32> {
    let kinds = [exhaustion::KIND.name, cgroup::KIND.name, leak::KIND.name];
    let is_grave = move |kind: &str, level| kinds.contains(&kind) && level >= Level::Warn;
    let grave = view.findings.iter().filter(move |of| is_grave(&of.kind, of.level));
    grave.filter_map(|finding| finding.culprit.as_ref()?.pid)
}

/// Adds what is known of the culprit's allocator.
pub(super) fn add(seen: &Seen<'_>, judgement: &mut Judgement) {
    let Some(pid) = judgement.culprit.as_ref().and_then(|party| party.pid) else { return };
    let rows = &seen.snapshot.alloc.processes;
    let row = rows.iter().find(|row| row.pid == pid);
    let Some(probe) = row.and_then(|row| row.malloc.as_ref()) else { return };
    let quality = if probe.lost > 0 { Quality::Lossy } else { Quality::Sampled };
    let time_s = probe.probed_ns as f64 / 1e9;
    judgement.evidence.push(evidence(format!("malloc, {}", probe.outcome), time_s, "s", SOURCE));
    let all = probe.outstanding_bytes as f64;
    judgement.evidence.extend(probe.stacks.iter().map(|stack| {
        let name = format!("malloc stack {}", stack.frames.join(" < "));
        evidence(name, stack.share * all, "By", SOURCE).with(quality)
    }));
    if let Some(top) = probe.stacks.first() {
        judgement.message += &format!(
            "; {:.0} % of what it took from malloc and did not free was for {}",
            top.share * 100.0,
            asker(&top.frames)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Host, actor};
    use super::*;
    use crate::signal::alloc::{AllocationStack, MallocProbe};

    /// What is told of a process that takes 4 MiB a second of 4 GiB, and was probed.
    fn told(outcome: &str, lost: u64, stacks: &[(&str, f64)]) -> crate::detect::Finding {
        let stack = |(frames, share): &(&str, f64)| AllocationStack {
            frames: frames.split(' ').map(str::to_owned).collect(),
            share: *share,
            samples: 8,
        };
        let probe = MallocProbe {
            outcome: outcome.to_owned(),
            probed_ns: 10_000_000_000,
            lost,
            outstanding_bytes: 40_000_000,
            stacks: stacks.iter().map(stack).collect(),
            ..MallocProbe::default()
        };
        let host = Host {
            actors: vec![actor(2, "node", |s| 200.0 + 4.0 * s)],
            also: Box::new(move |_, snapshot| {
                snapshot.alloc.processes[0].malloc = Some(probe.clone());
            }),
            ..Host::default()
        };
        let mut told = host.run(exhaustion::KIND.name, 900.0).levels;
        told.retain(|(_, finding)| finding.level == Level::Warn);
        let (_, finding) = told.pop().expect("a leak");
        let pids: Vec<u32> =
            growing_processes(&View { findings: vec![finding.clone().into()], ..View::default() })
                .collect();
        assert_eq!(pids, [2]);
        finding
    }

    #[test]
    fn a_finding_names_who_asked_malloc() {
        let finding =
            told("probed for 10.0 s", 0, &[("malloc keep main", 0.75), ("malloc f", 0.2)]);
        let tail = "; 75 % of what it took from malloc and did not free was for keep";
        assert!(finding.message.ends_with(tail), "{finding:?}");
        let rows: Vec<_> = finding.evidence.iter().filter(|of| of.source == SOURCE).collect();
        let names: Vec<&str> = rows.iter().map(|of| &*of.name).collect();
        let stacks = ["malloc stack malloc < keep < main", "malloc stack malloc < f"];
        assert_eq!(names, ["malloc, probed for 10.0 s", stacks[0], stacks[1]]);
        assert_eq!((rows[0].value, rows[1].value), (10.0, 30_000_000.0));
        assert_eq!(rows[1].quality, Quality::Sampled);
        let lossy = told("probed for 10.0 s", 3, &[("malloc keep", 1.0)]);
        assert!(lossy.evidence.iter().any(|of| of.quality == Quality::Lossy), "{lossy:?}");
    }

    #[test]
    fn a_finding_says_why_there_are_no_stacks() {
        let finding = told("malloc not found in /app", 0, &[]);
        assert!(finding.evidence.iter().any(|of| of.name == "malloc, malloc not found in /app"));
        assert!(!finding.message.contains("malloc"), "{finding:?}");
    }

    #[test]
    fn what_is_only_watched_is_not_probed() {
        let mut finding = told("", 0, &[]);
        finding.level = Level::Watch;
        let view = View { findings: vec![finding.into()], ..View::default() };
        assert_eq!(growing_processes(&view).count(), 0);
    }
}
