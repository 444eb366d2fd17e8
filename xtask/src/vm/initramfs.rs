//! The first file system of a guest: its shell, its modules, PID 1, and the job.

use std::{fmt::Write as _, fs, path::PathBuf};

use anyhow::{Context as _, Result};

use super::{
    Job,
    cpio::Archive,
    fetch::Kernel,
    modules::{Modules, plain},
};
use crate::command::quoted;

/// PID 1.
const INIT: &str = include_str!("init.sh");

/// Users that programs look up where there is no root disk.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";

/// Major and minor number of the console (Documentation/admin-guide/devices.txt).
const CONSOLE: (u32, u32) = (5, 1);

/// The archive that QEMU hands to the kernel. With a root on disk the files of the job go there, else where they belong.
pub(super) fn initramfs(
    kernel: &Kernel,
    busybox: &PathBuf,
    job: &Job,
    on_disk: bool,
) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.device("/dev/console", CONSOLE.0, CONSOLE.1);
    archive.file("/init", 0o755, INIT.as_bytes());
    archive.file("/job/init", 0o755, INIT.as_bytes());
    let busybox = fs::read(busybox).with_context(|| busybox.display().to_string())?;
    archive.file("/job/busybox", 0o755, &busybox);
    // The kernel starts this one for what it wants loaded; busybox goes by the name that it is called.
    archive.link("/job/modprobe", "busybox");
    if !on_disk {
        archive.link("/bin/sh", "/job/busybox");
        archive.file("/etc/passwd", 0o644, PASSWD.as_bytes());
        archive.file("/etc/hosts", 0o644, b"127.0.0.1 localhost\n");
    }
    modules(&mut archive, kernel)?;
    archive.file("/job/run", 0o755, script(job).as_bytes());
    let root = if on_disk { "/job/root" } else { "" };
    for (host, guest) in &job.files {
        let content = fs::read(host).with_context(|| format!("cannot read {}", host.display()))?;
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(host)?.permissions());
        archive.file(&format!("{root}{guest}"), mode & 0o7777, &content);
    }
    Ok(archive.finish())
}

fn modules(archive: &mut Archive, kernel: &Kernel) -> Result<()> {
    let folder = kernel.modules();
    let read = |name: &str| {
        fs::read_to_string(folder.join(name))
            .with_context(|| format!("cannot read {}", folder.join(name).display()))
    };
    let list = read("modules.dep")?;
    let modules = Modules::parse(&list);
    let carried = modules.carried();
    let target = format!("/lib/modules/{}", kernel.release);
    for path in &carried {
        archive.file(
            &format!("{target}/{}", plain(path)),
            0o644,
            &decompressed(&folder.join(path))?,
        );
    }
    let ours = |line: &&str| line.split(':').next().is_some_and(|path| carried.contains(path));
    let lines: String =
        list.lines().filter(ours).map(|line| line.replace(".ko.xz", ".ko") + "\n").collect();
    archive.file(&format!("{target}/modules.dep"), 0o644, lines.as_bytes());
    archive.file(&format!("{target}/modules.alias"), 0o644, read("modules.alias")?.as_bytes());
    archive.file("/job/modules", 0o644, (modules.at_boot().join("\n") + "\n").as_bytes());
    Ok(())
}

fn decompressed(path: &std::path::Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|end| end != "xz") {
        return fs::read(path).with_context(|| path.display().to_string());
    }
    let xz = std::process::Command::new("xz").args(["--decompress", "--stdout"]).arg(path).output();
    let xz = xz.context("cannot start xz")?;
    anyhow::ensure!(xz.status.success(), "xz cannot decompress {}", path.display());
    Ok(xz.stdout)
}

/// What the guest's shell runs: the environment, then the command.
pub(super) fn script(job: &Job) -> String {
    let mut text = String::new();
    for (name, value) in &job.env {
        writeln!(text, "export {name}={}", quoted(value)).expect("a String takes text");
    }
    let words: Vec<_> = job.command.iter().map(|word| quoted(word)).collect();
    text + "exec " + &words.join(" ") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_a_script() {
        let job = Job {
            command: ["echo", "a b"].map(str::to_owned).to_vec(),
            env: vec![("NAME".to_owned(), "it's".to_owned())],
            ..Job::default()
        };
        assert_eq!(script(&job), "export NAME='it'\\''s'\nexec echo 'a b'\n");
    }
}
