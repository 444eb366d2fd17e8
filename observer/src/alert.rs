//! Says findings where people look when nothing else answers: the kernel's log (`dmesg`, the journal, the serial console,
//! pstore), and the status that systemd shows (sd_notify(3)).
//!
//! Both may block: a console is slow, systemd may hang with the host. So they have a thread, and a bounded queue before it.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use sd_notify::NotifyState;

use crate::{
    config::{Config, Kind, Setting},
    detect::{self, Level, Told},
    queue_thread::{Items, QueueThread},
    snapshot::{Loss, Program, Snapshot, Verdict},
    telemetry::Batch,
};

/// Whether to write to the kernel's log.
pub const KMSG: Setting = Setting {
    key: "alert.kmsg",
    kind: Kind::Bool,
    default: "true",
    otel: &[],
    help: "Write a line to the kernel's log (/dev/kmsg) when a finding of WARN or worse is raised, changes its level or is over.",
};

/// Settings of this room.
pub const SETTINGS: &[Setting] = &[KMSG];

/// The kernel's log.
const DEVICE: &str = "/dev/kmsg";

/// Ticks with findings that wait; the oldest goes first and is counted.
const MAX_WAITING: usize = 16;

/// Lines a minute: the kernel's log is small, and other words in it are wanted too. It is also the most that the kernel
/// takes of one writer in five seconds before it drops without a word. What is not CRITICAL may use half.
const MAX_LINES: usize = 10;

/// The minute of [`MAX_LINES`].
const MINUTE: Duration = Duration::from_secs(60);

/// The kernel refuses lines of about 1,000 bytes.
const MAX_LINE_BYTES: usize = 900;

/// The sampler's end of the thread.
#[derive(Debug)]
pub struct Alerts {
    queue: QueueThread<(Arc<Snapshot>, Arc<Batch>)>,
    unsaid: Arc<Unsaid>,
    program: Option<Program>,
}

/// What was not said.
#[derive(Debug, Default)]
struct Unsaid {
    /// Lines beyond the bound, or that the kernel did not take.
    unwritten: AtomicU64,
    /// Words that systemd did not take.
    unheard: AtomicU64,
}

impl Alerts {
    /// Tells systemd that the agent is ready, and waits for findings.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn start(config: &Config) -> io::Result<Self> {
        let opened = config.bool(&KMSG).then(|| open(Path::new(DEVICE)));
        let program = opened.as_ref().map(row);
        Self::spawn(opened.and_then(Result::ok), program)
    }

    fn spawn(file: Option<File>, program: Option<Program>) -> io::Result<Self> {
        let unsaid = Arc::<Unsaid>::default();
        let of_thread = Arc::clone(&unsaid);
        let work = move |ticks| say(ticks, file.map(Log::new), &of_thread);
        Ok(Self { queue: QueueThread::start("alerts", MAX_WAITING, work)?, unsaid, program })
    }

    /// Whether the kernel's log can be written; `None` if it shall not be.
    pub fn program(&self) -> Option<&Program> {
        self.program.as_ref()
    }

    /// Hands over a tick, if a finding has changed in it.
    pub fn offer(&self, snapshot: &Arc<Snapshot>, batch: &Arc<Batch>) {
        if batch.events.iter().any(|event| detect::told(event).is_some()) {
            self.queue.offer((Arc::clone(snapshot), Arc::clone(batch)));
        }
    }

    /// What was not said.
    pub fn losses(&self) -> Vec<Loss> {
        let row = |stage: &str, count| Loss { stage: stage.to_owned(), count };
        vec![
            row("alert.queue", self.queue.late()),
            row("alert.kmsg", self.unsaid.unwritten.load(Relaxed)),
            row("alert.notify", self.unsaid.unheard.load(Relaxed)),
        ]
    }

    /// Ends the thread once it has said what it has; false if it did not come to that within this time.
    pub fn finish(&self, within: Duration) -> bool {
        self.queue.finish(within)
    }
}

/// What the thread does.
fn say(ticks: Items<(Arc<Snapshot>, Arc<Batch>)>, mut log: Option<Log>, unsaid: &Unsaid) {
    let nothing = status(&detect::View::default());
    unsaid.notify(&[NotifyState::Ready, NotifyState::Status(&nothing)]);
    for (snapshot, batch) in ticks {
        if let Some(log) = &mut log {
            unsaid.unwritten.fetch_add(log.say(&batch, Instant::now()), Relaxed);
        }
        unsaid.notify(&[NotifyState::Status(&status(&snapshot.detect))]);
    }
    unsaid.notify(&[NotifyState::Stopping]);
}

