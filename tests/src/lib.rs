//! Harness of the tests: real servers, clients that count their own bytes, and the agent as users start it.
//!
//! Everything here panics instead of returning an error: a test that cannot set its scene has failed, and the panic says
//! where. What a test starts, it ends by pid when the guard is dropped, also after a panic.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub mod agent;
pub mod cgroup;
pub mod collector;
pub mod dns;
pub mod http;
pub mod jvm;
pub mod needs;
pub mod netns;
pub mod node;
pub mod otlp;
pub mod pm2;
pub mod postgres;
pub mod procfs;
pub mod program;
pub mod redis;
pub mod rotel;
pub mod source;
pub mod terminal;
pub mod wire;

/// Time between two looks at a condition.
pub const POLL: Duration = Duration::from_millis(20);

/// Looks again and again until `condition` gives a value; panics with `what` after `timeout`.
#[track_caller]
pub fn wait_until<T>(what: &str, timeout: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {timeout:?}: {what}");
        // sleep: the pace of a wait with a deadline
        std::thread::sleep(POLL);
    }
}

/// How many times as far off a time may be as on real hardware: `OBSERVER_TEST_SLACK`, else 1. Guests under emulation set
/// it (docs/kernels.md): what a program does around an operation takes several times as long there.
pub fn slack() -> u32 {
    std::env::var("OBSERVER_TEST_SLACK").map_or(1, |text| text.parse().expect("a number"))
}

/// Seconds as a [`Duration`].
pub const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Nanoseconds of the monotonic clock, the same in all processes of the host.
pub fn monotonic_ns() -> u64 {
    clock_ns(rustix::time::ClockId::Monotonic)
}

/// Nanoseconds since the Unix epoch.
pub fn unix_ns() -> u64 {
    clock_ns(rustix::time::ClockId::Realtime)
}

fn clock_ns(clock: rustix::time::ClockId) -> u64 {
    let time = rustix::time::clock_gettime(clock);
    u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).expect("clocks do not run before 0")
}

/// A port of the loopback interface on which nobody listens at the moment.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("loopback has a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// First executable of this name in `PATH`.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Numeric ids of a user of the host, from `/etc/passwd`.
pub fn user_ids(name: &str) -> Option<(u32, u32)> {
    let passwd = std::fs::read_to_string(Path::new("/etc/passwd")).ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then_some(())?;
        let mut ids = fields.skip(1).take(2).map(str::parse);
        Some((ids.next()?.ok()?, ids.next()?.ok()?))
    })
}
