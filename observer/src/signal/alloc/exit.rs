//! The end of a process: how it ended, and whether anybody should hear of it.

use std::sync::Arc;

use observer_abi::alloc::{EXIT_CODE_UNKNOWN, Exit, has_failed};

use super::Failure;
use crate::{
    identity::Process,
    signal::{Now, Who, comm_text},
    telemetry::{Event, Severity, Subject, attr},
};

/// What exit(2) was called with and the signal that ended it, one of which is 0; `None` if the hook does not tell.
fn codes(record: &Exit) -> Option<(u32, u32)> {
    let known = record.exit_code != EXIT_CODE_UNKNOWN;
    known.then_some((record.exit_code >> 8 & 0xff, record.exit_code & 0x7f))
}

/// The row of a process that failed. One that was looked at between fork and exec still seems to be its parent: it is named
/// as the kernel names it at its end.
pub(super) fn failure(record: &Exit, process: &Process, now: Now, who: &mut dyn Who) -> Failure {
    let codes = codes(record);
    let comm = comm_text(&record.header.comm);
    let is_stale = !comm.is_empty()
        && !process.executable.is_empty()
        && who.process(record.parent_tgid, None, "").executable == process.executable;
    Failure {
        time_unix_ns: now.unix_of(record.header.ktime_ns),
        pid: record.header.tgid,
        name: if is_stale { comm } else { process.name.clone() },
        exit_code: codes.filter(|(_, signal)| *signal == 0).map(|(code, _)| code),
        signal: codes.map(|(_, signal)| signal).filter(|signal| *signal != 0),
        lived_ns: record.lifetime_ns,
        start_unix_ns: process.start_unix_ns,
        parent_pid: record.parent_tgid,
        service_name: process.service_name.clone(),
    }
}

/// Whether a process is one that somebody keeps running: its parent is a daemon of PM2, or systemd and it is of a service,
/// or it is the first one of a container. What such a process starts may fail without that anything is wrong, as `grep`
/// does.
pub(super) fn is_service(record: &Exit, process: &Process, who: &mut dyn Who) -> bool {
    const SYSTEMD: u32 = 1;
    let is_unit = record.parent_tgid == SYSTEMD && process.unit.ends_with(".service");
    let mut parent = || who.process(record.parent_tgid, None, "");
    record.parent_tgid != 0
        && (is_unit
            || parent().pm2_daemon_home.is_some()
            || (!process.container_id.is_empty() && parent().container_id.is_empty()))
}

/// The event of an exit.
pub(super) fn event(record: &Exit, process: Arc<Process>, now: Now) -> Event {
    let (pid, codes) = (record.header.tgid, codes(record));
    let how = match codes {
        None => "exited".to_owned(),
        Some((code, 0)) => format!("exited with {code}"),
        Some((_, signal)) => format!("killed by signal {signal}"),
    };
    let mut attrs =
        vec![attr("process.pid", pid), attr("observer.process.lifetime_ns", record.lifetime_ns)];
    if let Some((code, signal)) = codes {
        attrs.push(attr("process.exit.code", code));
        attrs.push(attr("observer.process.exit_signal", signal));
    }
    let failed = has_failed(record.exit_code);
    Event {
        name: "observer.process.exit",
        severity: if failed { Severity::Warn } else { Severity::Info },
        time_unix_ns: now.unix_of(record.header.ktime_ns),
        body: format!(
            "{} ({pid}) {how} after {:.1} s",
            process.name,
            record.lifetime_ns as f64 / 1e9
        ),
        attrs,
        context: None,
        subject: Subject::Process(process),
    }
}
