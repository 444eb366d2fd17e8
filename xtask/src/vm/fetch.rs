//! What a guest is made of, fetched once and kept for all clones: kernels, the guest's shell, a QEMU that does not crash.

use std::{
    env, fmt,
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{
    apt::{Apt, Suites, beside, remove},
    arch::Arch,
    kernels::{Name, image, is_part},
    qemu::{self, Qemu},
};
use crate::command::{command, find, output, succeeds};

/// Checksums of the files beside it, as `sha256sum` writes and reads them.
const SUMS: &str = "SHA256SUMS";

/// A kernel, unpacked.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// What `uname -r` says in it.
    pub(crate) release: String,
    folder: PathBuf,
}

impl Kernel {
    /// The image that is booted.
    pub(super) fn image(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// Folder of `modules.dep`.
    pub(super) fn modules(&self) -> PathBuf {
        self.folder.join("modules")
    }
}

/// A kernel that cannot be had here.
#[derive(Debug)]
pub(crate) struct Unavailable {
    name: Name,
    why: anyhow::Error,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel {} cannot be fetched: {:#}", self.name, self.why)
    }
}

impl std::error::Error for Unavailable {}

/// The cache of this user, made if it is not there.
pub(crate) fn cache() -> Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME").filter(|base| !base.is_empty()).map(PathBuf::from);
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let folder = base.or_else(home).context("neither XDG_CACHE_HOME nor HOME is set")?;
    let folder = folder.join("observer/vm");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// Lets one process at a time change the cache; held until it is dropped.
fn lock(cache: &Path) -> Result<File> {
    let file = File::create(cache.join("lock"))?;
    file.lock()?;
    Ok(file)
}

/// The kernel of this name: the one it meant when it was first asked for, else what the suites have now.
///
/// # Errors
/// [`Unavailable`] where it is not in the cache and cannot be fetched.
pub(crate) fn kernel(name: &Name) -> Result<Kernel> {
    let cache = cache()?;
    let _lock = lock(&cache)?;
    if let Some(kernel) = cached(&cache, name) {
        if intact(&kernel.folder) {
            return Ok(kernel);
        }
        println!("warning: {} is damaged; fetching it again", kernel.folder.display());
    }
    fetch_kernel(&cache, name).map_err(|why| anyhow!(Unavailable { name: name.clone(), why }))
}

/// The kernel that this name has meant so far, unchecked.
pub(super) fn cached(cache: &Path, name: &Name) -> Option<Kernel> {
    let release = fs::read_to_string(remembered(cache, name)).ok()?;
    let folder = cache.join("kernels").join(&release);
    folder.join(SUMS).is_file().then_some(Kernel { release, folder })
}

/// File with the release that a name means: tests compare with lists, so it does not change from day to day.
fn remembered(cache: &Path, name: &Name) -> PathBuf {
    cache.join("names").join(name.to_string())
}

/// Forgets what the names mean, so that each is looked up again.
pub(super) fn forget() -> Result<()> {
    let cache = cache()?;
    let _lock = lock(&cache)?;
    remove(&cache.join("names"))
}

/// Names of all packages with a kernel in the suites.
pub(super) fn offered(arch: Arch) -> Result<Vec<String>> {
    let cache = cache()?;
    let _lock = lock(&cache)?;
    Apt::updated(&cache, Suites::Kernels(arch))?.names("linux-image-")
}

fn fetch_kernel(cache: &Path, name: &Name) -> Result<Kernel> {
    let apt = Apt::updated(cache, Suites::Kernels(name.arch))?;
    let release = name.release(&apt.names("linux-image-")?).context("no suite has it")?;
    let folder = cache.join("kernels").join(&release);
    if !intact(&folder) {
        println!("fetching kernel {release}");
        let image = image(&release);
        let mut packages = vec![image.clone()];
        packages.extend(apt.depends(&image)?.into_iter().filter(|package| is_part(package)));
        let packages: Vec<_> = packages.iter().map(String::as_str).collect();
        install(&folder, |draft| {
            let unpacked = draft.join("unpacked");
            apt.unpack(&packages, &unpacked)?;
            arrange(&unpacked, &release, draft)
        })?;
    }
    let remembered = remembered(cache, name);
    fs::create_dir_all(remembered.parent().expect("a file is in a folder"))?;
    fs::write(remembered, &release)?;
    Ok(Kernel { release, folder })
}

/// Takes what a guest needs out of the unpacked packages, and lists what each module depends on.
fn arrange(unpacked: &Path, release: &str, draft: &Path) -> Result<()> {
    // Newer packages have everything under /usr; depmod looks under /lib.
    if !unpacked.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", unpacked.join("lib"))?;
    }
    let modules = unpacked.join("lib/modules").join(release);
    let depmod = find("depmod").context("no depmod")?;
    output(command(&[depmod.to_string_lossy().as_ref(), "-b"]).arg(unpacked).arg(release))?;
    let images =
        [unpacked.join("boot").join(format!("vmlinuz-{release}")), modules.join("vmlinuz")];
    let image =
        images.iter().find(|image| image.is_file()).context("the packages hold no vmlinuz")?;
    fs::rename(image, draft.join("vmlinuz"))?;
    fs::rename(modules, draft.join("modules"))?;
    remove(unpacked)
}

