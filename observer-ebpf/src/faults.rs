//! Sampled page faults by process and user stack. Shared by both objects, which bring the hook.

use aya_ebpf::{
    bindings::{BPF_F_FAST_STACK_CMP, BPF_F_USER_STACK},
    macros::map,
    maps::{HashMap, StackTrace},
    programs::{PerfEventContext, tracing::StackIdContext as _},
};
use observer_abi::{
    Counter,
    alloc::{FaultSite, Faults, MAX_FAULT_SITES, MAX_STACKS},
};

use crate::{counters::count, subject::Current};

#[map]
static STACKS: StackTrace = StackTrace::with_max_entries(MAX_STACKS, 0);

#[map]
static FAULTS: HashMap<FaultSite, Faults> = HashMap::with_max_entries(MAX_FAULT_SITES, 0);

/// Counts a fault of the running task. `leaf_return`: word at the top of its user stack, 0 if not known.
#[inline(always)]
pub fn sample(ctx: &PerfEventContext, leaf_return: impl FnOnce() -> u64) {
    count(Counter::FaultSamples, 1);
    let flags = u64::from(BPF_F_USER_STACK | BPF_F_FAST_STACK_CMP);
    let Ok(stack_id) = ctx.get_stackid(&STACKS, flags).map(|id| id as u32) else {
        count(Counter::FaultsLost, 1);
        return;
    };
    // In one place: a second one would make it a function of its own (see `build.rs`).
    let leaf_return = leaf_return();
    let site = FaultSite { tgid: Current::get().tgid, stack_id };
    if let Some(faults) = FAULTS.get_ptr_mut(site) {
        let faults = unsafe { &mut *faults };
        faults.samples += 1;
        faults.leaf_return = leaf_return;
    } else if FAULTS.insert(site, Faults { samples: 1, leaf_return }, 0).is_err() {
        count(Counter::FaultsLost, 1);
    }
}
