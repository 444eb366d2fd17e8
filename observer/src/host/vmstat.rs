//! `/proc/vmstat` (kernel: mm/vmstat.c, include/linux/vm_event_item.h). Counters since boot, in pages or events.

use std::path::Path;

use rustix::io::Errno;

use super::{
    Unavailable,
    file::{KeptFile, pairs},
};

/// The file has 4 to 5 KiB; room for what later kernels add.
const SIZE: usize = 16 * 1024;

/// What reclaim, compaction and the OOM killer did since boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Vmstat {
    /// Free pages.
    pub free_pages: u64,
    /// Pages of the file LRU lists.
    pub file_lru_pages: u64,
    /// File pages read back after their eviction; before 5.9 anonymous ones too (`workingset_refault`).
    pub refault_file_pages: u64,
    /// Anonymous pages read back from swap after their eviction; since 5.9.
    pub refault_anon_pages: u64,
    /// Refaulted file pages that were in use when they were evicted: what must not happen. Since 5.9 apart from anonymous.
    pub restore_file_pages: u64,
    /// Read from disks for files and swap, in KiB.
    pub paged_in_kib: u64,
    /// Written to disks, in KiB.
    pub paged_out_kib: u64,
    /// Faults that waited for a disk.
    pub major_faults: u64,
    /// Direct reclaims begun by an allocation, over all zones.
    pub allocation_stalls: u64,
    /// Pages scanned by allocating processes themselves.
    pub direct_scanned_pages: u64,
    /// Pages that they got.
    pub direct_reclaimed_pages: u64,
    /// Pages scanned by kswapd.
    pub kswapd_scanned_pages: u64,
    /// Pages that it got.
    pub kswapd_reclaimed_pages: u64,
    /// Times a process was held back because reclaim fell behind.
    pub throttled: u64,
    /// Times kswapd reached the low watermark only to lose it at once.
    pub low_watermark_hits: u64,
    /// Direct compactions begun by an allocation.
    pub compaction_stalls: u64,
    /// Of these, failed.
    pub compaction_failures: u64,
    /// Pages read from swap.
    pub swapped_in_pages: u64,
    /// Pages written to swap.
    pub swapped_out_pages: u64,
    /// Processes killed by the OOM killer, also for a memory cgroup.
    pub oom_kills: u64,
}

impl Vmstat {
    /// Reads the file's text; what it does not name is 0.
    pub fn parse(text: &[u8]) -> Self {
        let mut vm = Vmstat::default();
        for (key, value) in pairs(text) {
            let field = match key {
                b"nr_free_pages" => &mut vm.free_pages,
                b"nr_active_file" | b"nr_inactive_file" => &mut vm.file_lru_pages,
                b"workingset_refault" | b"workingset_refault_file" => &mut vm.refault_file_pages,
                b"workingset_refault_anon" => &mut vm.refault_anon_pages,
                b"workingset_restore" | b"workingset_restore_file" => &mut vm.restore_file_pages,
                b"pgpgin" => &mut vm.paged_in_kib,
                b"pgpgout" => &mut vm.paged_out_kib,
                b"pgmajfault" => &mut vm.major_faults,
                b"pgscan_direct" => &mut vm.direct_scanned_pages,
                b"pgsteal_direct" => &mut vm.direct_reclaimed_pages,
                b"pgscan_kswapd" => &mut vm.kswapd_scanned_pages,
                b"pgsteal_kswapd" => &mut vm.kswapd_reclaimed_pages,
                b"pgscan_direct_throttle" => &mut vm.throttled,
                b"kswapd_low_wmark_hit_quickly" => &mut vm.low_watermark_hits,
                b"compact_stall" => &mut vm.compaction_stalls,
                b"compact_fail" => &mut vm.compaction_failures,
                b"pswpin" => &mut vm.swapped_in_pages,
                b"pswpout" => &mut vm.swapped_out_pages,
                b"oom_kill" => &mut vm.oom_kills,
                zone if zone.starts_with(b"allocstall_") => &mut vm.allocation_stalls,
                _ => continue,
            };
            *field = field.saturating_add(value);
        }
        vm
    }
}

