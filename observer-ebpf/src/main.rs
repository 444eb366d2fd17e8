//! The BPF programs. One module a signal; `kernel.rs` reads kernel structures, `emit.rs` is the only way out.
//!
//! Built for BPF this is the object that the agent embeds. Built for the host it is empty, so that `cargo test
//! --workspace` needs no exclusions.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// A closure that two programs share would be a function of its own, which no program may call (build.rs).
#![cfg_attr(target_arch = "bpf", feature(stmt_expr_attributes))]
#![cfg_attr(
    target_arch = "bpf",
    expect(unsafe_code, reason = "BPF helpers and kernel memory; the verifier is the judge")
)]
#![cfg_attr(
    target_arch = "bpf",
    allow(
        missing_docs,
        unreachable_pub,
        clippy::undocumented_unsafe_blocks,
        reason = "symbols are read by the loader; the safety argument of each module stands in its header"
    )
)]

#[cfg(target_arch = "bpf")]
mod alloc;
#[cfg(target_arch = "bpf")]
mod counters;
#[cfg(target_arch = "bpf")]
mod emit;
#[cfg(target_arch = "bpf")]
mod empty;
#[cfg(target_arch = "bpf")]
mod faults;
#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod layout;
#[cfg(target_arch = "bpf")]
mod ledger;
#[cfg(target_arch = "bpf")]
mod oom;
#[cfg(target_arch = "bpf")]
mod reclaim;
#[cfg(target_arch = "bpf")]
mod reply;
#[cfg(target_arch = "bpf")]
mod sched;
#[cfg(target_arch = "bpf")]
mod subject;
#[cfg(target_arch = "bpf")]
mod tcp;

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

#[cfg(not(target_arch = "bpf"))]
fn main() {}
