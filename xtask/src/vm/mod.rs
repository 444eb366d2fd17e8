//! `cargo xtask vm`: a command on another kernel, in a guest that is made for it and thrown away.

mod apt;
mod arch;
mod cli;
mod console;
mod cpio;
mod disk;
mod fetch;
mod initramfs;
mod kernels;
mod matrix;
mod modules;
mod nested;
mod packages;
mod qemu;
mod run;
mod stage;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use self::arch::Arch;
pub(crate) use self::{
    apt::has_archive,
    cli::{Vm, vm},
    console::Ended,
    disk::path_with_pm2,
    fetch::Unavailable,
    kernels::Name,
    matrix::short_matrix,
};
use crate::command::{command, output};

/// Room for what a job leaves in `/out`; the file is sparse.
const OUT_BYTES: u64 = 1 << 30;

/// A virtual machine.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    /// Its kernel.
    pub(crate) kernel: Name,
    /// Its memory.
    pub(crate) mem_bytes: u64,
    /// Its CPUs.
    pub(crate) cpus: u32,
    /// Its time is that of its instructions: each takes 2^n ns. The same in each run, whatever the host does meanwhile.
    pub(crate) icount: Option<u8>,
    /// A root on disk, with servers and runtimes; without, all there is comes with the job.
    pub(crate) disk: Option<Disk>,
    /// More arguments of the kernel.
    pub(crate) append: String,
    /// The host's time until it is ended.
    pub(crate) time_limit: Duration,
    /// Whether the job runs in a guest of this one, which has a clock of stolen time.
    pub(crate) nested: bool,
    /// Whether what the job says goes to the standard output.
    pub(crate) show: bool,
}

impl Guest {
    /// A small one of this kernel.
    pub(crate) fn new(kernel: Name) -> Self {
        Self {
            kernel,
            mem_bytes: 512 << 20,
            cpus: 1,
            icount: None,
            disk: None,
            append: String::new(),
            time_limit: Duration::from_secs(120),
            nested: false,
            show: true,
        }
    }
}

/// The root disk of a guest. What is written to it is gone with the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Disk {
    /// Operations a second, as clouds limit them, in the host's time.
    pub(crate) iops: Option<u32>,
}

/// What a guest does.
#[derive(Debug, Clone, Default)]
pub(crate) struct Job {
    /// Program and arguments. Its working directory is `/root`.
    pub(crate) command: Vec<String>,
    /// Files of the host, and their absolute paths in the guest.
    pub(crate) files: Vec<(PathBuf, String)>,
    /// Its environment.
    pub(crate) env: Vec<(String, String)>,
    /// Folder for what it leaves in `/out`; one of its own under `target/vm` if left out.
    pub(crate) out: Option<PathBuf>,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Exit status of the command, if it ended.
    pub(crate) status: Option<i32>,
    /// How the run ended.
    pub(crate) ended: Ended,
    /// Folder with what the job left in `/out`.
    pub(crate) out: PathBuf,
    /// What the kernel said, each line with the host's seconds since the start.
    pub(crate) console: PathBuf,
    /// What the job said on both its outputs.
    pub(crate) log: PathBuf,
    /// What `uname -r` says.
    pub(crate) release: String,
    /// The host's time for the last attempt.
    pub(crate) wall: Duration,
    /// CPU time of QEMU for the last attempt.
    pub(crate) cpu: Duration,
    /// Boots that it took: a second one where the first gave no status.
    pub(crate) attempts: u32,
}

impl Guest {
    /// Boots, runs the job, and brings back what it left. Where no status came, for another reason than the time limit,
    /// it tries once more, and says so.
    ///
    /// # Errors
    /// [`fetch::Unavailable`] for a kernel that cannot be had; whatever keeps QEMU from its start. A job that fails is no error.
    pub(crate) fn run(&self, job: &Job) -> Result<Outcome> {
        let kernel = fetch::kernel(&self.kernel)?;
        let arch = self.kernel.arch;
        let (qemu, busybox) = (fetch::qemu(arch)?, fetch::busybox(arch)?);
        let out = job.out.clone().unwrap_or_else(|| new_folder(&kernel.release));
        fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
        let out = fs::canonicalize(out)?;
        ensure!(
            self.disk.is_none() || arch == Arch::X86_64,
            "{}: the disk is made of this host's programs, which do not run there",
            self.kernel
        );
        if self.nested {
            return nested::run(self, job, &kernel, &qemu, &out);
        }
        let root = self.disk.map(|_| disk::root_image()).transpose()?;
        let (initramfs, disk) = (out.join(".initramfs"), out.join(".disk"));
        fs::write(&initramfs, initramfs::initramfs(&kernel, &busybox, job, root.is_some())?)?;
        let (console, log) = (out.join("console.log"), out.join("job.log"));
        let mut attempts = 0;
        let boot = loop {
            attempts += 1;
            File::create(&disk)?.set_len(OUT_BYTES)?;
            let files = qemu::Files {
                image: &kernel.image(),
                initramfs: &initramfs,
                root: root.as_deref(),
                out: &disk,
                job_log: &log,
            };
            let boot = run::boot(
                &mut qemu.boot(self, &files),
                &console,
                &log,
                self.time_limit,
                self.show,
            )?;
            if boot.status.is_some() || boot.ended == Ended::TimeLimit || attempts == 2 {
                break boot;
            }
            fs::rename(&console, out.join("console.1.log"))?;
            println!("warning: {} gave no status ({}); once more", kernel.release, boot.ended);
        };
        if boot.status.is_some() {
            run::unpack(&disk, &out)?;
        }
        for file in [&initramfs, &disk] {
            fs::remove_file(file)?;
        }
        let release = kernel.release;
        Ok(Outcome {
            status: boot.status,
            ended: boot.ended,
            out,
            console,
            log,
            release,
            wall: boot.wall,
            cpu: boot.cpu,
            attempts,
        })
    }
}

/// A copy without what only a debugger needs: a guest copies its files by emulation, and keeps them in its memory.
pub(crate) fn stripped(program: &Path, folder: &Path) -> Result<PathBuf> {
    let small = folder.join(program.file_name().context("a program has a name")?);
    output(command(&["strip", "--strip-debug", "-o"]).arg(&small).arg(program))?;
    Ok(small)
}

/// A folder for a run, another one for each.
fn new_folder(release: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    Path::new("target/vm/runs").join(format!("{release}-{}-{count}", process::id()))
}