impl Unsaid {
    /// Does nothing where no systemd has started the agent.
    fn notify(&self, states: &[NotifyState<'_>]) {
        if sd_notify::notify(states).is_err() {
            self.unheard.fetch_add(1, Relaxed);
        }
    }
}

/// The worst finding, for `systemctl status`.
fn status(view: &detect::View) -> String {
    let mut found = view.findings.iter().filter(|finding| !finding.hazard);
    let Some(worst) = found.next() else { return "nothing found".to_owned() };
    let more = match found.count() {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    one_line(&format!("{} {}: {}{more}", worst.level.text(), worst.kind, worst.message))
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(path)
}

fn row(opened: &io::Result<File>) -> Program {
    let row = Program {
        name: "kmsg".to_owned(),
        signal: "agent".to_owned(),
        hook: DEVICE.to_owned(),
        ..Program::default()
    };
    match opened {
        Ok(_) => row,
        Err(error) => Program {
            verdict: Verdict::Impossible,
            reason: format!("findings do not go to the kernel's log: {error}"),
            remedy: "let the agent write to /dev/kmsg, or set alert.kmsg = false".to_owned(),
            ..row
        },
    }
}

/// The kernel's log, at a bounded pace.
struct Log {
    file: File,
    /// When the lines of the last minute were written.
    written: VecDeque<Instant>,
}

impl Log {
    fn new(file: File) -> Self {
        Self { file, written: VecDeque::with_capacity(MAX_LINES) }
    }

    /// Writes what a tick has changed, the worst first; returns how many lines were not written.
    fn say(&mut self, batch: &Batch, now: Instant) -> u64 {
        let mut told: Vec<_> =
            batch.events.iter().filter_map(detect::told).filter(matters).collect();
        told.sort_by_key(|told| std::cmp::Reverse(told.level));
        let mut unwritten = 0;
        for told in &told {
            // One write is one record.
            let line = line(told);
            let said =
                self.has_room(told.level, now) && self.file.write_all(line.as_bytes()).is_ok();
            unwritten += u64::from(!said);
        }
        unwritten
    }

    fn has_room(&mut self, level: Level, now: Instant) -> bool {
        while self.written.front().is_some_and(|at| now.saturating_duration_since(*at) >= MINUTE) {
            self.written.pop_front();
        }
        let most = if level >= Level::Critical { MAX_LINES } else { MAX_LINES / 2 };
        let room = self.written.len() < most;
        if room {
            self.written.push_back(now);
        }
        room
    }
}

/// Whether a change of level has WARN or worse on one side. WATCH is `better` only after worse.
fn matters(told: &Told<'_>) -> bool {
    told.state == "better" || told.state != "culprit" && told.level >= Level::Warn
}

/// `<4>observer: WARN memory.exhaustion: ...`, with the kernel's level in front (`dmesg --level`).
fn line(told: &Told<'_>) -> String {
    let level = match told.level {
        _ if told.state == "cleared" => 5,
        Level::Watch => 5,
        Level::Warn => 4,
        Level::Critical => 2,
        // Not 0, which some write on every terminal.
        Level::Emergency => 1,
    };
    one_line(&format!("<{level}>observer: {}", told.sentence))
}

/// Without what would end the line, and no longer than the kernel takes.
fn one_line(text: &str) -> String {
    let mut line = text.replace(char::is_control, " ");
    line.truncate(line.floor_char_boundary(MAX_LINE_BYTES));
    line
}

#[cfg(test)]
mod tests {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

    use super::*;
    use crate::{
        detect::{Detect, Finding, View},
        signal::Output,
    };

    fn told<'a>(level: Level, state: &'a str, sentence: &str) -> Told<'a> {
        Told { level, state, advice: "", sentence: sentence.to_owned() }
    }

    #[test]
    fn a_line_has_the_kernels_level_and_one_line_only() {
        let check = |level, state, sentence: &str, expect: &str| {
            assert_eq!(line(&told(level, state, sentence)), expect);
        };
        check(Level::Warn, "raised", "WARN a.b: x", "<4>observer: WARN a.b: x");
        check(Level::Critical, "worse", "CRITICAL a.b: x", "<2>observer: CRITICAL a.b: x");
        check(Level::Emergency, "worse", "EMERGENCY a\n<0>b", "<1>observer: EMERGENCY a <0>b");
        check(Level::Watch, "better", "WATCH a.b: x", "<5>observer: WATCH a.b: x");
        check(Level::Critical, "cleared", "cleared a.b: x", "<5>observer: cleared a.b: x");
        let long = line(&told(Level::Warn, "raised", &"ä".repeat(1000)));
        assert!((MAX_LINE_BYTES - 1..=MAX_LINE_BYTES).contains(&long.len()), "{}", long.len());
    }

    #[test]
    fn only_levels_of_warn_and_worse_matter() {
        let check = |level, state, expect| {
            assert_eq!(matters(&told(level, state, "")), expect, "{level:?} {state}");
        };
        check(Level::Watch, "raised", false);
        check(Level::Watch, "better", true);
        check(Level::Watch, "cleared", false);
        check(Level::Warn, "raised", true);
        check(Level::Warn, "culprit", false);
        check(Level::Emergency, "cleared", true);
    }

