//! A started program: its output kept line by line, killed by pid when the guard is dropped.

use std::{
    fmt::Write as _,
    io::{BufRead as _, BufReader, Read, Write as _},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::wait_until;

/// Lines that a program has written so far.
#[derive(Default)]
pub struct Lines {
    lines: Mutex<(Vec<String>, bool)>,
    more: Condvar,
}

impl Lines {
    fn collect(stream: impl Read + Send + 'static) -> Arc<Self> {
        let lines = Arc::new(Self::default());
        let writer = Arc::clone(&lines);
        std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                writer.lines.lock().unwrap_or_else(PoisonError::into_inner).0.push(line);
                writer.more.notify_all();
            }
            writer.lines.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
            writer.more.notify_all();
        });
        lines
    }

    /// Everything so far.
    pub fn all(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// First line from `skip` on for which `pick` gives a value, waiting up to `timeout` for it.
    pub fn wait<T>(
        &self,
        skip: usize,
        timeout: Duration,
        pick: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + timeout;
        let mut seen = skip;
        let mut guard = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = guard.0.iter().skip(seen).find_map(|line| pick(line)) {
                return Some(found);
            }
            seen = seen.max(guard.0.len());
            let left = deadline.checked_duration_since(Instant::now())?;
            if guard.1 {
                return None;
            }
            guard = self.more.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A running program of a test.
pub struct Program {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    /// Standard output.
    pub out: Arc<Lines>,
    /// Standard error.
    pub err: Arc<Lines>,
}

impl Program {
    /// Starts it with all three streams piped.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let name = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let out = Lines::collect(child.stdout.take().expect("stdout is piped"));
        let err = Lines::collect(child.stderr.take().expect("stderr is piped"));
        Self { name, stdin: child.stdin.take(), child, out, err }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes a line to its standard input.
    #[track_caller]
    pub fn send(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("stdin is open");
        writeln!(stdin, "{line}")
            .and_then(|()| stdin.flush())
            .expect("the program reads its input");
    }

    /// First line of its output for which `pick` gives a value; panics with all output after `timeout`.
    #[track_caller]
    pub fn wait_line<T>(&self, timeout: Duration, pick: impl Fn(&str) -> Option<T>) -> T {
        match self.out.wait(0, timeout, pick) {
            Some(found) => found,
            None => panic!("expected line did not come within {timeout:?}\n{}", self.transcript()),
        }
    }

    /// The `count` lines of its output after the first `skip`, each read as JSON.
    #[track_caller]
    pub fn json_lines<T: serde::de::DeserializeOwned>(
        &self,
        skip: usize,
        count: usize,
        timeout: Duration,
    ) -> Vec<T> {
        let lines = wait_until(&format!("{count} lines of {}", self.name), timeout, || {
            let lines = self.out.all();
            (lines.len() >= skip + count).then_some(lines)
        });
        let read = |line: &String| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
        };
        lines.iter().skip(skip).take(count).map(read).collect()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        signal_pid(self.pid(), signal);
    }

    /// Its exit status, if it ends within `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait().expect("own child can be waited for") {
                return Some(status);
            }
            if Instant::now() > deadline {
                return None;
            }
            // sleep: the pace of a wait with a deadline
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Name and last output, for messages.
    pub fn transcript(&self) -> String {
        let mut text = format!("{} (pid {})\n", self.name, self.pid());
        for (stream, lines) in [("out", self.out.all()), ("err", self.err.all())] {
            for line in lines.iter().skip(lines.len().saturating_sub(40)) {
                let short: String = line.chars().take(400).collect();
                writeln!(text, "  {stream}: {short}").expect("a String takes text");
            }
        }
        text
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::KILL);
            drop(self.child.wait());
        }
    }
}

/// Sends a signal to a process; one that has just ended is no error.
pub fn signal_pid(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a pid is above 0");
    kill_process(pid, signal).ok();
}
