//! Pressure triggers: the kernel wakes us when stalls pass a threshold (Documentation/accounting/psi.rst, "Monitoring for
//! pressure thresholds"). While the host is healthy they cost nothing.

use std::{cell::Cell, path::Path};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::OwnedFd,
    fs::{CWD, Mode, OFlags, openat},
    io::{Errno, write},
};

use super::{Resource, Unavailable, pressure::REMEDY};

/// A threshold: the stall within a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Threshold {
    resource: Resource,
    scope: &'static str,
    stall_us: u32,
    window_us: u32,
}

/// Memory: what Android's lmkd takes for the first sign, in the shortest window that tells it from a hiccup. I/O and CPU: a
/// share that a busy but healthy host does not have for two seconds; the longer window also has the kernel look less often
/// (ten times a window) while there is pressure.
const THRESHOLDS: [Threshold; COUNT] = [
    Threshold { resource: Resource::Memory, scope: "some", stall_us: 70_000, window_us: 1_000_000 },
    Threshold { resource: Resource::Memory, scope: "full", stall_us: 70_000, window_us: 1_000_000 },
    Threshold { resource: Resource::Io, scope: "full", stall_us: 500_000, window_us: 2_000_000 },
    Threshold { resource: Resource::Cpu, scope: "some", stall_us: 1_000_000, window_us: 2_000_000 },
];

/// Triggers there are.
const COUNT: usize = 4;

/// Without CAP_SYS_RESOURCE a window is a multiple of this (kernel 6.5; before, none is allowed).
const UNPRIVILEGED_WINDOW_US: u32 = 2_000_000;

/// One trigger.
#[derive(Debug)]
pub struct Trigger {
    /// What tasks wait for.
    pub resource: Resource,
    /// `some` or `full`.
    pub scope: &'static str,
    /// Stall that sets it off.
    pub stall_us: u32,
    /// Within this time, and at most once in it.
    pub window_us: u32,
    /// Whether the window is longer than it should be, for want of CAP_SYS_RESOURCE.
    pub degraded: bool,
    file: OwnedFd,
    fired: Cell<u64>,
    closed: Cell<bool>,
}

impl Trigger {
    /// Times it fired.
    pub fn fired(&self) -> u64 {
        self.fired.get()
    }

    /// Whether the kernel has closed it; it will not fire again.
    pub fn closed(&self) -> bool {
        self.closed.get()
    }

    fn open(proc_root: &Path, threshold: Threshold) -> Result<Self, Unavailable> {
        let Threshold { resource, scope, stall_us, window_us } = threshold;
        let path = proc_root.join("pressure").join(resource.name());
        let opened = match open(&path, threshold) {
            Err(Errno::INVAL | Errno::PERM | Errno::ACCESS)
                if window_us % UNPRIVILEGED_WINDOW_US != 0 =>
            {
                let factor = UNPRIVILEGED_WINDOW_US / window_us;
                let longer = Threshold {
                    stall_us: stall_us * factor,
                    window_us: window_us * factor,
                    ..threshold
                };
                open(&path, longer).map(|file| (file, longer))
            }
            opened => opened.map(|file| (file, threshold)),
        };
        let remedy = |errno| match errno {
            Errno::PERM | Errno::ACCESS | Errno::INVAL => "run as root or with CAP_SYS_RESOURCE",
            _ => REMEDY,
        };
        let (file, used) = opened.map_err(|errno| Unavailable::new(&path, errno, remedy(errno)))?;
        Ok(Trigger {
            resource,
            scope,
            stall_us: used.stall_us,
            window_us: used.window_us,
            degraded: used != threshold,
            file,
            fired: Cell::new(0),
            closed: Cell::new(false),
        })
    }

    /// What a poll said of it.
    fn note(&self, ready: PollFlags) -> bool {
        if ready.contains(PollFlags::ERR) {
            self.closed.set(true);
            return false;
        }
        let fired = ready.contains(PollFlags::PRI);
        self.fired.set(self.fired.get() + u64::from(fired));
        fired
    }
}

fn open(path: &Path, threshold: Threshold) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(CWD, path, flags, Mode::empty())?;
    let Threshold { scope, stall_us, window_us, .. } = threshold;
    write(&file, format!("{scope} {stall_us} {window_us}\0").as_bytes())?;
    Ok(file)
}

/// All triggers that the host allows.
///
/// Polling *consumes* an event, so each must go through one poll only: either [`Triggers::check`], or a poll set that
/// [`Triggers::add_to`] filled, followed by [`Triggers::note`]. Never nest them in an epoll of their own that is polled in
/// turn: the outer poll would eat the event.
#[derive(Debug)]
pub struct Triggers {
    open: Vec<Trigger>,
    unavailable: Vec<Unavailable>,
}

