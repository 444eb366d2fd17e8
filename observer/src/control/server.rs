//! The agent's side of the socket, on the IO thread.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::{
        fs::{PermissionsExt, chown},
        net::UnixListener as StdListener,
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::{ControlError, Lock, SNAPSHOT, SOCKET_NAME, Slot, WATCH, access::Access};
use crate::snapshot::Snapshot;

/// Bounds of what clients can take from the agent.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    /// Clients at once; a further one is refused.
    pub(super) clients: usize,
    /// Time to send the request.
    pub(super) request: Duration,
    /// Time to take one snapshot, after which a client that does not read is dropped.
    pub(super) write: Duration,
    /// Between two snapshots of `watch`.
    pub(super) period: Duration,
}

const LIMITS: Limits = Limits {
    clients: 8,
    request: Duration::from_secs(5),
    write: Duration::from_secs(5),
    period: Duration::from_secs(1),
};

/// A longer request is none of ours.
const REQUEST_BYTES_MAX: u64 = 64;

/// Rest after an accept that failed (no file descriptors left), so as not to spin.
const ACCEPT_REST: Duration = Duration::from_secs(1);

/// A bound socket, removed when dropped.
#[derive(Debug)]
pub struct Server {
    listener: StdListener,
    path: PathBuf,
    access: Access,
    limits: Limits,
}

impl Server {
    /// Binds the socket in the locked folder: mode 0660 for `group` if it exists, else 0600. The lock proves that a
    /// socket file already there is a dead one's.
    ///
    /// # Errors
    /// What the system refused, such as a path longer than 107 bytes (unix(7)).
    pub fn bind(lock: &Lock, group: &str) -> Result<Self, ControlError> {
        Self::bind_for(lock, Access::of_group(group), LIMITS)
    }

    pub(super) fn bind_for(
        lock: &Lock,
        access: Access,
        limits: Limits,
    ) -> Result<Self, ControlError> {
        let path = lock.run_dir().join(SOCKET_NAME);
        let io = |what| {
            let path = path.clone();
            move |source| ControlError::Io { what, path, source }
        };
        match fs::remove_file(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            result => result.map_err(io("cannot remove the old socket"))?,
        }
        let listener = StdListener::bind(&path).map_err(io("cannot listen on"))?;
        // From here on the drop removes the file, whatever fails below.
        let server = Self { listener, path: path.clone(), access, limits };
        server.listener.set_nonblocking(true).map_err(io("cannot set up"))?;
        server.protect().map_err(io("cannot set owner and mode of"))?;
        Ok(server)
    }

    fn protect(&self) -> io::Result<()> {
        let mode = match &self.access.group {
            Some(group) => {
                chown(&self.path, None, Some(group.id))?;
                0o660
            }
            None => 0o600,
        };
        fs::set_permissions(&self.path, fs::Permissions::from_mode(mode))
    }

    /// Where clients connect.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Answers clients until dropped. Needs a tokio runtime with IO and time.
    ///
    /// # Errors
    /// Only if the runtime does not take the socket; nothing that a client does ends it.
    pub async fn serve(&self, slot: Slot) -> io::Result<()> {
        let listener = UnixListener::from_std(self.listener.try_clone()?)?;
        let feed = Arc::new(Feed { slot, encoded: Mutex::new(None) });
        let mut clients = JoinSet::new();
        loop {
            tokio::select! {
                // Those that have left are counted out before a new one is counted in.
                biased;
                Some(_) = clients.join_next() => if clients.is_empty() {
                    feed.forget();
                },
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) if clients.len() < self.limits.clients => {
                        clients.spawn(answer(stream, self.access.clone(), feed.clone(), self.limits.clone()));
                    }
                    // Not awaited: what does not fit into a fresh socket's buffer is not owed.
                    Ok((stream, _)) => drop(stream.try_write(&refusal("too many clients; close another `observer top`"))),
                    Err(error) => {
                        tracing::warn!(%error, "control socket: accept failed");
                        sleep(ACCEPT_REST).await;
                    }
                },
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "control socket: not removed");
        }
    }
}

/// Snapshots as JSON lines, encoded once for all clients.
struct Feed {
    slot: Slot,
    encoded: Mutex<Option<(Arc<Snapshot>, Bytes)>>,
}

impl Feed {
    /// `None` before the first snapshot.
    fn line(&self) -> Option<Bytes> {
        let snapshot = self.slot.latest()?;
        let mut encoded = self.encoded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, line)) = &*encoded
            && Arc::ptr_eq(of, &snapshot)
        {
            return Some(line.clone());
        }
        let line = Bytes::from(match serde_json::to_vec(&*snapshot) {
            Ok(mut line) => {
                line.push(b'\n');
                line
            }
            Err(error) => refusal(&format!("the snapshot cannot be encoded: {error}")),
        });
        *encoded = Some((snapshot, line.clone()));
        Some(line)
    }

    /// Frees the megabytes that nobody reads.
    fn forget(&self) {
        *self.encoded.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

async fn answer(mut stream: UnixStream, access: Access, feed: Arc<Feed>, limits: Limits) {
    if let Err(error) = exchange(&mut stream, &access, &feed, &limits).await {
        tracing::debug!(%error, "control socket: client dropped");
    }
}

async fn exchange(
    stream: &mut UnixStream,
    access: &Access,
    feed: &Feed,
    limits: &Limits,
) -> io::Result<()> {
    let peer = stream.peer_cred()?;
    if !access.allows(peer.uid(), peer.gid()) {
        let why = format!("user {} is neither root nor in the configured group", peer.uid());
        return write(stream, &refusal(&why), limits.write).await;
    }
    let mut request = String::new();
    let mut reader = BufReader::new(&mut *stream).take(REQUEST_BYTES_MAX);
    timeout(limits.request, reader.read_line(&mut request)).await??;
    match request.trim() {
        SNAPSHOT => send(stream, feed, limits).await,
        WATCH => {
            let mut ticks = interval(limits.period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    ready = stream.readable() => match ready.and_then(|()| stream.try_read(&mut [0])) {
                        Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                        // It has left, or says more than it may.
                        left => return left.map(drop),
                    },
                }
                send(stream, feed, limits).await?;
            }
        }
        _ => {
            write(stream, &refusal("unknown request; send `snapshot` or `watch`"), limits.write)
                .await
        }
    }
}

/// Sends the newest snapshot; just after the start it waits for the first.
async fn send(stream: &mut UnixStream, feed: &Feed, limits: &Limits) -> io::Result<()> {
    let first = async {
        loop {
            match feed.line() {
                Some(line) => return line,
                None => sleep(Duration::from_millis(50)).await,
            }
        }
    };
    match timeout(limits.write, first).await {
        Ok(line) => write(stream, &line, limits.write).await,
        Err(_) => {
            write(stream, &refusal("there is no snapshot yet; try again"), limits.write).await
        }
    }
}

async fn write(stream: &mut UnixStream, line: &[u8], limit: Duration) -> io::Result<()> {
    timeout(limit, stream.write_all(line)).await?
}

fn refusal(why: &str) -> Vec<u8> {
    let mut line = serde_json::json!({ "error": why }).to_string().into_bytes();
    line.push(b'\n');
    line
}
