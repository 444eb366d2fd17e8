//! Bounds of control groups that are looked at now and then: processes, and the memory that a runtime chooses its limits
//! by. Files are opened for each reading, since the groups change from one to the next.

use std::path::Path;

use super::{
    MAX_MOUNTINFO, SIZE, UNLIMITED_V1, Unavailable,
    mounts::{Hierarchy, Mounts, Version},
};
use crate::host::file::{number, open, read_from_start, words};

/// Processes and threads of a control group (Documentation/admin-guide/cgroup-v1/pids.rst, cgroup-v2.rst).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tasks {
    /// The group that has the limit: the one asked for, or the nearest above it.
    pub path: String,
    /// Threads in it and below.
    pub used: u64,
    /// How many there may be.
    pub limit: u64,
}

/// The hierarchies.
#[derive(Debug, Default)]
pub struct Bounds {
    mounts: Mounts,
}

impl Bounds {
    /// Finds the hierarchies in `self/mountinfo` below `proc_root`.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn open(proc_root: &Path) -> Result<Self, Unavailable> {
        let path = proc_root.join("self/mountinfo");
        let mut text = vec![0; MAX_MOUNTINFO];
        let text = open(&path)
            .and_then(|file| read_from_start(&file, &mut text).map(String::from_utf8_lossy))
            .map_err(|errno| Unavailable::new(&path, errno, "mount /proc"))?;
        Ok(Self { mounts: Mounts::parse(&text) })
    }

    /// Processes of the nearest control group at or above this path that has a limit of them.
    pub fn tasks(&self, path: &str) -> Option<Tasks> {
        let hierarchy = self.mounts.pids.as_ref()?;
        Hierarchy::ancestors(path).find_map(|path| {
            let directory = hierarchy.directory(path);
            let limit = value(&directory.join("pids.max"))?;
            Some(Tasks {
                path: path.to_owned(),
                used: value(&directory.join("pids.current"))?,
                limit,
            })
        })
    }

    /// The smallest memory limit at or above this path; `None` if there is none.
    pub fn memory_limit_bytes(&self, path: &str) -> Option<u64> {
        let hierarchy = self.mounts.memory.as_ref()?;
        let name = match hierarchy.version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        };
        let limits = Hierarchy::ancestors(path)
            .filter_map(|path| value(&hierarchy.directory(path).join(name)));
        limits.filter(|limit| *limit < UNLIMITED_V1).min()
    }
}

/// A file with one number; `max` is none.
fn value(path: &Path) -> Option<u64> {
    let mut buffer = [0; SIZE];
    let file = open(path).ok()?;
    words(read_from_start(&file, &mut buffer).ok()?).next().and_then(number)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A host whose hierarchies are folders.
    fn host(mounts: &[(&str, &str)]) -> (tempfile::TempDir, Bounds) {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("self")).unwrap();
        let at = |name: &str| root.path().join(name).display().to_string();
        let line = |(name, end): &(&str, &str)| format!("1 1 0:1 / {} rw - {end}\n", at(name));
        let text: String = mounts.iter().map(line).collect();
        fs::write(root.path().join("self/mountinfo"), text).unwrap();
        let bounds = Bounds::open(root.path()).unwrap();
        (root, bounds)
    }

    fn put(root: &tempfile::TempDir, path: &str, text: &str) {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn the_nearest_limit_of_processes_holds() {
        let (root, bounds) = host(&[("cg", "cgroup2 cgroup2 rw")]);
        put(&root, "cg/a/pids.max", "100\n");
        put(&root, "cg/a/pids.current", "60\n");
        put(&root, "cg/a/b/pids.max", "max\n");
        put(&root, "cg/a/b/pids.current", "50\n");
        let tasks = Tasks { path: "/a".to_owned(), used: 60, limit: 100 };
        assert_eq!(bounds.tasks("/a/b/c"), Some(tasks));
        assert_eq!(bounds.tasks("/x"), None);
        assert_eq!(bounds.tasks("/"), None);
    }

    #[test]
    fn the_smallest_limit_of_memory_holds() {
        let (root, bounds) = host(&[("cg", "cgroup2 cgroup2 rw")]);
        put(&root, "cg/a/memory.max", "1000\n");
        put(&root, "cg/a/b/memory.max", "2000\n");
        put(&root, "cg/a/b/c/memory.max", "max\n");
        assert_eq!(bounds.memory_limit_bytes("/a/b/c"), Some(1000));
        assert_eq!(bounds.memory_limit_bytes("/x"), None);
    }

    #[test]
    fn version_1_has_a_hierarchy_each() {
        let (root, bounds) =
            host(&[("p", "cgroup cgroup rw,pids"), ("m", "cgroup cgroup rw,memory")]);
        put(&root, "p/a/pids.max", "7\n");
        put(&root, "p/a/pids.current", "3\n");
        put(&root, "m/a/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(bounds.tasks("/a").map(|tasks| (tasks.used, tasks.limit)), Some((3, 7)));
        assert_eq!(bounds.memory_limit_bytes("/a"), None);
        put(&root, "m/a/memory.limit_in_bytes", "4096\n");
        assert_eq!(bounds.memory_limit_bytes("/a"), Some(4096));
    }
}
