//! The host's own files, read once a tick: the part of a tick that needs no BPF.

use std::path::Path;

use crate::{
    host::{
        Meminfo, MeminfoFile, PressureFile, Resource, SelfUsage, StatFile, Times, Triggers,
        Unavailable, Usage, Vmstat, VmstatFile, cgroup::Cgroups,
    },
    signal::PressureReading,
    snapshot::{Program, Verdict},
};

/// What was read at one tick. A file that cannot be read leaves zeroes; its row in [`Files::programs`] says so.
#[derive(Debug, Default)]
pub struct Read {
    /// /proc/meminfo.
    pub meminfo: Meminfo,
    /// /proc/vmstat.
    pub vmstat: Vmstat,
    /// /proc/stat.
    pub times: Times,
    /// /proc/pressure.
    pub pressure: Vec<PressureReading>,
    /// The agent itself.
    pub usage: Usage,
}

/// The open files.
pub struct Files {
    meminfo: Option<MeminfoFile>,
    vmstat: Option<VmstatFile>,
    stat: Option<StatFile>,
    pressure: Vec<(Resource, PressureFile)>,
    usage: Option<SelfUsage>,
    /// PSI triggers.
    pub triggers: Triggers,
    /// Control groups; `None` if the host has none.
    pub cgroups: Option<Cgroups>,
    programs: Vec<Program>,
}

impl Files {
    /// Opens everything below `/proc`.
    pub fn open(proc_root: &Path) -> Self {
        let mut programs = Vec::new();
        let mut note = |name: &str, signal: &str, problem: Option<&Unavailable>| {
            programs.push(row(name, signal, problem));
        };
        let meminfo = MeminfoFile::open(proc_root);
        note("meminfo", "oom", meminfo.as_ref().err());
        let vmstat = VmstatFile::open(proc_root);
        note("vmstat", "oom", vmstat.as_ref().err());
        let stat = StatFile::open(proc_root);
        note("stat", "sched", stat.as_ref().err());
        let usage = SelfUsage::open(proc_root);
        let mut pressure = Vec::new();
        for resource in Resource::ALL {
            let file = PressureFile::open(proc_root, resource);
            note(&format!("pressure/{}", resource.name()), "oom", file.as_ref().err());
            pressure.extend(file.ok().map(|file| (resource, file)));
        }
        let cgroups = Cgroups::open(proc_root);
        note("cgroup", "oom", cgroups.as_ref().err());
        let triggers = Triggers::open(proc_root);
        programs.extend(trigger_rows(&triggers));
        Self {
            meminfo: meminfo.ok(),
            vmstat: vmstat.ok(),
            stat: stat.ok(),
            pressure,
            usage: usage.ok(),
            triggers,
            cgroups: cgroups.ok(),
            programs,
        }
    }

    /// Verdict of every file.
    pub fn programs(&self) -> &[Program] {
        &self.programs
    }

    /// Reads all files.
    pub fn read(&mut self) -> Read {
        let mut read = Read {
            meminfo: self.meminfo.as_mut().and_then(|file| file.read().ok()).unwrap_or_default(),
            vmstat: self.vmstat.as_mut().and_then(|file| file.read().ok()).unwrap_or_default(),
            usage: self.usage.as_mut().and_then(|file| file.read().ok()).unwrap_or_default(),
            ..Read::default()
        };
        if let Some(Ok((times, _cpus))) = self.stat.as_mut().map(StatFile::read) {
            read.times = times;
        }
        for (resource, file) in &mut self.pressure {
            let Ok(stall) = file.read() else { continue };
            let fired = |scope| {
                let same = self
                    .triggers
                    .all()
                    .iter()
                    .filter(|t| t.resource == *resource && t.scope == scope);
                same.map(crate::host::Trigger::fired).sum()
            };
            read.pressure.push(PressureReading {
                resource: resource.name(),
                stall,
                some_triggers: fired("some"),
                full_triggers: fired("full"),
            });
        }
        read
    }
}

fn row(name: &str, signal: &str, problem: Option<&Unavailable>) -> Program {
    Program {
        name: name.to_owned(),
        signal: signal.to_owned(),
        hook: format!("/proc/{name}"),
        verdict: if problem.is_some() { Verdict::Impossible } else { Verdict::Attached },
        reason: problem.map(|problem| problem.reason.clone()).unwrap_or_default(),
        remedy: problem.map(|problem| problem.remedy.to_owned()).unwrap_or_default(),
    }
}

fn trigger_rows(triggers: &Triggers) -> Vec<Program> {
    let open = triggers.all().iter().map(|trigger| {
        let name = format!("psi_trigger/{}_{}", trigger.resource.name(), trigger.scope);
        let mut row = row(&name, "oom", None);
        row.hook = format!(
            "/proc/pressure/{} {} {} {}",
            trigger.resource.name(),
            trigger.scope,
            trigger.stall_us,
            trigger.window_us
        );
        if trigger.degraded {
            row.verdict = Verdict::Degraded;
            row.reason = "without CAP_SYS_RESOURCE its window is 2 s instead of 1 s".to_owned();
            row.remedy = "grant CAP_SYS_RESOURCE".to_owned();
        }
        row
    });
    let closed =
        triggers.unavailable().iter().map(|problem| row("psi_trigger", "oom", Some(problem)));
    open.chain(closed).collect()
}
