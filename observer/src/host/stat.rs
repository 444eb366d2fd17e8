//! CPU time in `/proc/stat` (proc_stat(5), kernel: fs/proc/stat.c).

use std::path::Path;

use rustix::io::Errno;

use super::{
    Unavailable,
    file::{KeptFile, number, words},
};

/// CPUs that are told apart; those behind are in the sum only.
pub const MAX_CPUS: usize = 512;

/// A line has up to some hundred bytes; the interrupt counts behind the CPUs are not wanted.
const SIZE: usize = MAX_CPUS * 128;

/// Time of one CPU, or of all, since boot, in clock ticks (10 ms). Differences of two readings are what counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// All time.
    pub total_ticks: u64,
    /// Time in which something ran on it: neither idle nor waiting for a disk, and not stolen.
    pub busy_ticks: u64,
    /// Idle while a task waited for a disk.
    pub iowait_ticks: u64,
    /// Time in which the hypervisor ran someone else.
    pub steal_ticks: u64,
}

/// One CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cpu {
    /// Its number.
    pub number: u32,
    /// Its time.
    pub times: Times,
}

impl Times {
    /// The words behind the name: user, nice, system, idle, iowait, irq, softirq, steal; guest time is in user already.
    fn parse<'a>(words: impl Iterator<Item = &'a [u8]>) -> Option<Self> {
        let mut ticks = [0_u64; 8];
        let mut count = 0;
        for (slot, word) in ticks.iter_mut().zip(words) {
            *slot = number(word)?;
            count += 1;
        }
        let [user, nice, system, idle, iowait, irq, softirq, steal] = ticks;
        let sum = |parts: &[u64]| parts.iter().fold(0, |sum: u64, part| sum.saturating_add(*part));
        (count >= 4)
            .then(|| Times {
                total_ticks: sum(&ticks),
                busy_ticks: sum(&[user, nice, system, irq, softirq]),
                iowait_ticks: iowait,
                steal_ticks: steal,
            })
            .filter(|times| times.total_ticks >= idle)
    }
}

/// Reads the file's text into `cpus`, as many as it has room for; returns the sum over all CPUs.
fn parse(text: &[u8], cpus: &mut Vec<Cpu>) -> Times {
    cpus.clear();
    let mut all = Times::default();
    for line in text.split(|&byte| byte == b'\n') {
        let mut words = words(line);
        let Some(name) = words.next().and_then(|name| name.strip_prefix(b"cpu")) else { break };
        let Some(times) = Times::parse(words) else { continue };
        match number(name).and_then(|number| u32::try_from(number).ok()) {
            None => all = times,
            Some(number) if cpus.len() < cpus.capacity() => cpus.push(Cpu { number, times }),
            Some(_) => {}
        }
    }
    all
}

/// The open file.
#[derive(Debug)]
pub struct StatFile {
    file: KeptFile,
    cpus: Vec<Cpu>,
}

impl StatFile {
    /// Opens it below `proc_root`.
    pub fn open(proc_root: &Path) -> Result<Self, Unavailable> {
        let file = KeptFile::open(&proc_root.join("stat"), SIZE, "mount /proc")?;
        Ok(StatFile { file, cpus: Vec::with_capacity(MAX_CPUS) })
    }

    /// The time of all CPUs, and of each that is online.
    pub fn read(&mut self) -> Result<(Times, &[Cpu]), Errno> {
        let all = parse(self.file.read()?, &mut self.cpus);
        Ok((all, &self.cpus))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_text() {
        let text =
            b"cpu  19657 5 2878 165505 3482 2 45 6 7 0\ncpu0 9323 5 1331 84906 207 1 14 3 7 0\n\
            cpu3 10333 0 1546 80598 3275 1 30 3 0 0\nintr 1 2 3\nctxt 4\nbtime 1\ncpu9 1 1 1 1\n";
        let mut cpus = Vec::with_capacity(8);
        let all = parse(text, &mut cpus);
        let expected =
            Times { total_ticks: 191580, busy_ticks: 22587, iowait_ticks: 3482, steal_ticks: 6 };
        assert_eq!(all, expected);
        let busy: Vec<_> = cpus.iter().map(|cpu| (cpu.number, cpu.times.busy_ticks)).collect();
        assert_eq!(
            busy,
            [(0, 10674), (3, 11910)],
            "CPUs that are offline have no line; the rest of the file is not read"
        );

        let mut few = Vec::with_capacity(1);
        assert_eq!(parse(text, &mut few), expected);
        assert_eq!(few.len(), few.capacity().min(2), "bounded by the room");
    }

    #[test]
    fn broken_text() {
        #[track_caller]
        fn check(text: &str, expected: u64) {
            assert_eq!(
                parse(text.as_bytes(), &mut Vec::with_capacity(4)).total_ticks,
                expected,
                "{text}"
            );
        }
        check("", 0);
        check("cpu\ncpu0", 0);
        check("cpu 1 2 3\n", 0);
        check("cpu 1 2 3 4\n", 10);
        check("cpu 1 2 x 4 5\n", 0);
        check("cpu 18446744073709551615 2 3 4\n", u64::MAX);
        check("intr 1\ncpu 1 2 3 4\n", 0);
    }

    #[test]
    fn this_host() {
        let mut file = StatFile::open(Path::new("/proc")).unwrap();
        let (all, cpus) = file.read().unwrap();
        assert!(!cpus.is_empty());
        assert!(all.total_ticks >= all.busy_ticks && all.busy_ticks > 0);
    }
}
