//! What the configuration of a PostgreSQL server says: the first process of a server works in the folder of its data
//! (postgresql.conf, postgresql.auto.conf, postmaster.pid). Files that these include are not followed.

use super::file;
use crate::{identity::Process, signal::limit::Postgres};

/// Bytes read of each file; the commented one of the distribution has 30 KiB.
const MAX_BYTES: usize = 256 * 1024;

/// max_connections of a server that is told none.
const DEFAULT_CONNECTIONS: u64 = 100;

/// What a server is told; an option of its command line counts more than ALTER SYSTEM, and that more than the file.
pub(super) fn find(process: &Process) -> Postgres {
    let path = std::fs::read_link(format!("/proc/{}/cwd", process.pid)).ok();
    let data_directory = path.and_then(|path| Some(path.to_str()?.to_owned())).unwrap_or_default();
    let mut found = Postgres { data_directory, ..Postgres::default() };
    let Ok(root) = file::folder(process.pid, "root") else { return found };
    let text = |path: &str| {
        let bytes = file::below(&root, path, MAX_BYTES).ok()?.1;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    let in_data = |name: &str| text(&format!("{}/{name}", found.data_directory));
    let command_line = process.command_line.as_str();
    let main = match option(command_line, "config_file") {
        Some(path) => text(path),
        None => in_data("postgresql.conf"),
    };
    let files = [in_data("postgresql.auto.conf"), main];
    let told = files.iter().flatten().find_map(|text| setting(text, "max_connections"));
    let is_read = files[1].is_some();
    found.max_connections = option(command_line, "max_connections")
        .or_else(|| behind(command_line, "-N"))
        .or(told)
        .and_then(|text| text.parse().ok())
        .or(is_read.then_some(DEFAULT_CONNECTIONS));
    found.port = in_data("postmaster.pid")
        .and_then(|text| text.lines().nth(3)?.trim().parse().ok())
        .unwrap_or(0);
    found
}

/// Value of `-c NAME=VALUE` or `--NAME=VALUE`.
fn option<'a>(command_line: &'a str, name: &str) -> Option<&'a str> {
    let value = |word: &'a str| {
        word.strip_prefix("--").unwrap_or(word).strip_prefix(name)?.strip_prefix('=')
    };
    command_line.split(' ').rev().find_map(value)
}

/// The word behind an option.
fn behind<'a>(command_line: &'a str, name: &str) -> Option<&'a str> {
    command_line.split(' ').skip_while(|word| *word != name).nth(1)
}

/// Value of `name = value` in a configuration; the last one counts.
fn setting<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().rev().find_map(|line| {
        let rest = line.trim_start().strip_prefix(name)?;
        let rest = rest.trim_start_matches([' ', '\t', '=']);
        let value = rest.split(['#', ' ', '\t']).next()?.trim_matches('\'');
        (!value.is_empty() && rest.len() < line.trim_start().len() - name.len()).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn settings() {
        let check =
            |text: &str, expected| assert_eq!(setting(text, "max_connections"), expected, "{text}");
        check("max_connections = 50\t# (change requires restart)\n", Some("50"));
        check("#max_connections = 50\n", None);
        check("max_connections=1\n max_connections '20'\n", Some("20"));
        check("max_connections_x = 1\nmax_connections\n", None);
        check("", None);
    }

    #[test]
    fn options_of_the_command_line() {
        let line = "/usr/lib/postgresql/15/bin/postgres -D /data -c config_file=/etc/p.conf -N 7 --max_connections=9";
        assert_eq!(option(line, "config_file"), Some("/etc/p.conf"));
        assert_eq!(option(line, "max_connections"), Some("9"));
        assert_eq!((behind(line, "-N"), behind(line, "-X")), (Some("7"), None));
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,200}", value in ".{0,20}") {
            setting(&text, "max_connections");
            setting(&format!("max_connections{value}"), "max_connections");
            option(&text, "a");
        }
    }
}
