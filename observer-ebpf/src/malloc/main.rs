//! The allocator of one process, for seconds. An object of its own, loaded when a process is to be probed and gone with it:
//! at rest nothing of it is in the kernel. It needs no type information.
//!
//! Hooks: uprobes on `malloc`, `calloc`, `realloc` and `free` of one process, uretprobes on the first three.
//! Yields: SAMPLES, allocations that were made while it was probed and are not freed, each with its user stack and the bytes
//! that it stands for; how many hits, samples and losses.
//! Misses: what was allocated before; mmap(2), `memalign` and its like, allocators with other names (V8's heap, arenas, Go);
//! what is allocated shortly before the end counts, though it may be freed a moment later. A `realloc` that fails counts as a
//! `free`. Stacks without frame pointers are cut after the caller.
//! Cost: some 640 ns a pair of malloc and free (three hits, 213 ns each) where the kernel carries out the first instructions
//! by itself, as in Debian's C library (docs/measurements.md). A hit is a trap, so the agent ends it when there are many
//! (kernel/malloc.rs).

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    expect(unsafe_code, reason = "BPF helpers and kernel memory; the verifier is the judge")
)]
#![cfg_attr(
    target_arch = "bpf",
    allow(
        missing_docs,
        clippy::undocumented_unsafe_blocks,
        reason = "symbols are read by the loader; keys and values are of maps"
    )
)]

#[cfg(target_arch = "bpf")]
mod probes;

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
