//! Programs that do nothing: what the kernel takes to call one is not the cost of ours (`cargo xtask bench instructions`).

use aya_ebpf::{
    macros::{btf_tracepoint, fentry, perf_event, socket_filter},
    programs::{BtfTracePointContext, FEntryContext, PerfEventContext, SkBuffContext},
};

use crate::alloc::IterContext;

#[btf_tracepoint]
fn empty_tp_btf(_ctx: BtfTracePointContext) -> i32 {
    0
}

#[fentry]
fn empty_fentry(_ctx: FEntryContext) -> i32 {
    0
}

#[perf_event]
fn empty_perf_event(_ctx: PerfEventContext) -> u32 {
    0
}

#[socket_filter]
fn empty_socket_filter(_ctx: SkBuffContext) -> i64 {
    0
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter")]
extern "C" fn empty_iter(_ctx: &IterContext) -> i32 {
    0
}
