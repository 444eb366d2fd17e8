//! Where the control group hierarchies are mounted (`/proc/self/mountinfo`, proc_pid_mountinfo(5)).

use std::path::{Path, PathBuf};

/// Version of a hierarchy. Their files have different names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// One hierarchy a controller.
    V1,
    /// One for all.
    V2,
}

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) version: Version,
    /// Where it is mounted.
    point: PathBuf,
    /// The control group that the mount shows as its root; not `/` inside a container.
    root: String,
}

impl Hierarchy {
    /// Directory of a control group.
    pub(super) fn directory(&self, path: &str) -> PathBuf {
        let below = path.strip_prefix(self.root.trim_end_matches('/')).unwrap_or(path);
        self.point.join(below.trim_start_matches('/'))
    }

    /// The path and those above it, the deepest first, without the root.
    pub(super) fn ancestors(path: &str) -> impl Iterator<Item = &str> {
        Path::new(path).ancestors().filter_map(Path::to_str).take_while(|path| path.len() > 1)
    }
}

/// The hierarchies that have the controllers of interest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Mounts {
    pub(super) memory: Option<Hierarchy>,
    pub(super) cpu: Option<Hierarchy>,
    pub(super) pids: Option<Hierarchy>,
}

impl Mounts {
    /// Reads mountinfo. A controller is in its v1 hierarchy if there is one, else in v2's.
    pub(super) fn parse(text: &str) -> Self {
        let mut mounts = Mounts::default();
        let mut unified = None;
        for line in text.lines() {
            let Some((fields, file_system)) = line.split_once(" - ") else { continue };
            let mut fields = fields.split(' ').skip(3);
            let (Some(root), Some(point)) = (fields.next(), fields.next()) else { continue };
            let mut file_system = file_system.split(' ');
            let (kind, options) = (file_system.next(), file_system.nth(1).unwrap_or_default());
            let hierarchy = |version| Hierarchy {
                version,
                point: unescaped(point).into(),
                root: unescaped(root),
            };
            match kind {
                Some("cgroup2") => unified = unified.or(Some(hierarchy(Version::V2))),
                Some("cgroup") => {
                    for option in options.split(',') {
                        match option {
                            "memory" => mounts.memory = Some(hierarchy(Version::V1)),
                            "cpu" => mounts.cpu = Some(hierarchy(Version::V1)),
                            "pids" => mounts.pids = Some(hierarchy(Version::V1)),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        Mounts {
            memory: mounts.memory.or(unified.clone()),
            cpu: mounts.cpu.or(unified.clone()),
            pids: mounts.pids.or(unified),
        }
    }
}

/// Spaces, tabs, newlines and backslashes are three octal digits in mountinfo.
fn unescaped(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (escape, character)| text.replace(escape, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
        31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    #[test]
    fn hierarchies() {
        #[track_caller]
        fn check(text: &str, memory: Option<(Version, &str)>, cpu: Option<(Version, &str)>) {
            let mounts = Mounts::parse(text);
            let found = |hierarchy: Option<Hierarchy>| {
                hierarchy.map(|h| (h.version, h.point.to_str().unwrap().to_owned()))
            };
            let expected = |hierarchy: Option<(Version, &str)>| {
                hierarchy.map(|(version, point)| (version, point.to_owned()))
            };
            assert_eq!(found(mounts.memory), expected(memory));
            assert_eq!(found(mounts.cpu), expected(cpu));
        }
        check(
            HYBRID,
            Some((Version::V1, "/sys/fs/cgroup/memory")),
            Some((Version::V1, "/sys/fs/cgroup/cpu,cpuacct")),
        );
        let unified = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";
        check(
            unified,
            Some((Version::V2, "/sys/fs/cgroup")),
            Some((Version::V2, "/sys/fs/cgroup")),
        );
        check(
            "29 23 0:26 / /a\\040b rw - cgroup2 none rw\n",
            Some((Version::V2, "/a b")),
            Some((Version::V2, "/a b")),
        );
        check("29 23 0:26 / / rw - ext4 /dev/vda rw\nnonsense\n - cgroup\n", None, None);
    }

    #[test]
    fn directories() {
        #[track_caller]
        fn check(root: &str, path: &str, expected: &str) {
            let text = format!("29 23 0:26 {root} /cg rw - cgroup2 cgroup2 rw\n");
            let memory = Mounts::parse(&text).memory.unwrap();
            assert_eq!(memory.directory(path), Path::new(expected));
        }
        check("/", "/system.slice/a.service", "/cg/system.slice/a.service");
        check("/", "/", "/cg/");
        check("/docker/1", "/docker/1/child", "/cg/child");
        check("/docker/1", "/other", "/cg/other");
    }

    #[test]
    fn ancestors() {
        #[track_caller]
        fn check(path: &str, expected: &[&str]) {
            assert_eq!(Hierarchy::ancestors(path).collect::<Vec<_>>(), expected);
        }
        check("/a/b/c", &["/a/b/c", "/a/b", "/a"]);
        check("/a", &["/a"]);
        check("/", &[]);
        check("", &[]);
    }
}
