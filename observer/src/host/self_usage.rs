//! What the agent itself uses.

use std::path::Path;

use rustix::{
    io::Errno,
    time::{ClockId, clock_gettime},
};

use super::{
    Unavailable,
    file::{KeptFile, number, words},
};

/// The file has seven numbers.
const SIZE: usize = 256;

/// Use of this process since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of all its threads, user and system.
    pub cpu_ns: u64,
    /// Resident memory (`/proc/self/statm`, proc_pid_statm(5); off by some pages a CPU since 6.2).
    pub rss_bytes: u64,
}

/// Watches this process.
#[derive(Debug)]
pub struct SelfUsage {
    statm: KeptFile,
    page_size: u64,
}

impl SelfUsage {
    /// Opens its file below `proc_root`.
    pub fn open(proc_root: &Path) -> Result<Self, Unavailable> {
        let statm = KeptFile::open(&proc_root.join("self/statm"), SIZE, "mount /proc")?;
        Ok(SelfUsage { statm, page_size: rustix::param::page_size() as u64 })
    }

    /// The use until now.
    pub fn read(&mut self) -> Result<Usage, Errno> {
        let pages = words(self.statm.read()?).nth(1).and_then(number).ok_or(Errno::INVAL)?;
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        Ok(Usage {
            cpu_ns: super::info::nanoseconds(cpu),
            rss_bytes: pages.saturating_mul(self.page_size),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_with_use() {
        let mut usage = SelfUsage::open(Path::new("/proc")).unwrap();
        let before = usage.read().unwrap();
        let touched = vec![1_u8; 32 << 20];
        let after = usage.read().unwrap();
        assert!(after.cpu_ns > before.cpu_ns);
        assert!(
            after.rss_bytes >= before.rss_bytes + (touched.len() as u64) * 3 / 4,
            "{before:?} {after:?}"
        );
    }

    #[test]
    fn nonsense_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("self")).unwrap();
        std::fs::write(root.path().join("self/statm"), "x").unwrap();
        assert_eq!(SelfUsage::open(root.path()).unwrap().read(), Err(Errno::INVAL));
    }
}
