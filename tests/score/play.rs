//! Plays cases, on two threads, before all rules.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use crate::{
    baseline,
    cases::{Case, Class},
    judge::{Verdict, Watcher},
    ours::Ours,
    world::Truth,
};

/// Threads; the developers' machines and CI have two cores.
const THREADS: usize = 2;
/// A fault without an end is watched for so long.
const BROKEN_S: u64 = 300;

/// What came of a case.
pub(crate) struct Outcome {
    pub(crate) name: &'static str,
    pub(crate) class: Class,
    pub(crate) squeezed: bool,
    pub(crate) seed: u64,
    pub(crate) rate: f64,
    pub(crate) total_bytes: f64,
    /// Healthy seconds, up to the fault if there was one.
    pub(crate) healthy_s: u64,
    pub(crate) truth: Truth,
    /// By rule, in the order of the table.
    pub(crate) verdicts: Vec<(&'static str, Verdict)>,
}

/// All cases, in their order.
pub(crate) fn all(cases: &[Case]) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Outcome)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some((at, case)) = take(&next, cases) {
                    let outcome = play(case);
                    done.lock().expect("no thread panics while it holds it").push((at, outcome));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("all threads have ended");
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}

fn take<'a>(next: &AtomicUsize, cases: &'a [Case]) -> Option<(usize, &'a Case)> {
    let at = next.fetch_add(1, Ordering::Relaxed);
    Some((at, cases.get(at)?))
}

/// All rules, in the order of the table, ours first.
pub(crate) fn watchers() -> Vec<Watcher> {
    let ours: Box<dyn crate::rule::Rule> = Box::new(Ours::new());
    [ours].into_iter().chain(baseline::all()).map(Watcher::new).collect()
}

fn play(case: &Case) -> Outcome {
    let mut watchers = watchers();
    let mut world = case.world();
    let end_s = match (world.truth.onset_s, case.class) {
        (Some(onset_s), Class::Broken) => onset_s + BROKEN_S,
        _ => case.seconds,
    };
    while world.now_s < end_s {
        let over = world.step() || world.truth.end_s.is_some();
        for watcher in &mut watchers {
            watcher.tick(world.now_s, &world.snapshot, &world.truth);
        }
        if over {
            break;
        }
    }
    Outcome {
        name: case.kind.name,
        class: case.class,
        squeezed: case.squeezed,
        seed: case.seed,
        rate: case.rate,
        total_bytes: world.machine.total,
        healthy_s: world.truth.onset_s.unwrap_or(world.now_s).min(world.now_s),
        truth: world.truth,
        verdicts: watchers.into_iter().map(Watcher::into_verdict).collect(),
    }
}

#[cfg(test)]
mod tests {
    use crate::cases::{self, QUICK};

    #[test]
    fn a_seed_gives_the_same_run() {
        let told = |seed| {
            let outcome = super::play(&cases::all(QUICK, seed, "leak-node-worker")[0]);
            let warned: Vec<_> = outcome.verdicts.iter().map(|(_, v)| v.warned_s).collect();
            (outcome.truth.end_s, warned)
        };
        let first = told(1);
        assert!(first.0.is_some() && first.1.iter().flatten().any(Option::is_some), "{first:?}");
        assert_eq!(first, told(1));
        assert_ne!(first, told(2));
    }

    /// A fault that nothing shows, or a healthy host that dies, would make every figure worthless.
    #[test]
    fn every_fault_of_memory_ends_and_no_healthy_host_does() {
        for case in cases::all(QUICK, 3, "") {
            let is_leak = case.kind.name.starts_with("leak-") && case.rate > 2.0;
            let is_healthy = case.class == cases::Class::Healthy && case.squeezed;
            if is_leak || is_healthy {
                let mut world = case.world();
                while world.now_s < case.seconds && !world.step() {}
                let ended = world.truth.end_s.is_some();
                assert_eq!(ended, is_leak, "{} seed {:x}", case.kind.name, case.seed);
            }
        }
    }
}
