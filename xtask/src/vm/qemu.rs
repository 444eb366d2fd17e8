//! The command line of QEMU: emulation in software, so that a guest runs anywhere, also inside another.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::{Guest, arch::Arch};

/// First version whose guests do not crash with several CPUs: before 8.1 a race in the translation of code ended about
/// one in 30 with a double fault (launchpad 2051965).
pub(super) const SOUND: u32 = 9;

/// Start of the guest's clock where it is to be the same in every run.
const EPOCH: &str = "base=2026-01-01T00:00:00,clock=vm";

/// A QEMU.
#[derive(Debug, Clone)]
pub(super) struct Qemu {
    program: PathBuf,
    /// Where it finds modules and firmware, if not where it was built to look.
    unpacked: Option<PathBuf>,
}

/// Files of one run.
pub(super) struct Files<'a> {
    pub(super) image: &'a Path,
    pub(super) initramfs: &'a Path,
    pub(super) root: Option<&'a Path>,
    pub(super) out: &'a Path,
    pub(super) job_log: &'a Path,
}

impl Qemu {
    /// One that is installed.
    pub(super) fn system(program: PathBuf) -> Self {
        Self { program, unpacked: None }
    }

    /// One out of packages that were only unpacked.
    pub(super) fn unpacked(arch: Arch, folder: &Path) -> Self {
        let program = folder.join("usr/bin").join(arch.qemu());
        Self { program, unpacked: Some(folder.to_owned()) }
    }

    /// Its file.
    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    /// Where its firmware can be.
    pub(super) fn firmware(&self) -> Vec<PathBuf> {
        let places = ["usr/share/qemu", "usr/share/seabios"];
        let roots = self.unpacked.iter().map(PathBuf::as_path).chain([Path::new("/")]);
        roots.flat_map(|root| places.map(|place| root.join(place))).collect()
    }

    /// The program, ready for its arguments. It ends with the thread that started it.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(&self.program);
        if let Some(folder) = &self.unpacked {
            command.env("QEMU_MODULE_DIR", folder.join("usr/lib/x86_64-linux-gnu/qemu"));
            for place in self.firmware() {
                command.arg("-L").arg(place);
            }
        }
        command
    }

    /// The command that boots a guest. Its first serial port is on the standard output.
    pub(super) fn boot(&self, guest: &Guest, files: &Files<'_>) -> Command {
        let mut command = self.command();
        let arch = guest.kernel.arch;
        command.args(["-machine", arch.machine(), "-nodefaults", "-display", "none", "-no-reboot"]);
        command.args([
            "-m",
            &format!("{}M", guest.mem_bytes >> 20),
            "-smp",
            &guest.cpus.to_string(),
        ]);
        let thread = if guest.icount.is_some() || guest.cpus == 1 { "single" } else { "multi" };
        command.args(["-accel", &format!("tcg,thread={thread}")]);
        command.args(["-cpu", arch.cpu(guest.icount.is_some())]);
        if let Some(shift) = guest.icount {
            command.args([
                "-icount",
                &format!("shift={shift},sleep=off"),
                "-seed",
                "1",
                "-rtc",
                EPOCH,
            ]);
        }
        command.arg("-kernel").arg(files.image).arg("-initrd").arg(files.initramfs);
        command.args(["-append", &append(guest)]);
        command.args(["-serial", "stdio", "-serial", &format!("file:{}", files.job_log.display())]);
        if let Some(root) = files.root {
            let iops = guest.disk.and_then(|disk| disk.iops);
            let throttle =
                iops.map(|iops| format!(",throttling.iops-total={iops}")).unwrap_or_default();
            command.args(["-drive", &drive(root, &format!(",snapshot=on{throttle}"))]);
        }
        command.args(["-drive", &drive(files.out, "")]);
        command
    }
}

fn drive(path: &Path, more: &str) -> String {
    format!("file={},format=raw,if=virtio,cache=unsafe{more}", path.display())
}

/// Arguments of the kernel. A panic ends QEMU, by a reboot that it does not make.
fn append(guest: &Guest) -> String {
    let [console, job] = guest.kernel.arch.serial_ports();
    // What the kernel does not know and has a name without a dot is in the environment of PID 1.
    let ports = format!("console={console} VM_JOB={job} panic=-1");
    let mut words = vec![ports.as_str()];
    if guest.icount.is_some() {
        words.push("nokaslr norandmaps");
    }
    words.push(&guest.append);
    words.join(" ").trim_end().to_owned()
}
