//! Where the kernel keeps what the programs read: byte offsets, found in the running kernel's BTF by the agent and given
//! to the programs as constants before they are verified. Field names follow the kernel's, `struct_field`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! offsets {
    ($($(#[$doc:meta])* $name:ident = $structure:literal . $path:literal),+ $(,)?) => {
        /// Offsets in bytes; [`MISSING`] where this kernel has no such field.
        #[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct Offsets {
            $($(#[$doc])* pub $name: u64,)+
        }

        /// Structure and member path of each field of [`Offsets`], in order.
        pub const FIELDS: &[(&str, &str)] = &[$(($structure, $path)),+];

        impl Offsets {
            /// All missing.
            pub const NONE: Self = Self { $($name: MISSING),+ };
        }
    };
}

/// Offset of a field that this kernel does not have. The verifier refuses a program that would read there.
pub const MISSING: u64 = u64::MAX;

offsets! {
    /// Thread id.
    task_pid = "task_struct"."pid",
    /// Process id.
    task_tgid = "task_struct"."tgid",
    /// Command name.
    task_comm = "task_struct"."comm",
    /// State bits (`__state` since 5.14).
    task_state = "task_struct"."__state|state",
    /// PF_* flags.
    task_flags = "task_struct"."flags",
    /// Memory of the process; null in kernel threads.
    task_mm = "task_struct"."mm",
    /// Shared by the threads of a process.
    task_signal = "task_struct"."signal",
    /// First thread.
    task_group_leader = "task_struct"."group_leader",
    /// Kernel stack.
    task_stack = "task_struct"."stack",
    /// Parent.
    task_real_parent = "task_struct"."real_parent",
    /// Start, CLOCK_MONOTONIC.
    task_start_time = "task_struct"."start_time",
    /// Start, CLOCK_BOOTTIME (`start_boottime` since 5.5).
    task_start_boottime = "task_struct"."start_boottime|real_start_time",
    /// Exit code as wait(2) encodes it.
    task_exit_code = "task_struct"."exit_code",
    /// Voluntary context switches.
    task_nvcsw = "task_struct"."nvcsw",
    /// Involuntary context switches.
    task_nivcsw = "task_struct"."nivcsw",
    /// Major faults of the thread.
    task_maj_flt = "task_struct"."maj_flt",
    /// Time on a CPU.
    task_sum_exec_runtime = "task_struct"."se.sum_exec_runtime",
    /// Run queue that the task belongs to (CONFIG_FAIR_GROUP_SCHED).
    task_cfs_rq = "task_struct"."se.cfs_rq",
    /// Cumulative run-queue delay (CONFIG_SCHED_INFO).
    task_run_delay = "task_struct"."sched_info.run_delay",
    /// When it was put on the run queue, run-queue clock; 0 while it runs.
    task_last_queued = "task_struct"."sched_info.last_queued",
    /// CPU run queue of a cfs_rq.
    cfs_rq_rq = "cfs_rq"."rq",
    /// Clock of a CPU's run queue.
    rq_clock = "rq"."clock",
    /// System call number of the interrupted user mode, or -1; its low 32 bits.
    pt_regs_syscall = "pt_regs"."orig_ax|syscallno",
    /// First argument of the system call.
    pt_regs_argument = "pt_regs"."di|regs",
    /// User stack pointer.
    pt_regs_sp = "pt_regs"."sp",
    /// Counters of resident pages; see [`Layout::rss_stride`].
    mm_rss_stat = "mm_struct"."rss_stat",
    /// `count` within a percpu_counter, since 6.2.
    percpu_counter_count = "percpu_counter"."count",
    /// Page tables, bytes.
    mm_pgtables_bytes = "mm_struct"."pgtables_bytes",
    /// Threads of the process that have not exited.
    signal_live = "signal_struct"."live",
    /// oom_score_adj.
    signal_oom_score_adj = "signal_struct"."oom_score_adj",
    /// Threads.
    signal_nr_threads = "signal_struct"."nr_threads",
    /// Peer address, IPv4.
    sock_daddr = "sock_common"."skc_daddr",
    /// Local address, IPv4.
    sock_rcv_saddr = "sock_common"."skc_rcv_saddr",
    /// Peer port, network order.
    sock_dport = "sock_common"."skc_dport",
    /// Local port, host order; gone when the connection is.
    sock_num = "sock_common"."skc_num",
    /// Local port, network order; stays.
    inet_sport = "inet_sock"."inet_sport",
    /// AF_INET or AF_INET6.
    sock_family = "sock_common"."skc_family",
    /// TCP state.
    sock_state = "sock_common"."skc_state",
    /// Peer address, IPv6.
    sock_v6_daddr = "sock_common"."skc_v6_daddr",
    /// Local address, IPv6.
    sock_v6_rcv_saddr = "sock_common"."skc_v6_rcv_saddr",
    /// SOCK_* flag bits.
    sock_flags = "sock_common"."skc_flags",
    /// Pending error.
    sock_err = "sock"."sk_err",
    /// Protocol number.
    sock_protocol = "sock"."sk_protocol",
    /// SHUTDOWN bits.
    sock_shutdown = "sock"."sk_shutdown",
    /// Retransmissions of the head of the queue without an acknowledgement.
    icsk_retransmits = "inet_connection_sock"."icsk_retransmits",
    /// Zero-window probes without an answer.
    icsk_probes_out = "inet_connection_sock"."icsk_probes_out",
    /// Retransmission time-out, jiffies.
    icsk_rto = "inet_connection_sock"."icsk_rto",
    /// Last data received, jiffies.
    icsk_lrcvtime = "inet_connection_sock"."icsk_ack.lrcvtime",
    /// Payload bytes sent, with retransmissions.
    tcp_bytes_sent = "tcp_sock"."bytes_sent",
    /// Payload bytes retransmitted.
    tcp_bytes_retrans = "tcp_sock"."bytes_retrans",
    /// Bytes received in order; a received FIN counts as one.
    tcp_bytes_received = "tcp_sock"."bytes_received",
    /// Last data sent, jiffies.
    tcp_lsndtime = "tcp_sock"."lsndtime",
    /// Last acknowledgement received, jiffies.
    tcp_rcv_tstamp = "tcp_sock"."rcv_tstamp",
    /// First byte not acknowledged.
    tcp_snd_una = "tcp_sock"."snd_una",
    /// Next byte to send.
    tcp_snd_nxt = "tcp_sock"."snd_nxt",
    /// End of what the process wrote.
    tcp_write_seq = "tcp_sock"."write_seq",
    /// Next byte expected.
    tcp_rcv_nxt = "tcp_sock"."rcv_nxt",
    /// Next byte that the process will read.
    tcp_copied_seq = "tcp_sock"."copied_seq",
    /// Peer's window.
    tcp_snd_wnd = "tcp_sock"."snd_wnd",
    /// Segments in flight.
    tcp_packets_out = "tcp_sock"."packets_out",
    /// Segments retransmitted in all.
    tcp_total_retrans = "tcp_sock"."total_retrans",
    /// When a segment was last sent, nanoseconds.
    tcp_wstamp_ns = "tcp_sock"."tcp_wstamp_ns",
    /// When the newest acknowledged segment was sent, microseconds.
    tcp_rack_mstamp = "tcp_sock"."rack.mstamp",
    /// Smoothed round trip time, microseconds times 8.
    tcp_srtt_us = "tcp_sock"."srtt_us",
    /// Pending connections of a listener.
    sock_ack_backlog = "sock"."sk_ack_backlog",
    /// Their bound.
    sock_max_ack_backlog = "sock"."sk_max_ack_backlog",
    /// Protocol-level sock of a socket.
    socket_sk = "socket"."sk",
    /// Inode of an open file.
    file_inode = "file"."f_inode",
    /// What an open file is, by its kind; of a socket, its `struct socket`.
    file_private_data = "file"."private_data",
    /// Kind and permissions.
    inode_mode = "inode"."i_mode",
}

/// What is not an offset but differs between kernels, and what the user has set. Also constants to the programs.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Layout {
    /// Bytes from one counter of `rss_stat` to the next.
    pub rss_stride: u64,
    /// Whether `mark_victim` passes a task (6.9) rather than a pid.
    pub mark_victim_has_task: u64,
    /// Whether `sched_switch` passes the previous state (5.18).
    pub sched_switch_has_state: u64,
    /// System call number of epoll_wait on this architecture; `u64::MAX` if it has none.
    pub epoll_wait: u64,
    /// System call number of epoll_pwait.
    pub epoll_pwait: u64,
    /// System call number of epoll_pwait2.
    pub epoll_pwait2: u64,
    /// Whether `sched_process_exit` says that the last thread exits (6.17).
    pub process_exit_has_group_dead: u64,
    /// Byte of `task_struct` that holds the `in_iowait` bit; 0 if not known.
    pub io_wait_byte: u64,
    /// Mask of that bit.
    pub io_wait_mask: u64,
    /// Byte of `pt_regs` that holds the link register; 0 where a call puts its return address on the stack (x86).
    pub link_register: u64,
    /// Whether helpers give the current task and the socket of a file with their types (5.11). Else they are plain
    /// addresses, whose fields are read by another helper.
    pub typed_helpers: u64,
    /// Byte of a kernel stack at which the user's registers are saved; 0 where a helper finds them (5.15).
    pub user_registers: u64,
    /// Whether memory of the user may be read; not where the kernel is locked down to confidentiality.
    pub user_memory: u64,
    /// Event-loop gaps from here on make a record, nanoseconds.
    pub gap_threshold_ns: u64,
    /// Blocked times from here on make a record, nanoseconds.
    pub stall_threshold_ns: u64,
    /// Run-queue delays from here on make a record, nanoseconds.
    pub run_delay_threshold_ns: u64,
    /// Reclaims from here on make a record, nanoseconds.
    pub reclaim_threshold_ns: u64,
    /// KiB of a page.
    pub page_kib: u64,
}

impl Layout {
    /// Placeholder in the object; always overridden.
    pub const NONE: Self = Self {
        rss_stride: 0,
        mark_victim_has_task: 0,
        sched_switch_has_state: 0,
        epoll_wait: u64::MAX,
        epoll_pwait: u64::MAX,
        epoll_pwait2: u64::MAX,
        process_exit_has_group_dead: 0,
        io_wait_byte: 0,
        io_wait_mask: 0,
        link_register: 0,
        typed_helpers: 0,
        user_registers: 0,
        user_memory: 0,
        gap_threshold_ns: u64::MAX,
        stall_threshold_ns: u64::MAX,
        run_delay_threshold_ns: u64::MAX,
        reclaim_threshold_ns: u64::MAX,
        page_kib: 4,
    };
}
