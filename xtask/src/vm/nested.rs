//! A guest inside a guest. Emulation has no clock of stolen time; KVM has one, and runs on a CPU whose virtualization is
//! emulated. So the outer guest carries QEMU, its libraries and its firmware.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{Guest, Job, Outcome, fetch::Kernel, initramfs::script, qemu::Qemu};
use crate::command::{command, output};

/// What the outer guest does.
const SCRIPT: &str = include_str!("nested.sh");

/// Where its files are, as the job's files name them.
const FOLDER: &str = "/nest";

/// What a PC needs to start a kernel directly.
const FIRMWARE: &[&str] = &["bios-256k.bin", "kvmvapic.bin", "linuxboot_dma.bin"];

/// What the outer guest needs beside the memory of the inner one: most of it are the files.
const OUTER_BYTES: u64 = 768 << 20;

/// Runs `inner` inside an outer guest that is made for it.
pub(super) fn run(
    inner: &Guest,
    job: &Job,
    kernel: &Kernel,
    qemu: &Qemu,
    out: &Path,
) -> Result<Outcome> {
    let written = [("run", script(job)), ("nested.sh", SCRIPT.to_owned())];
    let written = written.map(|(name, text)| (out.join(format!(".{name}")), name, text));
    let mut files = files(kernel, qemu)?;
    for (path, name, text) in &written {
        fs::write(path, text)?;
        files.push((path.clone(), (*name).to_owned()));
    }
    let files = files.into_iter().map(|(host, name)| (host, format!("{FOLDER}/{name}")));
    let script = format!("/job/root{FOLDER}/nested.sh");
    let mib = (inner.mem_bytes >> 20).to_string();
    let job = Job {
        command: vec!["/job/busybox".to_owned(), "sh".to_owned(), script, mib],
        files: job.files.iter().cloned().chain(files).collect(),
        env: Vec::new(),
        out: Some(out.to_owned()),
    };
    let outer = Guest {
        mem_bytes: inner.mem_bytes + OUTER_BYTES,
        append: format!("VM_STAY=1 {}", inner.append),
        nested: false,
        ..inner.clone()
    };
    let outcome = outer.run(&job);
    for (path, ..) in written {
        fs::remove_file(path)?;
    }
    outcome
}

/// What the outer guest carries, and how it calls it.
fn files(kernel: &Kernel, qemu: &Qemu) -> Result<Vec<(PathBuf, String)>> {
    let mut files = Vec::new();
    let mut add = |host: PathBuf, name: &str| files.push((host, name.to_owned()));
    add(kernel.image(), "image");
    add(qemu.program().to_owned(), "qemu");
    for library in libraries(qemu.program())? {
        let name = library.file_name().context("a library has a name")?.to_string_lossy();
        let place =
            if name.starts_with("ld-linux") { "ld.so".into() } else { format!("lib/{name}") };
        add(library, &place);
    }
    for name in FIRMWARE {
        let found = qemu.firmware().into_iter().map(|folder| folder.join(name));
        let found = found.into_iter().find(|file| file.exists());
        add(
            found.with_context(|| format!("{name} is missing: apt-get install seabios"))?,
            &format!("firmware/{name}"),
        );
    }
    Ok(files)
}

/// Libraries of a program with all that they need, the dynamic linker among them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let text = output(command(&["ldd"]).arg(program))?;
    Ok(parse_libraries(&text))
}

fn parse_libraries(text: &str) -> Vec<PathBuf> {
    let path =
        |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    text.lines().filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_the_paths_that_ldd_names() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected =
            ["/lib/x86_64-linux-gnu/libz.so.1", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(parse_libraries(text), expected);
    }
}