    #[test]
    fn the_pace_is_bounded_and_leaves_room_for_the_worst() {
        let mut log = Log::new(open(Path::new("/dev/null")).unwrap());
        let start = Instant::now();
        let mut rooms =
            |level, at: Duration| (0..20).filter(|_| log.has_room(level, start + at)).count();
        assert_eq!(rooms(Level::Warn, Duration::ZERO), MAX_LINES / 2);
        assert_eq!(rooms(Level::Critical, Duration::from_secs(30)), MAX_LINES / 2);
        assert_eq!(rooms(Level::Critical, Duration::from_secs(59)), 0);
        assert_eq!(rooms(Level::Critical, Duration::from_secs(60)), MAX_LINES / 2);
        assert_eq!(rooms(Level::Warn, Duration::from_secs(90)), 0);
        assert_eq!(rooms(Level::Warn, Duration::from_secs(200)), MAX_LINES / 2);
    }

    /// A batch in which one finding is raised, from the detectors themselves.
    fn batch() -> Batch {
        let mut detect = Detect::new(&Config::default_for_tests(&crate::config::all_settings()));
        let mut out = Output::default();
        for second in 1..=4 {
            let exporter = crate::snapshot::Exporter {
                destination: "c:4317".into(),
                state: "held".into(),
                reason: "401".into(),
                ..crate::snapshot::Exporter::default()
            };
            let mut snapshot =
                Snapshot { uptime_ns: second * 1_000_000_000, ..Snapshot::default() };
            snapshot.health.exporters.push(exporter);
            detect.tick(&snapshot, false, &mut out);
        }
        out.batch
    }

    #[test]
    fn what_is_not_written_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kmsg");
        File::create(&path).unwrap();
        let (mut log, now, batch) = (Log::new(open(&path).unwrap()), Instant::now(), batch());
        let unwritten: u64 = (0..MAX_LINES).map(|_| log.say(&batch, now)).sum();
        assert_eq!(unwritten as usize, MAX_LINES - MAX_LINES / 2);
        let line = "<4>observer: WARN agent.uplink: c:4317 does not take the agent's data: 401";
        assert_eq!(std::fs::read_to_string(&path).unwrap(), line.repeat(MAX_LINES / 2));
        let mut full = Log::new(open(Path::new("/dev/full")).unwrap());
        assert_eq!(full.say(&batch, now), 1);
    }

    /// A console that does not drain makes a write to the kernel's log wait, here a pipe that nobody reads.
    #[test]
    fn a_kernel_log_that_blocks_holds_up_nobody() {
        let (reader, writer) = io::pipe().unwrap();
        let flags = fcntl_getfl(&writer).unwrap();
        fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
        while (&writer).write(&[b'.'; 4096]).is_ok() {}
        fcntl_setfl(&writer, flags).unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(writer));
        let alerts = Alerts::spawn(Some(file), None).unwrap();
        let (snapshot, batch) = (Arc::default(), Arc::new(batch()));
        (0..MAX_WAITING + 5).for_each(|_| alerts.offer(&snapshot, &batch));
        // The thread has one of them, or none yet.
        let late = alerts.losses()[0].count;
        assert!((4..=5).contains(&late), "{late}");
        assert!(!alerts.finish(Duration::ZERO), "it waits for the console");
        drop(reader);
        assert!(alerts.finish(Duration::from_secs(30)));
        assert!(alerts.losses()[1].count > 0, "what the log did not take is counted");
    }

    #[test]
    fn a_kernel_log_that_cannot_be_written_has_a_row() {
        let row = row(&open(Path::new("/nonexistent/kmsg")));
        assert_eq!((row.name.as_str(), row.verdict), ("kmsg", Verdict::Impossible));
        assert!(
            row.reason.contains("No such file") && row.remedy.contains("alert.kmsg"),
            "{row:?}"
        );
    }

    #[test]
    fn the_status_is_the_worst_finding() {
        let finding = |level, kind: &str, hazard| Finding {
            level,
            kind: kind.into(),
            message: "m\nn".into(),
            hazard,
            ..Finding::default()
        };
        let findings = [
            finding(Level::Critical, "static", true),
            finding(Level::Warn, "a.b", false),
            finding(Level::Watch, "c.d", false),
        ]
        .map(std::sync::Arc::new);
        let check = |count, expect| {
            let view = View { findings: findings[..count].to_vec(), ..View::default() };
            assert_eq!(status(&view), expect);
        };
        check(0, "nothing found");
        check(1, "nothing found");
        check(2, "WARN a.b: m n");
        check(3, "WARN a.b: m n (and 1 more)");
    }
}
