//! One run of a guest, from the first instruction to the files that it leaves.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::console::{Console, Ended};
use crate::command::{command, line, output};

/// Pace at which the job's output is looked at.
const PACE: Duration = Duration::from_millis(100);

/// Longest time from the job's status to the end of QEMU, and from a stall to the end of what the kernel says of it.
const GRACE: Duration = Duration::from_secs(5);

/// Clock ticks a second in `/proc/PID/stat` (USER_HZ, the same on all hosts that run this).
const TICKS: u64 = 100;

/// What came of one boot.
pub(super) struct Boot {
    pub(super) status: Option<i32>,
    pub(super) ended: Ended,
    pub(super) wall: Duration,
    pub(super) cpu: Duration,
}

/// Boots, shows what the job says, and waits for the end. The console goes to a file, each line with its second.
pub(super) fn boot(
    qemu: &mut Command,
    console: &Path,
    job_log: &Path,
    limit: Duration,
    show: bool,
) -> Result<Boot> {
    let mut log = File::create(console).with_context(|| console.display().to_string())?;
    writeln!(log, "$ {}", line(qemu))?;
    File::create(job_log)?;
    let start = Instant::now();
    let errors = log.try_clone()?;
    let mut child = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors).spawn();
    let child =
        child.as_mut().map_err(|error| anyhow::anyhow!("cannot start {}: {error}", line(qemu)))?;
    let lines = follow(child.stdout.take().context("no pipe")?);
    let mut job = Tail { path: job_log.to_owned(), at: 0, show };
    let mut boot =
        Boot { status: None, ended: Ended::Died, wall: Duration::ZERO, cpu: Duration::ZERO };
    let result = watch(child, &lines, &mut log, &mut job, limit, start, &mut boot);
    // Whatever went wrong, no guest is left behind.
    child.kill().ok();
    child.wait()?;
    result?;
    job.pass_on()?;
    boot.wall = start.elapsed();
    Ok(boot)
}

fn watch(
    child: &Child,
    lines: &Receiver<String>,
    log: &mut File,
    job: &mut Tail,
    limit: Duration,
    start: Instant,
    boot: &mut Boot,
) -> Result<()> {
    let mut console = Console::default();
    let mut deadline = start + limit;
    let mut ended = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(PACE.min(left)) {
            Ok(text) => {
                writeln!(log, "{:8.3} {text}", start.elapsed().as_secs_f64())?;
                if ended.is_none() {
                    ended = console.line(&text);
                    if ended.is_some() {
                        deadline = deadline.min(Instant::now() + GRACE);
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        boot.cpu = cpu(child.id()).unwrap_or(boot.cpu);
        job.pass_on()?;
        if Instant::now() >= deadline {
            ended = ended.or(Some(Ended::TimeLimit));
            break;
        }
    }
    boot.ended = ended.unwrap_or(Ended::Died);
    boot.status = console.status;
    Ok(())
}

/// Lines of the console as they come.
fn follow(pipe: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// CPU time of QEMU, to a hundredth of a second.
fn cpu(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<_> = stat.rsplit(')').next()?.split_whitespace().collect();
    // Fields 14 and 15 of proc(5); the first after the name is field 3.
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 1000 / TICKS))
}

/// What the job has written since the last look.
struct Tail {
    path: PathBuf,
    at: u64,
    show: bool,
}

impl Tail {
    fn pass_on(&mut self) -> Result<()> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.at))?;
        let mut bytes = Vec::new();
        self.at += u64::try_from(file.read_to_end(&mut bytes)?)?;
        if self.show {
            let mut out = std::io::stdout().lock();
            out.write_all(&bytes)?;
            out.flush()?;
        }
        Ok(())
    }
}

/// Unpacks what the guest left on its disk.
pub(super) fn unpack(disk: &Path, out: &Path) -> Result<()> {
    let mut tar = command(&["tar", "--extract", "--no-same-owner", "--file"]);
    output(tar.arg(disk).arg("--directory").arg(out))?;
    Ok(())
}
