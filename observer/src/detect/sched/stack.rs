//! What a task in uninterruptible sleep waits for, by the names of kernel functions on its stack.

use crate::detect::{Party, party};

/// What it waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Class {
    /// A page of a file or of swap that it touched.
    PageIn,
    /// Memory that the kernel has to free first.
    Reclaim,
    /// The journal of a file system.
    Journal,
    /// A disk.
    Disk,
    /// A file server.
    Network,
    /// A file system in user space.
    Fuse,
    /// Another task in the kernel.
    Lock,
    /// Its own child, or the end of its own dump: nothing is wrong with the kernel.
    Own,
    /// Nobody knows.
    #[default]
    Unknown,
}

/// Parts of names, the most telling first: a task that waits for a disk because it touched a page waits for the page, and
/// one that holds a lock meanwhile is not held up by a lock.
const SIGNS: &[(Class, &[&str])] = &[
    (
        Class::Own,
        &["refrigerator", "wait_for_vfork", "vfork_done", "coredump", "ptrace_stop", "do_freezer"],
    ),
    (Class::Fuse, &["request_wait_answer", "fuse_"]),
    (Class::Network, &["rpc_", "nfs", "cifs_", "smb2_", "ceph_", "wait_for_response"]),
    (
        Class::Reclaim,
        &[
            "try_to_free",
            "reclaim_throttle",
            "throttle_direct_reclaim",
            "shrink_",
            "congestion_wait",
            "mem_cgroup_handle_over_high",
            "mem_cgroup_oom",
            "out_of_memory",
        ],
    ),
    (
        Class::PageIn,
        &["filemap_fault", "do_swap_page", "swap_read", "swapin", "page_fault", "handle_mm_fault"],
    ),
    (
        Class::Journal,
        &[
            "jbd2_",
            "start_this_handle",
            "wait_transaction_locked",
            "xlog_",
            "xfs_log",
            "btrfs_commit",
        ],
    ),
    (
        Class::Disk,
        &[
            "io_schedule",
            "submit_bio",
            "blk_",
            "bio_",
            "writeback",
            "balance_dirty",
            "wait_on_page",
            "folio_wait",
            "wait_on_buffer",
            "wait_on_bit_io",
            "bit_wait_io",
            "dm_",
            "md_",
            "xfs_buf",
            "sync_inodes",
            "scsi_",
            "nvme_",
        ],
    ),
    (Class::Lock, &["mutex_lock", "rwsem_down", "down_read", "down_write", "__down", "rt_mutex"]),
];

impl Class {
    /// By the names on a stack.
    pub fn of(stack: &[String]) -> Self {
        let is_there =
            |signs: &[&str]| stack.iter().any(|name| signs.iter().any(|sign| name.contains(sign)));
        SIGNS.iter().find(|(_, signs)| is_there(signs)).map_or(Self::Unknown, |(class, _)| *class)
    }

    /// A page that is waited for is a matter of memory only while that is short; else the disk is slow.
    pub fn with_memory(self, short: bool) -> Self {
        if self == Self::PageIn && !short { Self::Disk } else { self }
    }

    /// Whether it explains why others wait for locks.
    pub fn is_cause(self) -> bool {
        !matches!(self, Self::Lock | Self::Unknown | Self::Own)
    }

    /// What findings are told of: one for all that a slow disk does.
    pub fn subject(self) -> &'static str {
        match self {
            Self::PageIn | Self::Reclaim => "memory",
            Self::Journal | Self::Disk => "disk",
            Self::Network => "network file system",
            Self::Fuse => "file system in user space",
            Self::Lock => "kernel lock",
            Self::Own | Self::Unknown => "unknown",
        }
    }

    /// For a person.
    pub fn text(self) -> &'static str {
        match self {
            Self::PageIn => "a page that has to be read first",
            Self::Reclaim => "memory that has to be freed first",
            Self::Journal => "the journal of a file system",
            Self::Disk => "a disk",
            Self::Network => "a file server",
            Self::Fuse => "a file system in user space",
            Self::Lock => "a lock in the kernel",
            Self::Own => "its own child",
            Self::Unknown => "something in the kernel",
        }
    }

    /// The part of the kernel that answers for it.
    pub fn party(self) -> Party {
        party::kernel(self.subject(), 1.0)
    }
}

/// Classes of stacks that come one after the other: those who wait for the same thing are many.
#[derive(Default)]
pub struct Classes<'a> {
    last: Option<(&'a [String], Class)>,
}

impl<'a> Classes<'a> {
    /// By the names on a stack.
    pub fn of(&mut self, stack: &'a [String]) -> Class {
        let (_, class) = self
            .last
            .filter(|(known, _)| *known == stack)
            .unwrap_or_else(|| (stack, Class::of(stack)));
        self.last = Some((stack, class));
        class
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_telling_name_decides() {
        #[track_caller]
        fn check(stack: &str, expect: Class) {
            let names: Vec<String> = stack.split_whitespace().map(str::to_owned).collect();
            assert_eq!(Class::of(&names), expect, "{stack}");
        }
        check("io_schedule folio_wait_bit_common filemap_fault __do_fault", Class::PageIn);
        check("io_schedule folio_wait_bit_common filemap_read vfs_read", Class::Disk);
        check("io_schedule wait_on_page_writeback ext4_sync_file do_fsync", Class::Disk);
        check("jbd2_log_wait_commit ext4_sync_file do_fsync", Class::Journal);
        check("wait_transaction_locked start_this_handle ext4_create", Class::Journal);
        check("rpc_wait_bit_killable nfs4_run_open_task vfs_open", Class::Network);
        check("request_wait_answer fuse_simple_request fuse_lookup", Class::Fuse);
        check("schedule_timeout reclaim_throttle shrink_node try_to_free_pages", Class::Reclaim);
        check("rwsem_down_read_slowpath down_read do_user_addr_fault", Class::Lock);
        check("__mutex_lock ext4_file_write", Class::Lock);
        check("wait_for_vfork_done kernel_clone __do_sys_vfork", Class::Own);
        check("__refrigerator get_signal", Class::Own);
        check("0xffffffff81000000", Class::Unknown);
        check("", Class::Unknown);
    }
}