impl Triggers {
    /// Opens them below `proc_root`.
    pub fn open(proc_root: &Path) -> Self {
        let mut triggers = Triggers { open: Vec::with_capacity(COUNT), unavailable: Vec::new() };
        for threshold in THRESHOLDS {
            match Trigger::open(proc_root, threshold) {
                Ok(trigger) => triggers.open.push(trigger),
                Err(unavailable) => triggers.unavailable.push(unavailable),
            }
        }
        triggers
    }

    /// Those that are open, in the order of [`Triggers::add_to`].
    pub fn all(&self) -> &[Trigger] {
        &self.open
    }

    /// Why others are not.
    pub fn unavailable(&self) -> &[Unavailable] {
        &self.unavailable
    }

    /// Adds them to a poll set.
    pub fn add_to<'a>(&'a self, set: &mut Vec<PollFd<'a>>) {
        set.extend(self.open.iter().map(|trigger| PollFd::new(&trigger.file, PollFlags::PRI)));
    }

    /// Takes what a poll said of the part of the set that [`Triggers::add_to`] added; tells whether any fired.
    pub fn note(&self, polled: &[PollFd<'_>]) -> bool {
        let noted =
            self.open.iter().zip(polled).map(|(trigger, polled)| trigger.note(polled.revents()));
        noted.fold(false, |any, fired| any | fired)
    }

    /// Asks without waiting; tells whether any fired since the last time.
    pub fn check(&self) -> bool {
        self.open.iter().filter(|trigger| !trigger.closed()).fold(false, |any, trigger| {
            let mut set = [PollFd::new(&trigger.file, PollFlags::PRI)];
            let polled = poll(&mut set, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
            any | (polled.is_ok() && trigger.note(set[0].revents()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent() {
        let root = tempfile::tempdir().unwrap();
        let triggers = Triggers::open(root.path());
        assert_eq!((triggers.all().len(), triggers.unavailable().len()), (0, COUNT));
        assert!(triggers.unavailable()[0].to_string().contains("psi=1"));
        assert!(!triggers.check());
    }

    #[test]
    fn asks_for_the_thresholds() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("pressure")).unwrap();
        for resource in Resource::ALL {
            std::fs::write(root.path().join("pressure").join(resource.name()), "").unwrap();
        }
        let triggers = Triggers::open(root.path());
        assert_eq!(triggers.all().len(), COUNT);
        let asked = std::fs::read(root.path().join("pressure/cpu")).unwrap();
        assert_eq!(asked, b"some 1000000 2000000\0");
        assert!(triggers.all().iter().all(|trigger| !trigger.degraded));
        for trigger in triggers.all() {
            assert!(trigger.stall_us < trigger.window_us);
            assert!((500_000..=10_000_000).contains(&trigger.window_us), "bounds of the kernel");
        }
    }

    #[test]
    fn fires_counts_and_closes() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("pressure")).unwrap();
        std::fs::write(root.path().join("pressure/memory"), "").unwrap();
        let triggers = Triggers::open(root.path());
        let trigger = &triggers.all()[0];
        assert!(!trigger.note(PollFlags::empty()));
        assert!(trigger.note(PollFlags::PRI));
        assert!(trigger.note(PollFlags::PRI | PollFlags::IN));
        assert!(!trigger.note(PollFlags::ERR | PollFlags::PRI));
        assert_eq!((trigger.fired(), trigger.closed()), (2, true));
    }

    /// On a kernel with pressure stall information: the CPU trigger fires once there are more spinning threads than CPUs.
    #[test]
    fn the_kernel_fires() {
        let triggers = Triggers::open(Path::new("/proc"));
        let Some(cpu) = triggers.all().iter().find(|trigger| trigger.resource == Resource::Cpu)
        else {
            println!("skipped: {:?}", triggers.unavailable());
            return;
        };
        let stop = std::sync::atomic::AtomicBool::new(false);
        let spin = || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        };
        let cpus = std::thread::available_parallelism().unwrap().get();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        std::thread::scope(|scope| {
            for _ in 0..cpus * 2 {
                scope.spawn(spin);
            }
            while cpu.fired() == 0 && std::time::Instant::now() < deadline {
                let mut set = Vec::new();
                triggers.add_to(&mut set);
                poll(&mut set, Some(&Timespec { tv_sec: 1, tv_nsec: 0 })).unwrap();
                triggers.note(&set);
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert!(cpu.fired() > 0 && !cpu.closed());
    }
}
