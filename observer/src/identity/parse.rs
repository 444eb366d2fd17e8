//! Pure parsers of `/proc/PID/{stat,status,cmdline}` and `/etc/passwd` (proc(5), passwd(5)).

use std::collections::HashMap;

/// What `/proc/PID/stat` tells of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stat {
    /// Process id.
    pub pid: u32,
    /// Command name; up to 15 bytes, kernel workers up to 63.
    pub name: String,
    /// Parent's pid.
    pub parent_pid: u32,
    /// Start time since boot, in clock ticks.
    pub start_ticks: u64,
}

/// Reads `/proc/PID/stat`; `None` if it is not of that form. The name may hold anything, also `)` and spaces, so the
/// fields are counted from the last `)`.
pub fn parse_stat(bytes: &[u8]) -> Option<Stat> {
    let open = bytes.iter().position(|&byte| byte == b'(')?;
    let close = bytes.iter().rposition(|&byte| byte == b')').filter(|&close| close > open)?;
    let pid = str::from_utf8(&bytes[..open]).ok()?.trim().parse().ok()?;
    let name = String::from_utf8_lossy(&bytes[open + 1..close]).into_owned();
    let mut fields = str::from_utf8(&bytes[close + 1..]).ok()?.split_ascii_whitespace();
    // proc(5) numbers the fields from 1; the one after the name is the third.
    let parent_pid = fields.nth(4 - 3)?.parse().ok()?;
    let start_ticks = fields.nth(22 - 5)?.parse().ok()?;
    Some(Stat { pid, name, parent_pid, start_ticks })
}

/// Effective user id in `/proc/PID/status`.
pub(super) fn parse_user_id(status: &[u8]) -> Option<u32> {
    let line = status.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:"))?;
    str::from_utf8(line).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Arguments joined by spaces. A process may write over its arguments, so they are taken as they come.
pub(super) fn parse_command_line(bytes: &[u8]) -> String {
    let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    let text = String::from_utf8_lossy(&bytes[..end]);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned()
}

/// Names by user id. Lines that are not of passwd's form are skipped.
pub(super) fn parse_passwd(text: &str, max_users: usize) -> HashMap<u32, String> {
    let user = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        Some((fields.nth(1)?.parse().ok()?, name.to_owned()))
    };
    let mut names = HashMap::new();
    for (id, name) in text.lines().filter_map(user).take(max_users) {
        names.entry(id).or_insert(name);
    }
    names
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn stat_of_real_processes() {
        #[track_caller]
        fn check(line: &str, expected: Option<(u32, &str, u32, u64)>) {
            let stat = parse_stat(line.as_bytes());
            assert_eq!(
                stat.as_ref().map(|s| (s.pid, s.name.as_str(), s.parent_pid, s.start_ticks)),
                expected,
                "{line}"
            );
        }
        check(
            "11760 (cat) R 11740 11740 8252 0 -1 4194304 101 0 0 0 0 0 0 0 20 0 1 0 116608 3133440 410 18446744073709551615 \
             94743939878912 94743939898793 140730583484224 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0\n",
            Some((11760, "cat", 11740, 116608)),
        );
        check(
            "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 0 0 0 18446744073709551615 0 0 0\n",
            Some((2, "kthreadd", 0, 0)),
        );
        check(
            "901 (PM2 v6.0.14: Go) S 1 901 901 0 -1 4194304 1 0 0 0 9 3 0 0 20 0 11 0 2305 1 1",
            Some((901, "PM2 v6.0.14: Go", 1, 2305)),
        );
        check(
            "7 (a) R 1 (b)) S 4 7 7 0 -1 0 1 0 0 0 9 3 0 0 20 0 11 0 99 1 1",
            Some((7, "a) R 1 (b)", 4, 99)),
        );
        for broken in [
            "",
            "(",
            ")",
            ")(",
            "7 (a)",
            "7 (a) S",
            "x (a) S 1 1",
            "7 (a) S 4 7 7 0 -1 0 1 0 0 0 9 3 0 0 20 0 11",
        ] {
            check(broken, None);
        }
    }

    #[test]
    fn user_id_is_the_effective_one() {
        #[track_caller]
        fn check(status: &str, expected: Option<u32>) {
            assert_eq!(parse_user_id(status.as_bytes()), expected, "{status}");
        }
        check("Name:\tcat\nUmask:\t0022\nUid:\t1000\t33\t1000\t33\nGid:\t0\t0\t0\t0\n", Some(33));
        check("Name:\tUid:\nUid:\t5\t6\t7\t8\n", Some(6));
        check("Uid:\t5\n", None);
        check("", None);
    }

    #[test]
    fn command_lines() {
        #[track_caller]
        fn check(bytes: &[u8], expected: &str) {
            assert_eq!(parse_command_line(bytes), expected);
        }
        check(
            b"/usr/bin/node\0--max-old-space-size=512\0app.js\0",
            "/usr/bin/node --max-old-space-size=512 app.js",
        );
        check(
            b"PM2 v6.0.14: God Daemon (/root/.pm2)\0\0\0\0\0",
            "PM2 v6.0.14: God Daemon (/root/.pm2)",
        );
        check(
            b"postgres: 15/main: app shop [local] idle\0",
            "postgres: 15/main: app shop [local] idle",
        );
        check(b"a\0\0b\0", "a  b");
        check(b"sh\0-c\0a\nb\x1b[2J\0", "sh -c a b [2J");
        check(b"", "");
        check(b"\0\0", "");
    }

    #[test]
    fn passwd_takes_the_first_name_of_an_id() {
        let names = parse_passwd(
            "root:x:0:0:root:/root:/bin/bash\ntoor:x:0:0::/root:/bin/sh\n\n#no\n:x:3:3::/:/\nbad:x:y:1:::\nwww-data:x:33:33:w:/var/www:/s\n",
            10,
        );
        assert_eq!(names, HashMap::from([(0, "root".to_owned()), (33, "www-data".to_owned())]));
        assert_eq!(parse_passwd("a:x:1:\nb:x:2:\nc:x:3:\n", 2).len(), 2);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in "[0-9 ()a-z:\n]{0,200}") {
            for input in [&bytes[..], text.as_bytes()] {
                parse_stat(input);
                parse_user_id(input);
                parse_command_line(input);
            }
            parse_passwd(&text, 4);
        }

        #[test]
        fn any_name_is_read_back(pid in 1u32.., name in "[ -~]{0,15}", parent in any::<u32>(), start in any::<u64>()) {
            let line = format!("{pid} ({name}) S {parent} 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {start} 0 0 0\n");
            let expected = Stat { pid, name, parent_pid: parent, start_ticks: start };
            prop_assert_eq!(parse_stat(line.as_bytes()), Some(expected));
        }
    }
}