/// The open file.
#[derive(Debug)]
pub struct VmstatFile(KeptFile);

impl VmstatFile {
    /// Opens it below `proc_root`.
    pub fn open(proc_root: &Path) -> Result<Self, Unavailable> {
        KeptFile::open(&proc_root.join("vmstat"), SIZE, "the kernel needs CONFIG_VM_EVENT_COUNTERS")
            .map(VmstatFile)
    }

    /// The state now.
    pub fn read(&mut self) -> Result<Vmstat, Errno> {
        self.0.read().map(Vmstat::parse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Vmstat) {
        assert_eq!(Vmstat::parse(text.as_bytes()), expected);
    }

    #[test]
    fn names_of_each_kernel() {
        // 5.4: one counter for both kinds of refault.
        check(
            "nr_free_pages 15320\nnr_zone_active_file 1\nnr_active_file 210\nnr_inactive_file 340\nworkingset_nodes 77\n\
             workingset_refault 90211\nworkingset_activate 8123\nworkingset_restore 511\nallocstall_dma 0\nallocstall_dma32 40\n\
             allocstall_normal 7\nallocstall_movable 3\npgmajfault 3811\npgscan_direct 91022\npgscan_direct_throttle 2\noom_kill 1\n",
            Vmstat {
                free_pages: 15320,
                file_lru_pages: 550,
                refault_file_pages: 90211,
                restore_file_pages: 511,
                allocation_stalls: 50,
                major_faults: 3811,
                direct_scanned_pages: 91022,
                throttled: 2,
                oom_kills: 1,
                ..Vmstat::default()
            },
        );
        // 5.10 and 6.1.
        check(
            "workingset_refault_anon 12\nworkingset_refault_file 3400\nworkingset_activate_file 9\nworkingset_restore_anon 1\n\
             workingset_restore_file 70\nnr_swapcached 3\npswpin 5\npswpout 6\npgsteal_kswapd 1000\npgsteal_direct 200\n\
             pgscan_kswapd 1500\npgscan_direct 900\npgscan_anon 1\npgscan_file 2\npgsteal_anon 1\ncompact_stall 4\ncompact_fail 3\n\
             compact_success 1\nkswapd_low_wmark_hit_quickly 8\nkswapd_high_wmark_hit_quickly 1\n",
            Vmstat {
                refault_anon_pages: 12,
                refault_file_pages: 3400,
                restore_file_pages: 70,
                swapped_in_pages: 5,
                swapped_out_pages: 6,
                kswapd_reclaimed_pages: 1000,
                direct_reclaimed_pages: 200,
                kswapd_scanned_pages: 1500,
                direct_scanned_pages: 900,
                compaction_stalls: 4,
                compaction_failures: 3,
                low_watermark_hits: 8,
                ..Vmstat::default()
            },
        );
        // 6.18: more causes of reclaim, one more zone, which must not be taken for the direct ones.
        check(
            "nr_free_pages 1694178\nnr_free_pages_blocks 1650688\nworkingset_refault_anon 0\nworkingset_refault_file 470593\n\
             allocstall_dma 0\nallocstall_normal 2\nallocstall_device 1\npgpgin 2048\npgpgout 7\npgsteal_khugepaged 9\npgsteal_proactive 9\npgscan_khugepaged 9\n\
             pgscan_proactive 9\npgscan_direct 4\nthp_swpout 9\nswpin_zero 9\noom_kill 0\n",
            Vmstat {
                free_pages: 1694178,
                refault_file_pages: 470593,
                paged_in_kib: 2048,
                paged_out_kib: 7,
                allocation_stalls: 3,
                direct_scanned_pages: 4,
                ..Vmstat::default()
            },
        );
        check("", Vmstat::default());
    }

    #[test]
    fn this_host() {
        let vm = VmstatFile::open(Path::new("/proc")).unwrap().read().unwrap();
        assert!(vm.free_pages > 0);
    }
}
