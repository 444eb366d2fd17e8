//! Sessions of the PostgreSQL servers of this host: each is a process, and its title says whose (PostgreSQL documentation, 27.1).

use crate::{detect::Seen, identity::Process};

/// A session that counts against `max_connections`.
#[derive(Debug)]
pub(super) struct Session<'a> {
    /// Its process.
    pub process: &'a Process,
    /// Address and port of its client; none if it came by a Unix socket.
    pub client: Option<(&'a str, u16)>,
}

impl Session<'_> {
    /// Pid of its server's first process.
    pub fn server_pid(&self) -> u32 {
        self.process.parent_pid
    }
}

/// All of them. One that has no title yet is missing.
pub(super) fn sessions<'a>(seen: &Seen<'a>) -> impl Iterator<Item = Session<'a>> + use<'a> {
    let snapshot = seen.snapshot;
    let rows = snapshot.alloc.processes.iter().filter(|row| row.name == "postgres");
    rows.filter_map(|row| {
        let process = &**snapshot.processes.get(&row.pid)?;
        Some(Session { process, client: client_of(&process.command_line)? })
    })
}

/// Of `postgres: [CLUSTER: ]USER DATABASE ADDRESS(PORT) STATE` the client's address and port; none within if it has
/// `[local]` instead. What sends its log to a standby has a limit of its own (`max_wal_senders`).
fn client_of(title: &str) -> Option<Option<(&str, u16)>> {
    let words = || title.strip_prefix("postgres: ").into_iter().flat_map(str::split_whitespace);
    if words().take(2).any(|word| word == "walsender") {
        return None;
    }
    words().find_map(|word| match word {
        "[local]" => Some(None),
        _ => {
            let (address, port) = word.strip_suffix(')')?.split_once('(')?;
            Some(Some((address, port.parse().ok()?)))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::client_of;

    #[test]
    fn the_title_of_a_session_names_its_client() {
        #[track_caller]
        fn check(title: &str, expect: Option<Option<(&str, u16)>>) {
            assert_eq!(client_of(title), expect, "{title}");
        }
        check("postgres: app shop 127.0.0.1(53412) SELECT", Some(Some(("127.0.0.1", 53412))));
        check("postgres: main: app shop ::1(1) idle", Some(Some(("::1", 1))));
        check("postgres: app shop [local] idle", Some(None));
        check("postgres: app shop [local] idle in transaction (aborted)", Some(None));
        check("postgres: app shop 127.0.0.1(99999999) x", None);
        check("postgres: walsender standby 10.0.0.7(40000) streaming 0/3000060", None);
        check("postgres: main: walsender standby [local] streaming", None);
        check("postgres: parallel worker for PID 4711 ", None);
        check("postgres: autovacuum worker shop", None);
        check("postgres: checkpointer", None);
        check("/usr/lib/postgresql/15/bin/postgres -D /var", None);
        check("postgres: )( (", None);
        check("postgres: ", None);
        check("", None);
    }
}
