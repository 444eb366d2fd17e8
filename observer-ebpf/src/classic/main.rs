//! The BPF programs for kernels without type information or ring buffer: classic tracepoints, a queue, and no helper or
//! map that is younger than 5.4. What needs no type information is shared with the full object.
//!
//! Misses, against the full object: memory and run-queue delay of processes, open connections and holders of sockets come
//! from `/proc`; no byte counts and errors of connections, no exit codes, no event-loop gaps, no stalls with stacks. A
//! classic tracepoint that fires inside another program of its CPU is skipped by the kernel, without a count.
//! Cost: the kernel fills a trace record before it calls a program, 65 to 250 ns more an event than `tp_btf`
//! (docs/principles.md, 6).

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    expect(unsafe_code, reason = "BPF helpers and kernel memory; the verifier is the judge")
)]
#![cfg_attr(
    target_arch = "bpf",
    allow(
        missing_docs,
        dead_code,
        unreachable_pub,
        clippy::undocumented_unsafe_blocks,
        reason = "symbols are read by the loader; shared modules have what only the other object needs; the safety \
                  argument of each module stands in its header"
    )
)]

#[cfg(target_arch = "bpf")]
mod alloc;
#[cfg(target_arch = "bpf")]
#[path = "../counters.rs"]
mod counters;
#[cfg(target_arch = "bpf")]
mod emit;
#[cfg(target_arch = "bpf")]
#[path = "../faults.rs"]
mod faults;
#[cfg(target_arch = "bpf")]
mod fields;
#[cfg(target_arch = "bpf")]
#[path = "../layout.rs"]
mod layout;
#[cfg(target_arch = "bpf")]
#[path = "../ledger.rs"]
mod ledger;
#[cfg(target_arch = "bpf")]
mod oom;
#[cfg(target_arch = "bpf")]
#[path = "../reclaim.rs"]
mod reclaim;
#[cfg(target_arch = "bpf")]
#[path = "../subject.rs"]
mod subject;
#[cfg(target_arch = "bpf")]
mod tcp;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // SAFETY: the verifier refuses a program that can reach this.
    unsafe { core::hint::unreachable_unchecked() }
}

/// Tells the kernel that the programs may call GPL-only helpers. Dual MIT/GPL is what MIT OR Apache-2.0 allows here.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
