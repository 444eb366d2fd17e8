//! Who may read the socket: root, the agent's own user, and members of one group.
//!
//! The socket's mode says the same (0660 with the group, 0600 without); this check of SO_PEERCRED (unix(7)) holds also
//! where a mode does not: between bind and chmod, and on file systems without modes. Groups are those of /etc/group;
//! groups from other sources (LDAP) are not known here.

use std::{fs, path::Path};

/// The rule.
#[derive(Debug, Clone, Default)]
pub(super) struct Access {
    /// Always allowed.
    pub(super) users: Vec<u32>,
    /// Members are allowed too.
    pub(super) group: Option<Group>,
}

/// A group that exists.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) name: String,
    pub(super) id: u32,
}

impl Access {
    /// Root, this process's user, and `group` if it exists.
    pub(super) fn of_group(name: &str) -> Self {
        let id = fs::read_to_string("/etc/group").ok().and_then(|text| group_id(&text, name));
        Self {
            users: vec![0, rustix::process::geteuid().as_raw()],
            group: id.map(|id| Group { name: name.to_owned(), id }),
        }
    }

    /// Whether a peer of these ids may read. Looks the members up anew, so that a new member needs no restart.
    pub(super) fn allows(&self, uid: u32, gid: u32) -> bool {
        let read = |path| fs::read_to_string(Path::new(path)).unwrap_or_default();
        self.users.contains(&uid)
            || self.group.as_ref().is_some_and(|group| {
                group.id == gid
                    || is_member(&read("/etc/group"), &read("/etc/passwd"), &group.name, uid)
            })
    }
}

/// Id of a group in the text of /etc/group (group(5): `name:password:id:members`).
fn group_id(text: &str, name: &str) -> Option<u32> {
    let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
    line.split(':').nth(2)?.parse().ok()
}

/// Whether the user is listed as a member (group(5), passwd(5): `name:password:uid:...`).
fn is_member(groups: &str, users: &str, name: &str, uid: u32) -> bool {
    let uid = uid.to_string();
    let user = users
        .lines()
        .find(|line| line.split(':').nth(2) == Some(&uid))
        .and_then(|line| line.split(':').next());
    let group = groups.lines().find(|line| line.split(':').next() == Some(name));
    let mut members = group.and_then(|line| line.split(':').nth(3)).unwrap_or_default().split(',');
    user.is_some_and(|user| members.any(|member| member == user))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUPS: &str = "root:x:0:\nobserver:x:970:ann,bob\nbroken\nobserver2:x:x:ann\n";
    const USERS: &str = "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/:/bin/sh\ncy:x:1002:1002::/:/bin/sh\nbroken\n";

    #[test]
    fn groups() {
        let check =
            |name: &str, expect: Option<u32>| assert_eq!(group_id(GROUPS, name), expect, "{name}");
        check("observer", Some(970));
        check("observer2", None);
        check("broken", None);
        check("obs", None);
        check("", None);
    }

    #[test]
    fn members() {
        let check = |group: &str, uid: u32, expect: bool| {
            assert_eq!(is_member(GROUPS, USERS, group, uid), expect, "{group} {uid}")
        };
        check("observer", 1000, true);
        check("observer", 1002, false);
        check("observer", 1001, false);
        check("root", 0, false);
        check("none", 1000, false);
    }

    #[test]
    fn rule() {
        let rule =
            Access { users: vec![0], group: Some(Group { name: "no-such-group".into(), id: 970 }) };
        assert!(rule.allows(0, 0) && rule.allows(4_000_000, 970));
        assert!(!rule.allows(4_000_000, 4_000_000));
        assert!(!Access { users: vec![0], group: None }.allows(4_000_000, 970));
    }
}
