//! Server and client together, over real sockets.

use std::{
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{access::Access, server::Limits, *};
use crate::snapshot::{Loss, Snapshot, VERSION};

/// Nothing here takes longer unless it hangs.
const DEADLINE: Duration = Duration::from_secs(20);

/// A server on its own thread, stopped and joined when dropped.
struct Agent {
    slot: Slot,
    path: PathBuf,
    _dir: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
        assert!(!self.path.exists(), "the socket stays behind");
    }
}

fn limits() -> Limits {
    let second = Duration::from_secs(1);
    Limits { clients: 2, request: second * 5, write: second / 5, period: second / 50 }
}

fn agent(access: Access, limits: Limits) -> Agent {
    let dir = tempfile::tempdir().unwrap();
    let slot = Slot::default();
    let lock = Lock::take(dir.path()).unwrap();
    let server = Server::bind_for(&lock, access, limits).unwrap();
    let path = server.path().to_owned();
    let (stop, stopped) = oneshot::channel();
    let feed = slot.clone();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::select! {
                result = server.serve(feed) => panic!("the server ended: {result:?}"),
                _ = stopped => {}
            }
        });
    });
    Agent { slot, path, _dir: dir, stop: Some(stop), thread: Some(thread) }
}

fn ours() -> Access {
    Access::of_group("no-such-group")
}

fn numbered(time_unix_ns: u64, losses: usize) -> Arc<Snapshot> {
    let mut snapshot = Snapshot { version: VERSION, time_unix_ns, ..Snapshot::default() };
    snapshot.health.losses = vec![Loss { stage: "x".repeat(100), count: 1 }; losses];
    Arc::new(snapshot)
}

/// What the server sends to one raw request, until it closes.
fn exchange(path: &std::path::Path, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn one_snapshot_and_many() {
    let agent = agent(ours(), limits());
    agent.slot.publish(numbered(1, 1000));
    assert_eq!(snapshot(&agent.path).unwrap().health.losses.len(), 1000);
    let mut client = connect(&agent.path).unwrap();
    assert_eq!(client.next().unwrap().time_unix_ns, 1);
    agent.slot.publish(numbered(2, 0));
    let begin = Instant::now();
    while client.next().unwrap().time_unix_ns != 2 {
        assert!(begin.elapsed() < DEADLINE, "the second snapshot never came");
    }
}

#[test]
fn a_client_waits_for_the_first_snapshot() {
    let agent = agent(ours(), Limits { write: DEADLINE, ..limits() });
    let mut client = connect(&agent.path).unwrap();
    agent.slot.publish(numbered(7, 0));
    assert_eq!(client.next().unwrap().time_unix_ns, 7);
}

#[test]
fn refusals_say_why() {
    let busy = agent(ours(), limits());
    assert!(
        matches!(snapshot(&busy.path), Err(ControlError::Refused(why)) if why.contains("no snapshot yet"))
    );
    assert!(exchange(&busy.path, b"GET / HTTP/1.1\n").contains("unknown request"));
    assert!(exchange(&busy.path, &[b'x'; 64]).contains("unknown request"));
    busy.slot.publish(numbered(1, 0));
    let mut first = connect(&busy.path).unwrap();
    let mut second = connect(&busy.path).unwrap();
    first.next().unwrap();
    second.next().unwrap();
    let third = snapshot(&busy.path);
    assert!(
        matches!(&third, Err(ControlError::Refused(why)) if why.contains("too many clients")),
        "{third:?}"
    );

    let stranger = agent(Access::default(), limits());
    stranger.slot.publish(numbered(1, 0));
    let refused = snapshot(&stranger.path);
    assert!(
        matches!(&refused, Err(ControlError::Refused(why)) if why.contains("neither root nor in")),
        "{refused:?}"
    );
}

#[test]
fn a_client_that_never_reads_is_dropped() {
    let agent = agent(ours(), Limits { clients: 1, ..limits() });
    // More than the socket's buffer holds.
    agent.slot.publish(numbered(1, 50_000));
    let mut deaf = UnixStream::connect(&agent.path).unwrap();
    deaf.write_all(b"watch\n").unwrap();
    let begin = Instant::now();
    while let Err(error) = snapshot(&agent.path) {
        assert!(matches!(error, ControlError::Refused(_) | ControlError::Closed), "{error}");
        assert!(begin.elapsed() < DEADLINE, "it keeps its place");
        std::thread::yield_now();
    }
}

#[test]
fn a_watcher_that_leaves_frees_its_place() {
    // Between two snapshots, when nothing is written to it.
    let agent = agent(ours(), Limits { clients: 1, period: DEADLINE * 10, ..limits() });
    agent.slot.publish(numbered(1, 0));
    let mut client = connect(&agent.path).unwrap();
    client.next().unwrap();
    assert!(matches!(snapshot(&agent.path), Err(ControlError::Refused(_))));
    drop(client);
    let begin = Instant::now();
    while let Err(error) = snapshot(&agent.path) {
        assert!(matches!(error, ControlError::Refused(_) | ControlError::Closed), "{error}");
        assert!(begin.elapsed() < DEADLINE, "it keeps its place");
        std::thread::yield_now();
    }
}

#[test]
fn the_socket_is_closed_to_others() {
    let agent = agent(ours(), limits());
    assert_eq!(std::fs::metadata(&agent.path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn no_agent() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(SOCKET_NAME);
    assert!(matches!(connect(&path), Err(ControlError::NotRunning { .. })));
    // A socket file that a killed agent left behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(matches!(connect(&path), Err(ControlError::NotRunning { .. })));
    let lock = Lock::take(dir.path()).unwrap();
    Server::bind(&lock, "no-such-group").unwrap();
}

#[test]
fn a_path_too_long_for_a_socket() {
    let dir = tempfile::tempdir().unwrap();
    let lock = Lock::take(&dir.path().join("x".repeat(120))).unwrap();
    let error = Server::bind(&lock, "").unwrap_err().to_string();
    assert!(error.contains("cannot listen on") && error.contains("SUN_LEN"), "{error}");
}
