//! What the configuration of a Redis server says (redis.conf; the same for Valkey and KeyDB). A server is not asked:
//! that would be a connection of ours among its clients.
//!
//! A server writes over its command line, as `redis-server *:6379`. So its file is looked for at the usual places of its
//! own root and working folder, and taken only if it is for the same port.

use super::file;
use crate::{identity::Process, signal::limit::Redis};

/// Bytes read of a configuration; the commented one of the distribution has about 110 KiB.
const MAX_BYTES: usize = 512 * 1024;

/// Port of a server that is told none.
const DEFAULT_PORT: u16 = 6379;

/// maxclients of a server that is told none.
const DEFAULT_CLIENTS: u64 = 10_000;

/// Where distributions and images put the file.
const PLACES: &[&str] = &[
    "/etc/redis/redis.conf",
    "/etc/redis.conf",
    "/etc/valkey/valkey.conf",
    "/etc/valkey.conf",
    "/etc/keydb/keydb.conf",
    "/usr/local/etc/redis/redis.conf",
    "/usr/local/etc/valkey/valkey.conf",
    "/opt/bitnami/redis/etc/redis.conf",
    "/usr/local/etc/redis.conf",
    "/data/redis.conf",
];

/// What a server is told.
pub(super) fn find(process: &Process) -> Redis {
    let port = titled_port(&process.command_line);
    let options = options(&process.command_line);
    let given = process.command_line.split(' ').filter(|word| word.ends_with(".conf"));
    let mut found = Redis { port: port.unwrap_or(0), ..Redis::default() };
    if let Ok(root) = file::folder(process.pid, "root") {
        let cwd = std::fs::read_link(format!("/proc/{}/cwd", process.pid));
        let cwd = cwd.ok().and_then(|path| Some(path.to_str()?.trim_end_matches('/').to_owned()));
        let absolute = |path: &str| match &cwd {
            Some(cwd) if !path.starts_with('/') => format!("{cwd}/{path}"),
            _ => path.to_owned(),
        };
        let by_port = port.map(|port| {
            ["/etc/redis/redis-", "/etc/redis/", ""].map(|start| format!("{start}{port}.conf"))
        });
        let paths = given
            .map(str::to_owned)
            .chain(by_port.into_iter().flatten())
            .chain(PLACES.iter().map(|path| (*path).to_owned()))
            .chain(["redis.conf".to_owned()]);
        for path in paths.map(|path| absolute(&path)) {
            let Ok((_, bytes)) = file::below(&root, &path, MAX_BYTES) else { continue };
            let told = parse(&String::from_utf8_lossy(&bytes));
            if port.is_none_or(|port| port == told.port) {
                found = Redis { config_file: path, ..told };
                break;
            }
        }
    }
    if let Some(options) = options {
        found = with(found, &options);
    }
    found
}

/// The port of a title, as `redis-server 127.0.0.1:6379 [cluster]`.
fn titled_port(command_line: &str) -> Option<u16> {
    command_line.split(' ').nth(1)?.rsplit_once(':')?.1.parse().ok()
}

/// Options of a command line that was not written over, as lines of a configuration.
fn options(command_line: &str) -> Option<String> {
    let (_, options) = command_line.split_once(" --")?;
    Some(options.replace(" --", "\n"))
}

/// A whole configuration: what it does not say is as the server has it by default.
fn parse(text: &str) -> Redis {
    let defaults = Redis {
        port: DEFAULT_PORT,
        max_clients: Some(DEFAULT_CLIENTS),
        maxmemory_known: true,
        maxmemory_policy: "noeviction".to_owned(),
        save: Some(true),
        append_only: Some(false),
        ..Redis::default()
    };
    with(defaults, text)
}

/// The last line of a kind counts, but `save` adds up until `save ""`.
fn with(mut redis: Redis, text: &str) -> Redis {
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(key), Some(value)) = (words.next(), words.next()) else { continue };
        let value = value.trim_matches(['"', '\'']);
        match key.to_ascii_lowercase().as_str() {
            "port" => redis.port = value.parse().unwrap_or(redis.port),
            "maxmemory" => {
                redis.maxmemory_bytes = bytes(value).filter(|bytes| *bytes > 0);
                redis.maxmemory_known = true;
            }
            "maxclients" => redis.max_clients = value.parse().ok().or(redis.max_clients),
            "maxmemory-policy" => redis.maxmemory_policy = value.to_owned(),
            "save" => redis.save = Some(!value.is_empty()),
            "appendonly" => redis.append_only = Some(value.eq_ignore_ascii_case("yes")),
            _ => {}
        }
    }
    redis
}

/// `1gb` is 1024^3, `1g` is 1000^3 (redis.conf).
fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" => 1000,
        "kb" => 1 << 10,
        "m" => 1_000_000,
        "mb" => 1 << 20,
        "g" => 1_000_000_000,
        "gb" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn configurations() {
        #[track_caller]
        fn check(text: &str, maxmemory: Option<u64>, policy: &str, port: u16, save: bool) {
            let redis = parse(text);
            assert!(redis.maxmemory_known);
            let found =
                (redis.maxmemory_bytes, redis.maxmemory_policy.as_str(), redis.port, redis.save);
            assert_eq!(found, (maxmemory, policy, port, Some(save)), "{text}");
        }
        check("", None, "noeviction", 6379, true);
        check("# maxmemory 5\nmaxmemory 0\n", None, "noeviction", 6379, true);
        check(
            "port 6380\nMAXMEMORY 100mb\nmaxmemory-policy allkeys-lru\n",
            Some(100 << 20),
            "allkeys-lru",
            6380,
            true,
        );
        check(
            "  maxmemory  2g\nsave 900 1\nsave \"\"\n",
            Some(2_000_000_000),
            "noeviction",
            6379,
            false,
        );
        check(
            "maxmemory 1gb\nmaxmemory 7\nsave ''\nport x\nmaxmemory",
            Some(7),
            "noeviction",
            6379,
            false,
        );
        assert_eq!(parse("appendonly yes").append_only, Some(true));
        assert_eq!(parse("").max_clients, Some(10_000));
        assert_eq!(parse("maxclients 50\nmaxclients x").max_clients, Some(50));
    }

    #[test]
    fn command_lines() {
        assert_eq!(titled_port("redis-server 127.0.0.1:6390 [cluster]"), Some(6390));
        assert_eq!(titled_port("redis-server *:6379"), Some(6379));
        assert_eq!(titled_port("redis-server /etc/redis.conf"), None);
        assert_eq!(options("redis-server *:6379"), None);
        let redis = with(
            Redis::default(),
            &options("redis-server --port 1 --maxmemory 5mb --save ").unwrap(),
        );
        assert_eq!(
            (redis.port, redis.maxmemory_bytes, redis.maxmemory_known),
            (1, Some(5 << 20), true)
        );
        assert!(!with(Redis::default(), "port 1").maxmemory_known);
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,200}", value in ".{0,12}") {
            parse(&text);
            parse(&format!("maxmemory {value}\nport {value}\nsave {value}"));
            options(&text);
            titled_port(&text);
        }
    }
}
