//! The proof: cause it, then see it. Real servers and clients, the real agent, this kernel.
//!
//! Each test says what it needs; what is missing skips it by name (see `observer_tests::needs`).

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod alloc;
mod bad_input;
mod export;
mod findings;
mod jvm;
mod ladder;
mod limit;
mod malloc;
mod oom;
mod proc;
mod sched;
mod tcp;
mod top;
mod transaction;

use std::process::Command;

use observer_tests::program::Program;

const MIB: u64 = 1 << 20;

/// Starts a load of `tests/src/bin/load.rs`.
fn load(args: &[&str]) -> Program {
    Program::start(Command::new(env!("CARGO_BIN_EXE_load")).args(args))
}

/// Asserts that a size is within `share` of the expected one. The kernel keeps sizes per CPU, so some pages may not be
/// counted yet.
#[track_caller]
fn assert_close(what: &str, bytes: u64, expected: u64, share: f64) {
    let limit = (expected as f64 * share) as u64 + MIB / 2;
    assert!(
        bytes.abs_diff(expected) <= limit,
        "{what}: {bytes} is not within {limit} of {expected}"
    );
}
