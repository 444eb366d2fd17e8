//! Log2 buckets of durations: the kernel finds the index, the agent knows the bounds.

/// Buckets: the first ends at [`FIRST_BOUND_NS`], each next one at twice the one before, the last is open.
pub const BUCKETS: usize = 16;

/// Upper bound of the first bucket: 2^20 ns, about a millisecond. The last bound is then about 17 s.
pub const FIRST_BOUND_NS: u64 = 1 << 20;

/// Bucket of a duration. Without a loop, as the verifier and the hot path like it.
#[inline(always)]
pub const fn bucket(duration_ns: u64) -> u32 {
    let scaled = duration_ns >> 20;
    let index = u64::BITS - scaled.leading_zeros();
    if index as usize >= BUCKETS { BUCKETS as u32 - 1 } else { index }
}

/// Upper bound of a bucket, exclusive; `None` for the last one.
pub const fn upper_bound_ns(bucket: usize) -> Option<u64> {
    if bucket + 1 >= BUCKETS { None } else { Some(FIRST_BOUND_NS << bucket) }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn a_duration_lies_below_its_bound_and_above_the_one_before(duration_ns: u64) {
            let index = bucket(duration_ns) as usize;
            assert!(index < BUCKETS);
            if let Some(bound) = upper_bound_ns(index) {
                assert!(duration_ns < bound);
            }
            if index > 0 {
                assert!(duration_ns >= FIRST_BOUND_NS << (index - 1));
            }
        }
    }
}
