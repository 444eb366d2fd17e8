//! Events at which the kernel has skipped a program because the program had interrupted itself on that CPU.

use std::{
    fs::File,
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::FileExt as _,
    },
};

use aya::{Ebpf, programs::Program as Loaded};

use super::programs::PROGRAMS;
use crate::snapshot::{Program, Verdict};

/// Longer than what the kernel says of a program.
const TEXT_BYTES: usize = 1024;

/// What the kernel says of each program that runs on events.
#[derive(Debug, Default)]
pub struct Misses(Vec<(&'static str, File)>);

impl Misses {
    /// Of the programs that are attached for good. Those that the kernel does not count misses of are left out.
    pub(super) fn open(object: &Ebpf, programs: &[Program]) -> Self {
        let running = PROGRAMS.iter().zip(programs).filter(|(spec, row)| {
            !spec.standby && row.verdict != Verdict::Impossible && !row.hook.starts_with("iter/")
        });
        let counted = running.filter_map(|(spec, _)| {
            let fd = fd(object.program(spec.name)?)?;
            let file = File::open(format!("/proc/self/fdinfo/{fd}")).ok()?;
            count(&file).map(|_| (spec.name, file))
        });
        Self(counted.collect())
    }

    /// Name of each program, and how often it was skipped since it was loaded. Takes some 10 us a program.
    pub fn read(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().map(|(name, file)| (*name, count(file).unwrap_or_default()))
    }
}

fn fd(program: &Loaded) -> Option<i32> {
    let fd = match program {
        Loaded::BtfTracePoint(program) => program.fd(),
        Loaded::TracePoint(program) => program.fd(),
        Loaded::PerfEvent(program) => program.fd(),
        _ => return None,
    };
    Some(fd.ok()?.as_fd().as_raw_fd())
}

fn count(file: &File) -> Option<u64> {
    let mut text = [0; TEXT_BYTES];
    let length = file.read_at(&mut text, 0).ok()?;
    parse(std::str::from_utf8(text.get(..length)?).ok()?)
}

fn parse(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expect: Option<u64>) {
        assert_eq!(parse(text), expect, "{text:?}");
    }

    #[test]
    fn only_a_kernel_that_counts_misses_tells_some() {
        check("prog_type:\t26\nrun_cnt:\t0\nrecursion_misses:\t5743\n", Some(5743));
        check("recursion_misses:\t0", Some(0));
        check("prog_type:\t26\nrun_cnt:\t0\n", None);
        check("recursion_misses:\t", None);
        check("", None);
    }
}
