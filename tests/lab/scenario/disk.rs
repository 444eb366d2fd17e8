//! A disk that can be slowed and stopped: ext4 on the device mapper, on a loop device, on a file.

use std::{os::unix::fs::PermissionsExt as _, path::PathBuf, process::Command};

use tempfile::TempDir;

/// What it needs.
pub const PROGRAMS: &[&str] = &["node", "dmsetup", "losetup", "mkfs.ext4", "mount"];

/// Unit of the device mapper's tables.
const SECTOR_BYTES: u64 = 512;

/// The disk, mounted.
pub struct Disk {
    name: String,
    below: String,
    sectors: u64,
    folder: TempDir,
}

impl Disk {
    /// Makes one of so many MiB.
    pub fn make(mib: u64) -> Self {
        let folder = TempDir::new().expect("a temporary directory");
        // Servers with users of their own have their data on it.
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open).expect("own folders can be opened");
        let file = folder.path().join("image");
        let image = std::fs::File::create(&file).expect("a temporary file can be made");
        image.set_len(mib << 20).expect("a file can be sparse");
        ["loop", "dm-mod", "dm-delay"].into_iter().for_each(load_module);
        let below = said(Command::new("losetup").args(["--find", "--show"]).arg(&file));
        let name = format!("lab-{}", std::process::id());
        let disk = Self { name, below, sectors: (mib << 20) / SECTOR_BYTES, folder };
        // Nobody here is udev, for which it would wait.
        disk.dmsetup(&["create", &disk.name, "--table", &disk.linear()]);
        said(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(disk.device()));
        std::fs::create_dir(disk.mounted()).expect("a temporary directory takes folders");
        said(Command::new("mount").args(["-t", "ext4"]).args([disk.device(), disk.mounted()]));
        disk
    }

    /// Where it is mounted.
    pub fn mounted(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }

    /// Every write and flush takes so much longer from now on.
    pub fn delay_writes(&self, ms: u32) {
        let Self { below, sectors, name, .. } = self;
        let table = format!("0 {sectors} delay {below} 0 0 {below} 0 {ms} {below} 0 {ms}");
        self.dmsetup(&["load", name, "--table", &table]);
        self.resume();
    }

    /// It answers nobody from now on.
    pub fn suspend(&self) {
        self.dmsetup(&["suspend", "--noflush", "--nolockfs", &self.name]);
    }

    /// It answers again.
    pub fn resume(&self) {
        self.dmsetup(&["resume", "--noflush", "--nolockfs", &self.name]);
    }

    fn linear(&self) -> String {
        format!("0 {} linear {} 0", self.sectors, self.below)
    }

    fn device(&self) -> PathBuf {
        // Links by name are made by udev.
        let minor = ["info", "--columns", "--noheadings", "-o", "minor", &self.name];
        PathBuf::from(format!("/dev/dm-{}", self.dmsetup(&minor)))
    }

    fn dmsetup(&self, args: &[&str]) -> String {
        said(Command::new("dmsetup").arg("--noudevsync").args(args))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What is left goes with the guest.
        self.resume();
        Command::new("umount").arg(self.mounted()).status().ok();
        Command::new("dmsetup").args(["--noudevsync", "remove", &self.name]).status().ok();
        Command::new("losetup").args(["--detach", &self.below]).status().ok();
    }
}

/// Loads a module the way that the kernel does. One that is built in is there already, and one that is missing will be
/// missed.
fn load_module(name: &str) {
    let helper = std::fs::read_to_string("/proc/sys/kernel/modprobe").unwrap_or_default();
    Command::new(helper.trim()).args(["-q", "--", name]).status().ok();
}

/// What a command says, if it succeeds.
fn said(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
