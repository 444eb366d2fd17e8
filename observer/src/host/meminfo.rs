//! `/proc/meminfo` (proc_meminfo(5), kernel: fs/proc/meminfo.c).

use std::path::Path;

use rustix::io::Errno;

use super::{
    Unavailable,
    file::{KeptFile, pairs},
};

/// The file has about 1.5 KiB; room for what later kernels add.
const SIZE: usize = 8 * 1024;

/// Memory of the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Meminfo {
    /// MemTotal.
    pub total_bytes: u64,
    /// MemFree.
    pub free_bytes: u64,
    /// MemAvailable: what can be allocated without swapping, an estimate.
    pub available_bytes: u64,
    /// SwapTotal.
    pub swap_total_bytes: u64,
    /// SwapFree.
    pub swap_free_bytes: u64,
    /// Active(file) + Inactive(file): the page cache that reclaim can take, and that a thrashing host has none of.
    pub file_lru_bytes: u64,
    /// AnonPages.
    pub anon_bytes: u64,
    /// Shmem: tmpfs and shared memory, which only swap can free.
    pub shmem_bytes: u64,
    /// SReclaimable.
    pub slab_reclaimable_bytes: u64,
    /// SUnreclaim.
    pub slab_unreclaimable_bytes: u64,
    /// PageTables.
    pub page_table_bytes: u64,
    /// Committed_AS: memory promised to processes.
    pub committed_bytes: u64,
    /// CommitLimit; binds only where vm.overcommit_memory is 2.
    pub commit_limit_bytes: u64,
}

impl Meminfo {
    /// Reads the file's text; what it does not name is 0.
    pub fn parse(text: &[u8]) -> Self {
        let mut memory = Meminfo::default();
        for (key, kib) in pairs(text) {
            let field = match key {
                b"MemTotal" => &mut memory.total_bytes,
                b"MemFree" => &mut memory.free_bytes,
                b"MemAvailable" => &mut memory.available_bytes,
                b"SwapTotal" => &mut memory.swap_total_bytes,
                b"SwapFree" => &mut memory.swap_free_bytes,
                b"Active(file)" | b"Inactive(file)" => &mut memory.file_lru_bytes,
                b"AnonPages" => &mut memory.anon_bytes,
                b"Shmem" => &mut memory.shmem_bytes,
                b"SReclaimable" => &mut memory.slab_reclaimable_bytes,
                b"SUnreclaim" => &mut memory.slab_unreclaimable_bytes,
                b"PageTables" => &mut memory.page_table_bytes,
                b"Committed_AS" => &mut memory.committed_bytes,
                b"CommitLimit" => &mut memory.commit_limit_bytes,
                _ => continue,
            };
            *field = field.saturating_add(kib.saturating_mul(1024));
        }
        memory
    }
}

/// The open file.
#[derive(Debug)]
pub struct MeminfoFile(KeptFile);

impl MeminfoFile {
    /// Opens it below `proc_root`.
    pub fn open(proc_root: &Path) -> Result<Self, Unavailable> {
        KeptFile::open(&proc_root.join("meminfo"), SIZE, "mount /proc").map(MeminfoFile)
    }

    /// The state now.
    pub fn read(&mut self) -> Result<Meminfo, Errno> {
        self.0.read().map(Meminfo::parse)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KIB: u64 = 1024;

    #[test]
    fn real_texts() {
        #[track_caller]
        fn check(text: &str, expected: Meminfo) {
            assert_eq!(Meminfo::parse(text.as_bytes()), expected);
        }
        // Kernel 6.18, no swap.
        check(
            "MemTotal:       24684096 kB\nMemFree:        20882620 kB\nMemAvailable:   24170444 kB\nBuffers:           81312 kB\n\
             Active:          1620216 kB\nInactive:        1789736 kB\nActive(anon):       1552 kB\nInactive(anon):    11020 kB\n\
             Active(file):    1618664 kB\nInactive(file):  1778716 kB\nSwapTotal:             0 kB\nSwapFree:              0 kB\n\
             AnonPages:         20916 kB\nShmem:              8788 kB\nSReclaimable:     205408 kB\nSUnreclaim:        33012 kB\n\
             PageTables:         1772 kB\nSecPageTables:         0 kB\nCommitLimit:    12342048 kB\nCommitted_AS:      72596 kB\n\
             ShmemHugePages:        0 kB\nHugePages_Total:       0\nDirectMap1G:    25165824 kB\n",
            Meminfo {
                total_bytes: 24684096 * KIB,
                free_bytes: 20882620 * KIB,
                available_bytes: 24170444 * KIB,
                file_lru_bytes: (1618664 + 1778716) * KIB,
                anon_bytes: 20916 * KIB,
                shmem_bytes: 8788 * KIB,
                slab_reclaimable_bytes: 205408 * KIB,
                slab_unreclaimable_bytes: 33012 * KIB,
                page_table_bytes: 1772 * KIB,
                committed_bytes: 72596 * KIB,
                commit_limit_bytes: 12342048 * KIB,
                ..Meminfo::default()
            },
        );
        // Kernel 5.10 style, with swap.
        check(
            "MemTotal:        1003904 kB\nMemFree:           61280 kB\nMemAvailable:      14020 kB\nActive(file):       1200 kB\n\
             Inactive(file):      900 kB\nSwapTotal:        524284 kB\nSwapFree:         12288 kB\n",
            Meminfo {
                total_bytes: 1003904 * KIB,
                free_bytes: 61280 * KIB,
                available_bytes: 14020 * KIB,
                file_lru_bytes: 2100 * KIB,
                swap_total_bytes: 524284 * KIB,
                swap_free_bytes: 12288 * KIB,
                ..Meminfo::default()
            },
        );
        check("", Meminfo::default());
        check(
            "MemTotal:\nMemFree: x kB\nShmem 18446744073709551615 kB\n",
            Meminfo { shmem_bytes: u64::MAX, ..Meminfo::default() },
        );
    }

    #[test]
    fn this_host() {
        let memory = MeminfoFile::open(Path::new("/proc")).unwrap().read().unwrap();
        assert!(memory.total_bytes > memory.free_bytes && memory.free_bytes > 0);
        assert!(MeminfoFile::open(Path::new("/nowhere")).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(text in "((Active\\(file\\)|Inactive\\(file\\)|Shmem):? [0-9]{1,20} kB\n){0,9}") {
            Meminfo::parse(text.as_bytes());
        }
    }
}
