//! What a probing of a process's allocator has told, until its stacks have names and it is told.

use super::{
    AllocationStack,
    fold::Stack,
    view::{MallocProbe, ProcessMemory},
};
use crate::{
    kernel::malloc::Probed,
    signal::Now,
    telemetry::{Attr, Value, attr},
};

/// Names are waited for as long as this, then addresses are told.
const PATIENCE_NS: u64 = 30_000_000_000;

/// A probing that is over.
#[derive(Debug)]
pub(super) struct Told {
    probe: MallocProbe,
    /// With its bytes, in the order of the probe's.
    pub(super) stacks: Vec<(Stack, u64)>,
    at: Now,
    is_told: bool,
}

impl Told {
    /// What it has told, or why it could not.
    pub(super) fn new(probed: Result<Probed, String>, at: Now) -> Self {
        let mut probe = MallocProbe { time_unix_ns: at.unix_ns, ..MallocProbe::default() };
        let mut stacks = Vec::new();
        match probed {
            Err(error) => probe.outcome = error,
            Ok(probed) => {
                let seconds = probed.time.as_secs_f64();
                probe.outcome = match probed.ended_early.as_str() {
                    "" => format!("probed for {seconds:.1} s"),
                    why => format!("ended after {seconds:.1} s: {why}"),
                };
                probe.probed_ns = u64::try_from(probed.time.as_nanos()).unwrap_or(u64::MAX);
                (probe.hits, probe.samples, probe.lost) =
                    (probed.hits, probed.samples, probed.lost);
                probe.outstanding_bytes = probed.outstanding_bytes;
                stacks = probed
                    .stacks
                    .into_iter()
                    .map(|of| (stack(of.addresses, of.samples), of.bytes))
                    .collect();
            }
        }
        Self { probe, stacks, at, is_told: false }
    }

    /// For the snapshot.
    pub(super) fn shown(&self) -> MallocProbe {
        let all = self.probe.outstanding_bytes.max(1) as f64;
        let shown = |(stack, bytes): &(Stack, u64)| AllocationStack {
            frames: stack.shown_frames(),
            share: *bytes as f64 / all,
            samples: stack.samples,
        };
        MallocProbe { stacks: self.stacks.iter().map(shown).collect(), ..self.probe.clone() }
    }

    /// Whether it is to be told now, which it is once: when its stacks have names, or will not get any.
    pub(super) fn is_due(&mut self, now: Now) -> bool {
        let is_named = self.stacks.iter().all(|(stack, _)| !stack.frames.is_empty());
        let is_due = !self.is_told && (is_named || now.since(self.at.ktime_ns) >= PATIENCE_NS);
        self.is_told |= is_due;
        is_due
    }
}

fn stack(addresses: Vec<u64>, samples: u64) -> Stack {
    // The caller is among the addresses already.
    Stack { addresses, samples, ..Stack::default() }
}

/// The words and numbers of its event.
pub(super) fn words(memory: &ProcessMemory, probe: &MallocProbe) -> (String, Vec<Attr>) {
    let mut body = format!("malloc of {} ({}): {}", memory.name, memory.pid, probe.outcome);
    let mut attrs = vec![
        attr("process.pid", memory.pid),
        attr("observer.memory.malloc.samples", probe.samples),
        attr("observer.memory.malloc.lost", probe.lost),
        attr("observer.memory.malloc.outstanding_bytes", probe.outstanding_bytes),
    ];
    if let Some(top) = probe.stacks.first() {
        body.push_str(&format!(
            "; {:.1} MiB were not freed, {:.0} % of them from {}",
            probe.outstanding_bytes as f64 / 1048576.0,
            top.share * 100.0,
            asker(&top.frames)
        ));
        let frames: Vec<std::sync::Arc<str>> =
            top.frames.iter().map(|frame| frame.as_str().into()).collect();
        attrs.push(Attr { key: "observer.memory.stack", value: Value::List(frames.into()) });
        attrs.push(attr("observer.memory.stack_share", top.share));
    }
    (body, attrs)
}

/// Who asked for the memory: the innermost function in JavaScript that is not of Node.js (V8 writes `JS:NAME FILE` into its
/// map), else the innermost that is neither the allocator, which is the first, nor a mere wrapper.
pub fn asker(frames: &[String]) -> &str {
    let is_script = |frame: &&String| frame.starts_with("JS:") && !frame.contains(" node:");
    let is_wrapper =
        |frame: &&String| frame.starts_with("operator new") || frame.starts_with("libc");
    let script = frames.iter().find(is_script);
    let own = script.or_else(|| frames.iter().skip(1).find(|frame| !is_wrapper(frame)));
    own.or(frames.last()).map_or("?", String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asked_for_it() {
        #[track_caller]
        fn check(frames: &[&str], expect: &str) {
            let frames: Vec<String> = frames.iter().map(|frame| (*frame).to_owned()).collect();
            assert_eq!(asker(&frames), expect);
        }
        check(&["malloc", "keep_part", "main"], "keep_part");
        check(&["malloc", "operator new(unsigned long)", "Cache::put", "main"], "Cache::put");
        check(&["libc.so.6+0x9a0", "libc.so.6+0x8", "main"], "main");
        let script = ["malloc", "node::Allocate", "JS:*emit node:events:1", "JS:*keep /app.js:2"];
        check(&script, "JS:*keep /app.js:2");
        check(&script[..3], "node::Allocate");
        check(&["malloc"], "malloc");
        check(&[], "?");
    }
}