/// Makes a folder whole or not at all, with its checksums.
fn install(folder: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let draft = beside(folder, "draft");
    remove(&draft)?;
    fs::create_dir_all(&draft)?;
    fill(&draft)?;
    let sum = format!("find . -type f ! -name {SUMS} -print0 | xargs -0 sha256sum >{SUMS}");
    output(command(&["sh", "-c", &sum]).current_dir(&draft))?;
    remove(folder)?;
    fs::rename(&draft, folder)?;
    Ok(())
}

/// Whether a folder is as it was installed.
fn intact(folder: &Path) -> bool {
    let sums = folder.join(SUMS);
    sums.is_file()
        && succeeds(command(&["sha256sum", "--check", "--status", SUMS]).current_dir(folder))
}

/// A busybox that needs no library, the shell of every guest.
pub(super) fn busybox(arch: Arch) -> Result<PathBuf> {
    let cache = cache()?;
    let _lock = lock(&cache)?;
    let folder = cache.join(format!("busybox-{}", arch.debian()));
    if !intact(&folder) {
        println!("fetching busybox");
        let apt = Apt::updated(&cache, Suites::Kernels(arch))?;
        install(&folder, |draft| apt.unpack(&["busybox-static"], draft))?;
    }
    let places = ["bin/busybox", "usr/bin/busybox"].map(|place| folder.join(place));
    places.into_iter().find(|file| file.is_file()).context("busybox-static holds no busybox")
}

/// The system's QEMU, or that of its backports where the system's crashes guests.
pub(super) fn qemu(arch: Arch) -> Result<Qemu> {
    let system = find(arch.qemu()).map(Qemu::system);
    if let Some(system) =
        system.filter(|qemu| version(qemu).is_ok_and(|major| major >= qemu::SOUND))
    {
        return Ok(system);
    }
    let cache = cache()?;
    let _lock = lock(&cache)?;
    let folder = cache.join(arch.qemu());
    if !intact(&folder) {
        println!("fetching QEMU");
        let apt = Apt::updated(&cache, Suites::System)?;
        install(&folder, |draft| apt.unpack(arch.qemu_packages(), draft))?;
    }
    let qemu = Qemu::unpacked(arch, &folder);
    let major = version(&qemu)?;
    ensure!(
        major >= qemu::SOUND,
        "no suite of this system has a QEMU from {} on: {major}",
        qemu::SOUND
    );
    Ok(qemu)
}

/// Major version that a QEMU says it has.
fn version(qemu: &Qemu) -> Result<u32> {
    let text = output(qemu.command().arg("--version"))?;
    let words = text.split("version ").nth(1).and_then(|rest| rest.split('.').next());
    words.and_then(|major| major.parse().ok()).with_context(|| format!("unknown version: {text}"))
}
