//! The table of programs: what each is for, the hooks that it can go on, and what is lost without it.

/// Kind of hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// BTF-typed raw tracepoint.
    TpBtf(&'static str),
    /// Entry of a kernel function.
    Entry(&'static str),
    /// BPF iterator.
    Iter(&'static str),
    /// Perf software event page-faults, one in N.
    PageFaults,
    /// Classic tracepoint, `category/name`.
    Tracepoint(&'static str),
    /// Filter of packet sockets.
    Packets,
}

/// One way to run a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variant {
    /// Where it goes.
    pub hook: Hook,
    /// What it cannot say that the first variant can; empty if nothing.
    pub loss: &'static str,
}

/// One program, by its name in the object.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// Its name.
    pub name: &'static str,
    /// Signal that it serves.
    pub signal: &'static str,
    /// The ways to run it, best first.
    pub variants: &'static [Variant],
    /// Loaded at start but attached only when needed.
    pub standby: bool,
    /// What the signal cannot say without it.
    pub loss: &'static str,
}

/// Every program, in the order in which they are loaded.
pub const PROGRAMS: &[Spec] = &[
    spec(
        "task_rows",
        "alloc",
        &[best(Hook::Iter("task"))],
        "no memory and no run-queue delay of any process",
    ),
    spec("page_fault", "alloc", &[best(Hook::PageFaults)], "no allocating stacks"),
    spec(
        "process_fork",
        "alloc",
        &[
            best(Hook::TpBtf("sched_process_fork")),
            or(Hook::Tracepoint("sched/sched_process_fork"), ""),
        ],
        "forks are not counted",
    ),
    spec(
        "process_exec",
        "alloc",
        &[
            best(Hook::TpBtf("sched_process_exec")),
            or(Hook::Tracepoint("sched/sched_process_exec"), ""),
        ],
        "execs are not counted",
    ),
    spec(
        "process_exit",
        "alloc",
        &[
            best(Hook::TpBtf("sched_process_exit")),
            or(
                Hook::Tracepoint("sched/sched_process_exit"),
                "no exit codes, so that nobody knows who fails, and no lifetime of processes older than the agent",
            ),
        ],
        "exits, failures and short-lived processes are not told",
    ),
    spec(
        "direct_reclaim_begin",
        "oom",
        &[
            best(Hook::TpBtf("mm_vmscan_direct_reclaim_begin")),
            or(Hook::Tracepoint("vmscan/mm_vmscan_direct_reclaim_begin"), ""),
        ],
        "no direct reclaim",
    ),
    spec(
        "direct_reclaim_end",
        "oom",
        &[
            best(Hook::TpBtf("mm_vmscan_direct_reclaim_end")),
            or(Hook::Tracepoint("vmscan/mm_vmscan_direct_reclaim_end"), ""),
        ],
        "no direct reclaim",
    ),
    spec(
        "memcg_reclaim_begin",
        "oom",
        &[
            best(Hook::TpBtf("mm_vmscan_memcg_reclaim_begin")),
            or(Hook::Tracepoint("vmscan/mm_vmscan_memcg_reclaim_begin"), ""),
        ],
        "no reclaim of memory cgroups",
    ),
    spec(
        "memcg_reclaim_end",
        "oom",
        &[
            best(Hook::TpBtf("mm_vmscan_memcg_reclaim_end")),
            or(Hook::Tracepoint("vmscan/mm_vmscan_memcg_reclaim_end"), ""),
        ],
        "no reclaim of memory cgroups",
    ),
    spec(
        "kswapd_wake",
        "oom",
        &[
            best(Hook::TpBtf("mm_vmscan_kswapd_wake")),
            or(Hook::Tracepoint("vmscan/mm_vmscan_kswapd_wake"), ""),
        ],
        "kswapd's work is not seen",
    ),
    spec(
        "kswapd_sleep",
        "oom",
        &[
            best(Hook::TpBtf("mm_vmscan_kswapd_sleep")),
            or(Hook::Tracepoint("vmscan/mm_vmscan_kswapd_sleep"), ""),
        ],
        "kswapd's rest is not seen",
    ),
    spec(
        "reclaim_throttled",
        "oom",
        &[
            best(Hook::TpBtf("mm_vmscan_throttled")),
            or(Hook::Tracepoint("vmscan/mm_vmscan_throttled"), ""),
        ],
        "reclaim throttling is not seen",
    ),
    spec(
        "compaction_begin",
        "oom",
        &[
            best(Hook::TpBtf("mm_compaction_begin")),
            or(Hook::Tracepoint("compaction/mm_compaction_begin"), ""),
        ],
        "compaction is not seen",
    ),
    spec(
        "compaction_end",
        "oom",
        &[
            best(Hook::TpBtf("mm_compaction_end")),
            or(Hook::Tracepoint("compaction/mm_compaction_end"), ""),
        ],
        "compaction is not seen",
    ),
    spec(
        "oom_retry",
        "oom",
        &[
            best(Hook::TpBtf("reclaim_retry_zone")),
            or(Hook::Tracepoint("oom/reclaim_retry_zone"), ""),
        ],
        "the last retries before a kill are not seen",
    ),
    spec(
        "mark_victim",
        "oom",
        &[best(Hook::TpBtf("mark_victim")), or(Hook::Tracepoint("oom/mark_victim"), "")],
        "OOM kills are not seen",
    ),
    spec(
        "inet_sock_set_state",
        "tcp",
        &[
            best(Hook::TpBtf("inet_sock_set_state")),
            or(
                Hook::Tracepoint("sock/inet_sock_set_state"),
                "no bytes, errors and round trip times of connections, and no owner of an accepted one before it closes",
            ),
        ],
        "connections have no owner and no end",
    ),
    spec(
        "tcp_destroy_sock",
        "tcp",
        &[best(Hook::TpBtf("tcp_destroy_sock"))],
        "a connection whose end the kernel did not show us stays until its socket is used again",
    ),
    spec("tcp_rows", "tcp", &[best(Hook::Iter("tcp"))], "open connections are not seen"),
    spec(
        "socket_holders",
        "tcp",
        &[best(Hook::Iter("task_file"))],
        "connections older than the agent have no owner",
    ),
    Spec {
        name: "reply_ends",
        signal: "tcp",
        variants: &[best(Hook::Packets)],
        standby: true,
        loss: "whether a session is in a transaction is not known",
    },
    spec(
        "sched_switch",
        "sched",
        &[best(Hook::TpBtf("sched_switch"))],
        "no event-loop gaps and no stalls",
    ),
    Spec {
        name: "epoll_enter",
        signal: "sched",
        // The second sees the same, but slows every system call of the host while it is attached.
        variants: &[best(Hook::Entry("do_epoll_wait")), or(Hook::TpBtf("sys_enter"), "")],
        standby: true,
        loss: "a loop that polls without sleeping cannot be told from a stuck one",
    },
];

const fn spec(
    name: &'static str,
    signal: &'static str,
    variants: &'static [Variant],
    loss: &'static str,
) -> Spec {
    Spec { name, signal, variants, standby: false, loss }
}

const fn best(hook: Hook) -> Variant {
    Variant { hook, loss: "" }
}

const fn or(hook: Hook, loss: &'static str) -> Variant {
    Variant { hook, loss }
}

/// Every hook of every program.
pub fn hooks() -> impl Iterator<Item = Hook> {
    PROGRAMS.iter().flat_map(|spec| spec.variants).map(|variant| variant.hook)
}

impl Hook {
    /// As people write it.
    pub fn describe(self) -> String {
        match self {
            Self::TpBtf(name) => format!("tp_btf/{name}"),
            Self::Entry(name) => format!("fentry/{name}"),
            Self::Iter(name) => format!("iter/{name}"),
            Self::PageFaults => "perf_event/page-faults".to_owned(),
            Self::Tracepoint(name) => format!("tracepoint/{name}"),
            Self::Packets => "socket_filter/packets".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_serves_a_registered_signal_once() {
        for (index, spec) in PROGRAMS.iter().enumerate() {
            assert!(
                crate::signal::ALL.iter().any(|signal| signal.name == spec.signal),
                "{}",
                spec.name
            );
            assert!(!spec.variants.is_empty() && spec.variants[0].loss.is_empty(), "{}", spec.name);
            assert!(
                PROGRAMS[..index].iter().all(|other| other.name != spec.name),
                "{} twice",
                spec.name
            );
        }
    }
}
