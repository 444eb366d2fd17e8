//! What the host tells without probes, polled once a second.
//!
//! Each source opens its files at the start, keeps them open, and reads them into a buffer of its own: after the start
//! nothing here allocates or looks up a path, so that it goes on when the host has no memory left. A file that is not
//! there gives a reason. Roots (`/proc`) are arguments, so that tests can make a host.

pub mod cgroup;
mod disk;
mod file;
mod info;
mod meminfo;
mod pressure;
mod self_usage;
mod stat;
mod trigger;
mod vmstat;

pub use self::{
    disk::Disks,
    file::Unavailable,
    info::Info,
    meminfo::{Meminfo, MeminfoFile},
    pressure::{PressureFile, Resource, Stall, StallTime},
    self_usage::{SelfUsage, Usage},
    stat::{Cpu, MAX_CPUS, StatFile, Times},
    trigger::{Trigger, Triggers},
    vmstat::{Vmstat, VmstatFile},
};
