//! Which program goes on which hook, and what is lost without it. Pure: no kernel is asked here.

use crate::snapshot::{Program, Verdict};

/// Kind of hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// BTF-typed raw tracepoint.
    TpBtf(&'static str),
    /// BPF iterator.
    Iter(&'static str),
    /// Perf software event page-faults, one in N.
    PageFaults,
}

/// One program of the object.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// Its name in the object.
    pub name: &'static str,
    /// Signal that it serves.
    pub signal: &'static str,
    /// Where it goes.
    pub hook: Hook,
    /// Loaded at start but attached only when needed.
    pub standby: bool,
    /// What the signal cannot say without it.
    pub loss: &'static str,
}

const fn spec(name: &'static str, signal: &'static str, hook: Hook, loss: &'static str) -> Spec {
    Spec { name, signal, hook, standby: false, loss }
}

/// Every program, in the order in which they are loaded.
pub const PROGRAMS: &[Spec] = &[
    spec(
        "task_rows",
        "alloc",
        Hook::Iter("task"),
        "no memory and no run-queue delay of any process",
    ),
    spec("page_fault", "alloc", Hook::PageFaults, "no allocating stacks"),
    spec("process_fork", "alloc", Hook::TpBtf("sched_process_fork"), "forks are not counted"),
    spec("process_exec", "alloc", Hook::TpBtf("sched_process_exec"), "execs are not counted"),
    spec(
        "process_exit",
        "alloc",
        Hook::TpBtf("sched_process_exit"),
        "exits and short-lived processes are not counted",
    ),
    spec(
        "direct_reclaim_begin",
        "oom",
        Hook::TpBtf("mm_vmscan_direct_reclaim_begin"),
        "no direct reclaim",
    ),
    spec(
        "direct_reclaim_end",
        "oom",
        Hook::TpBtf("mm_vmscan_direct_reclaim_end"),
        "no direct reclaim",
    ),
    spec(
        "memcg_reclaim_begin",
        "oom",
        Hook::TpBtf("mm_vmscan_memcg_reclaim_begin"),
        "no reclaim of memory cgroups",
    ),
    spec(
        "memcg_reclaim_end",
        "oom",
        Hook::TpBtf("mm_vmscan_memcg_reclaim_end"),
        "no reclaim of memory cgroups",
    ),
    spec("kswapd_wake", "oom", Hook::TpBtf("mm_vmscan_kswapd_wake"), "kswapd's work is not seen"),
    spec("kswapd_sleep", "oom", Hook::TpBtf("mm_vmscan_kswapd_sleep"), "kswapd's rest is not seen"),
    spec(
        "reclaim_throttled",
        "oom",
        Hook::TpBtf("mm_vmscan_throttled"),
        "reclaim throttling is not seen",
    ),
    spec("compaction_begin", "oom", Hook::TpBtf("mm_compaction_begin"), "compaction is not seen"),
    spec("compaction_end", "oom", Hook::TpBtf("mm_compaction_end"), "compaction is not seen"),
    spec(
        "oom_retry",
        "oom",
        Hook::TpBtf("reclaim_retry_zone"),
        "the last retries before a kill are not seen",
    ),
    spec("mark_victim", "oom", Hook::TpBtf("mark_victim"), "OOM kills are not seen"),
    spec(
        "inet_sock_set_state",
        "tcp",
        Hook::TpBtf("inet_sock_set_state"),
        "connections have no owner and no end",
    ),
    spec("tcp_rows", "tcp", Hook::Iter("tcp"), "open connections are not seen"),
    spec(
        "socket_holders",
        "tcp",
        Hook::Iter("task_file"),
        "connections older than the agent have no owner",
    ),
    spec("sched_switch", "sched", Hook::TpBtf("sched_switch"), "no event-loop gaps and no stalls"),
    Spec {
        name: "epoll_enter",
        signal: "sched",
        hook: Hook::TpBtf("sys_enter"),
        standby: true,
        loss: "a loop that polls without sleeping cannot be told from a stuck one",
    },
];

impl Hook {
    /// As people write it.
    pub fn describe(self) -> String {
        match self {
            Self::TpBtf(name) => format!("tp_btf/{name}"),
            Self::Iter(name) => format!("iter/{name}"),
            Self::PageFaults => "perf_event/page-faults".to_owned(),
        }
    }
}

impl Spec {
    /// Row of a program that runs, or waits until it is needed.
    pub fn running(&self) -> Program {
        let verdict = if self.standby { Verdict::Standby } else { Verdict::Attached };
        self.row(verdict, String::new(), String::new())
    }

    /// Row of a program that does not run.
    pub fn impossible(&self, reason: &str, remedy: &str) -> Program {
        self.row(Verdict::Impossible, format!("{}: {reason}", self.loss), remedy.to_owned())
    }

    fn row(&self, verdict: Verdict, reason: String, remedy: String) -> Program {
        let (name, signal) = (self.name.to_owned(), self.signal.to_owned());
        Program { name, signal, hook: self.hook.describe(), verdict, reason, remedy }
    }
}

/// What to do about an error of the bpf(2) system call.
pub fn remedy(errno: Option<i32>) -> &'static str {
    match errno {
        Some(libc::EPERM | libc::EACCES) => {
            "run as root, or with CAP_BPF, CAP_PERFMON, CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE; in a container, also \
             outside its seccomp profile and its PID namespace"
        }
        Some(libc::ENOSYS) => "use a kernel with CONFIG_BPF_SYSCALL",
        Some(libc::ENOENT | libc::ESRCH | libc::EINVAL) => {
            "use a kernel that has this hook (5.8 or newer)"
        }
        Some(libc::ENOMEM) => {
            "free some memory, or on a kernel before 5.11 raise the memlock limit"
        }
        _ => "see the reason; `observer check --json` shows it in full",
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
            assert!(
                PROGRAMS[..index].iter().all(|other| other.name != spec.name),
                "{} twice",
                spec.name
            );
        }
    }
}
