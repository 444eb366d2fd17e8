//! The memory of a process, for as long as it is that of the same program: addresses mean nothing in another one's.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::FileExt as _,
};

use anyhow::{Context as _, Result, bail};

use crate::identity::parse_stat;

/// The address space that a process had when this was opened.
#[derive(Debug)]
pub struct Space {
    pid: u32,
    start_ticks: u64,
    /// It stays that of this address space, and is empty once nobody has that any more.
    maps: File,
}

impl Space {
    /// Of the process with this pid and start (`task_struct.start_boottime`, ns since boot).
    ///
    /// # Errors
    /// The process is gone, or may not be looked at.
    pub fn open(pid: u32, start_boottime_ns: u64) -> Result<Self> {
        let tick_ns = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
        let path = format!("/proc/{pid}/maps");
        let maps = File::open(&path).context(path)?;
        let space = Self { pid, start_ticks: start_boottime_ns / tick_ns, maps };
        // Afterwards: before, the pid could have become another's in between.
        match space.end() {
            Some(end) => bail!(end),
            None if !space.is_same_process() => bail!("the process has ended"),
            None => Ok(space),
        }
    }

    /// What is mapped in it, as `/proc/PID/maps` tells.
    ///
    /// # Errors
    /// It is gone.
    pub fn maps(&self) -> Result<String> {
        let mut text = String::new();
        (&self.maps).read_to_string(&mut text).context("cannot read what it has mapped")?;
        Ok(text)
    }

    /// What became of the process, if this is no longer its memory.
    pub fn end(&self) -> Option<&'static str> {
        if matches!(self.maps.read_at(&mut [0], 0), Ok(1)) {
            return None;
        }
        // A process that has ended and waits for its parent has no program.
        let executes = fs::read_link(format!("/proc/{}/exe", self.pid)).is_ok();
        Some(match executes && self.is_same_process() {
            true => "the process executes another program now",
            false => "the process has ended",
        })
    }

    fn is_same_process(&self) -> bool {
        let stat = fs::read(format!("/proc/{}/stat", self.pid)).ok();
        stat.and_then(|text| parse_stat(&text)).is_some_and(|of| of.start_ticks == self.start_ticks)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        process::{Child, Command, Stdio},
    };

    use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

    use super::*;

    /// When a process has started; nanoseconds since boot, in steps of a clock tick.
    fn start_of(pid: u32) -> u64 {
        let stat = parse_stat(&fs::read(format!("/proc/{pid}/stat")).unwrap()).unwrap();
        stat.start_ticks * (1_000_000_000 / rustix::param::clock_ticks_per_second())
    }

    /// Has written this byte, so it has come so far.
    #[track_caller]
    fn wait_byte(child: &mut Child, expect: u8) {
        let mut byte = [0];
        child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
        assert_eq!(byte[0], expect);
    }

    #[test]
    fn it_ends_with_the_program_and_with_the_process() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "printf 1; read line; exec cat"]);
        let mut child = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        wait_byte(&mut child, b'1');
        let (pid, start) = (child.id(), start_of(child.id()));
        let space = Space::open(pid, start).unwrap();
        assert!(space.maps().unwrap().contains("r-xp"));
        assert_eq!((space.end(), space.end()), (None, None));

        child.stdin.as_mut().unwrap().write_all(b"go\n2").unwrap();
        wait_byte(&mut child, b'2');
        assert_eq!(space.end(), Some("the process executes another program now"));
        let space = Space::open(pid, start).unwrap();
        assert_eq!(space.end(), None);

        child.kill().unwrap();
        let of = WaitId::Pid(Pid::from_raw(pid as i32).unwrap());
        waitid(of, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
        assert_eq!(space.end(), Some("the process has ended"), "its parent has not asked for it");
        assert!(Space::open(pid, start).is_err());
        child.wait().unwrap();
        assert_eq!(space.end(), Some("the process has ended"));
        assert!(Space::open(pid, start).is_err());
    }

    #[test]
    fn a_pid_that_is_anothers_now_is_refused() {
        let (pid, start) = (std::process::id(), start_of(std::process::id()));
        assert!(Space::open(pid, start).is_ok());
        assert!(Space::open(pid, start + 9_999_999).is_ok(), "the same tick");
        let error = Space::open(pid, start + 20_000_000).unwrap_err();
        assert_eq!(error.to_string(), "the process has ended");
    }
}
