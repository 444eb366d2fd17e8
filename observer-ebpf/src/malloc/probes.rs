//! The programs, see `main.rs`. A sample is begun where an allocation is asked for, in CALLS by thread, and is entered in
//! SAMPLES where its address is known.

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_F_USER_STACK,
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_prandom_u32, bpf_probe_read_user,
        generated::bpf_get_stack,
    },
    macros::{map, uprobe, uretprobe},
    maps::{Array, HashMap, PerCpuArray},
    programs::{ProbeContext, RetProbeContext},
};
use observer_abi::malloc::{
    COUNTS, Count, FRAMES, MAX_CALLS, MAX_SAMPLES, Sample, is_sampled, weight,
};

/// By address.
#[map]
static SAMPLES: HashMap<u64, Sample> = HashMap::with_max_entries(MAX_SAMPLES, 0);

/// Calls that have not returned, by thread.
#[map]
static CALLS: HashMap<u64, Sample> = HashMap::with_max_entries(MAX_CALLS, 0);

/// What a call begins as: the BPF stack is too small for one, and a program here may be interrupted by another one.
#[map]
static EMPTY: Array<Sample> = Array::with_max_entries(1, 0);

#[map]
static COUNTS_MAP: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTS, 0);

#[uprobe]
fn malloc_enter(ctx: ProbeContext) -> u32 {
    count(Count::Hits);
    begin(&ctx, argument(&ctx, 0));
    0
}

#[uprobe]
fn calloc_enter(ctx: ProbeContext) -> u32 {
    count(Count::Hits);
    // What is more than a word can hold fails.
    begin(&ctx, argument(&ctx, 0).wrapping_mul(argument(&ctx, 1)));
    0
}

#[uprobe]
fn realloc_enter(ctx: ProbeContext) -> u32 {
    count(Count::Hits);
    forget(argument(&ctx, 0));
    begin(&ctx, argument(&ctx, 1));
    0
}

#[uretprobe]
fn allocated(ctx: RetProbeContext) -> u32 {
    count(Count::Hits);
    let thread = bpf_get_current_pid_tgid();
    let Some(call) = CALLS.get_ptr(thread) else { return 0 };
    let address: u64 = ctx.ret();
    if address != 0 && SAMPLES.insert(address, unsafe { &*call }, 0).is_err() {
        count(Count::Lost);
    }
    // It is there.
    CALLS.remove(thread).ok();
    0
}

#[uprobe]
fn free_enter(ctx: ProbeContext) -> u32 {
    count(Count::Hits);
    forget(argument(&ctx, 0));
    0
}

#[inline(always)]
fn begin(ctx: &ProbeContext, bytes: u64) {
    if !is_sampled(unsafe { bpf_get_prandom_u32() }, bytes) {
        return;
    }
    count(Count::Samples);
    let thread = bpf_get_current_pid_tgid();
    let Some(empty) = EMPTY.get_ptr(0) else { return };
    if CALLS.insert(thread, unsafe { &*empty }, 0).is_err() {
        count(Count::Lost);
        return;
    }
    let Some(call) = CALLS.get_ptr_mut(thread) else { return };
    let call = unsafe { &mut *call };
    call.bytes = weight(bytes);
    call.caller = caller(ctx);
    let frames = call.frames.as_mut_ptr().cast();
    // Fails where the stack cannot be read; the frames then stay zero.
    unsafe {
        bpf_get_stack(
            ctx.as_ptr(),
            frames,
            size_of::<[u64; FRAMES]>() as u32,
            u64::from(BPF_F_USER_STACK),
        )
    };
}

/// What is freed is no longer held. Most of it was not sampled: a look is cheaper than to remove what is not there.
#[inline(always)]
fn forget(address: u64) {
    if SAMPLES.get_ptr(address).is_some() {
        SAMPLES.remove(address).ok();
    }
}

#[inline(always)]
fn argument(ctx: &ProbeContext, index: usize) -> u64 {
    ctx.arg(index).unwrap_or(0)
}

/// Where the function returns to, at its entry.
#[cfg(not(bpf_target_arch = "aarch64"))]
#[inline(always)]
fn caller(ctx: &ProbeContext) -> u64 {
    let top = unsafe { (*ctx.regs).rsp };
    unsafe { bpf_probe_read_user(top as *const u64) }.unwrap_or(0)
}

/// Bits of a user address; those above may sign it (pointer authentication).
#[cfg(bpf_target_arch = "aarch64")]
const CODE_ADDRESS: u64 = (1 << 48) - 1;

/// Likewise: the link register.
#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
fn caller(ctx: &ProbeContext) -> u64 {
    let regs = ctx.regs.cast::<aya_ebpf::bindings::user_pt_regs>();
    unsafe { (*regs).regs[30] & CODE_ADDRESS }
}

#[inline(always)]
fn count(count: Count) {
    if let Some(slot) = COUNTS_MAP.get_ptr_mut(count as u32) {
        unsafe { *slot += 1 };
    }
}
