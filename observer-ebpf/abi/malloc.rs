//! Calls of the allocator of one process, while it is probed: samples of what it has handed out.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An allocation of this size is sampled for sure, a smaller one as often as its part of it. What leaks 1 MiB/s gives 160
/// samples in ten seconds.
pub const SAMPLE_BYTES: u64 = 64 << 10;

/// Samples that are not freed yet: 256 MiB of small allocations, 1.3 MiB of kernel memory while a process is probed.
pub const MAX_SAMPLES: u32 = 4096;

/// Threads that are within a sampled call at once.
pub const MAX_CALLS: u32 = 256;

/// Frames kept of a stack. A request handler of Node.js is some twenty deep.
pub const FRAMES: usize = 32;

/// An allocation that was sampled.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Sample {
    /// Bytes that it stands for, see [`weight`].
    pub bytes: u64,
    /// Where the allocator's function returns to. It has no frame yet when it is met, so its caller is missing from the stack.
    pub caller: u64,
    /// User stack, innermost first, zero-filled.
    pub frames: [u64; FRAMES],
}

/// What is counted while a process is probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Count {
    /// Hits of probes: calls of the allocator's functions, and returns of those that allocate.
    Hits = 0,
    /// Allocations sampled.
    Samples = 1,
    /// Samples that found no room.
    Lost = 2,
}

/// Number of [`Count`]s.
pub const COUNTS: u32 = 3;

/// Whether an allocation of so many bytes is sampled, by 32 random bits.
pub const fn is_sampled(random: u32, bytes: u64) -> bool {
    (random as u64 & (SAMPLE_BYTES - 1)) < bytes
}

/// How many bytes a sampled allocation stands for: its own divided by its chance of being sampled. Sums of it are right
/// on average, whatever the sizes.
pub const fn weight(bytes: u64) -> u64 {
    if bytes > SAMPLE_BYTES { bytes } else { SAMPLE_BYTES }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn samples_stand_for_all_bytes(bytes in 0..4 * SAMPLE_BYTES) {
            let all = (0..SAMPLE_BYTES as u32).filter(|random| is_sampled(*random, bytes));
            let told = all.count() as u64 * weight(bytes);
            prop_assert_eq!(told, bytes * SAMPLE_BYTES);
        }
    }

    #[test]
    fn high_bits_of_chance_do_not_matter() {
        assert!(!is_sampled(u32::MAX, 1));
        assert!(is_sampled(u32::MAX << 16, 1));
        assert!(is_sampled(u32::MAX, u64::MAX));
    }
}
