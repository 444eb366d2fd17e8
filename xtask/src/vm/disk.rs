//! The disk of a guest: an ext4 image of what is installed on this host, so that its programs run there unchanged.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fmt::Write as _,
    fs::{self, File},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result};

use super::{
    packages::{self, Packages},
    stage::Stage,
};
use crate::{
    command::{command, find, output, run},
    setup::{NODE_POSTGRES_VERSION, PM2_VERSION, python_version, rotel_agent},
};

/// What is on the disk, with all that it depends on; written as `Depends` of a package is.
const WANTED: &str = "postgresql, redis-server, redis-tools, nodejs, \
    default-jdk-headless | openjdk-17-jdk-headless, tmux, iproute2, procps, mawk | awk, gcc, libc6-dev, \
    python3-minimal, dmsetup, mount, e2fsprogs";

/// What is on the disk where this host has it, beside the library that the OTLP receiver links.
const WELCOME: &[&str] = &["nftables", "iptables", "strace", "bpftool"];

/// Starts of names of packages that what depends on them does without in a guest.
const LEFT_OUT: &[&str] =
    &["libllvm", "libz3", "locales", "ca-certificates", "adduser", "debconf", "kmod"];

/// Files that installation made and that no package lists.
const MADE: &[&str] = &["/etc/group", "/etc/ld.so.cache", "/etc/nsswitch.conf", "/etc/passwd"];

/// Programs of kmod. It reads an index of modules that only its own depmod makes; guests have the text and busybox.
const BUSYBOX: &[&str] = &["insmod", "lsmod", "modprobe", "rmmod"];

/// Mount points and work folders.
const FOLDERS: &[&str] = &["dev", "mnt", "proc", "root", "run", "sys", "tmp", "var/tmp", "var/lib"];

/// Where the OTLP receiver of the tests is on the disk.
const ROTEL: &str = "/usr/local/bin/rotel-agent";

/// Room for what a guest writes. The image is sparse: it costs nothing here.
const SPARE_BYTES: u64 = 1 << 30;

/// Folder for all of this, below the workspace.
const FOLDER: &str = "target/vm";

/// The image; made if it is not there, or if packages or this recipe have changed since. Guests must not write to it.
///
/// # Errors
/// Where this host lacks a program that belongs on the disk, or has no dpkg.
pub(crate) fn root_image() -> Result<PathBuf> {
    let folder = fs::canonicalize(".")?.join(FOLDER);
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let (image, key_file) = (folder.join("root.ext4"), folder.join("root.key"));
    // Two tasks at once would stage into one folder.
    let lock = File::create(folder.join("root.lock"))?;
    lock.lock()?;
    let installed = installed()?;
    let names = wanted(&installed)?;
    let key = key(&installed, &names);
    if image.exists() && fs::read_to_string(&key_file).is_ok_and(|old| old == key) {
        return Ok(image);
    }
    let start = Instant::now();
    // Without its key, an image that was left half done is made again.
    if key_file.exists() {
        fs::remove_file(&key_file).context("cannot remove the key of the disk")?;
    }
    let stage_folder = folder.join("root");
    let bytes = stage(&stage_folder, &names, &pm2(&folder)?)?;
    pack(&stage_folder, bytes, &image)?;
    // A link keeps a program of root's alive after the package that it came with was mended.
    fs::remove_dir_all(&stage_folder).context("cannot remove what was packed")?;
    fs::write(&key_file, key).context("cannot write the key of the disk")?;
    println!(
        "{}: {} packages, {} MB of files, {:.1} s",
        image.display(),
        names.len(),
        bytes >> 20,
        start.elapsed().as_secs_f64()
    );
    Ok(image)
}

fn installed() -> Result<Packages> {
    let format = format!("--showformat={}", packages::FORMAT);
    let text = output(&mut command(&["dpkg-query", "--show", &format]))
        .context("the disk is made from this host's Debian packages")?;
    Ok(packages::parse(&text))
}

fn wanted(installed: &Packages) -> Result<BTreeSet<String>> {
    let mut wanted = WANTED.to_owned();
    let python = format!("libpython{}", python_version());
    for name in WELCOME.iter().copied().chain([python.as_str()]) {
        if installed.contains_key(name) {
            wanted += ", ";
            wanted += name;
        }
    }
    packages::closure(installed, &wanted, LEFT_OUT)
}

/// All that the image follows from: versions, and the recipe itself.
fn key(installed: &Packages, names: &BTreeSet<String>) -> String {
    let mut key = String::new();
    for name in names {
        writeln!(key, "{name} {}", installed[name].version).expect("a String takes text");
    }
    let recipe = [include_str!("disk.rs"), include_str!("packages.rs"), include_str!("stage.rs")];
    key + &format!("pm2 {PM2_VERSION}\npg {NODE_POSTGRES_VERSION}\nrotel {:?}\n", rotel_agent())
        + &recipe.concat()
}

/// PM2 and node-postgres with what they need, as npm installs them for all users of a host.
fn pm2(folder: &Path) -> Result<PathBuf> {
    let prefix = folder.join(format!("pm2-{PM2_VERSION}"));
    let there = ["bin/pm2", "lib/node_modules/pg"].map(|path| prefix.join(path).exists());
    if there.contains(&false) {
        let packages = [format!("pm2@{PM2_VERSION}"), format!("pg@{NODE_POSTGRES_VERSION}")];
        let mut npm =
            command(&["npm", "install", "--global", "--no-audit", "--no-fund", "--silent"]);
        run(npm.arg("--prefix").arg(&prefix).args(packages))?;
    }
    Ok(prefix)
}

/// PATH for programs of this host that are to find PM2 where the disk has it from.
///
/// # Errors
/// Where npm is missing, or its registry does not answer.
pub(crate) fn path_with_pm2() -> Result<OsString> {
    let folder = fs::canonicalize(".")?.join(FOLDER);
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let mut path = pm2(&folder)?.join("bin").into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    Ok(path)
}

/// Bytes of all that was staged.
fn stage(folder: &Path, names: &BTreeSet<String>, pm2: &Path) -> Result<u64> {
    let mut stage = Stage::new(folder)?;
    let mut list = command(&["dpkg-query", "--listfiles"]);
    let text = output(list.args(names))?;
    // Between the lists stand words about diversions.
    for path in text.lines().filter(|line| line.starts_with('/') && packages::is_wanted(line)) {
        stage.add(Path::new(path))?;
    }
    for path in MADE {
        stage.add(Path::new(path))?;
    }
    stage_alternatives(&mut stage)?;
    stage.add_tree(pm2, "usr/local")?;
    if let Some(rotel) = rotel_agent() {
        stage.add_as(&rotel, ROTEL)?;
    }
    FOLDERS.iter().try_for_each(|folder| stage.folder(folder))?;
    for program in BUSYBOX {
        stage.link(&format!("usr/sbin/{program}"), "/job/busybox")?;
    }
    stage.write("/etc/hosts", "127.0.0.1 localhost\n")?;
    Ok(stage.bytes)
}

/// Links such as `/usr/bin/java`, of which only the administration of alternatives knows.
fn stage_alternatives(stage: &mut Stage) -> Result<()> {
    let folder = "/var/lib/dpkg/alternatives";
    for entry in fs::read_dir(folder).context(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        for (name, link) in packages::alternatives(&name, &fs::read_to_string(entry.path())?) {
            let choice = Path::new("/etc/alternatives").join(name);
            if stage.has(&choice) {
                stage.add(&choice)?;
                stage.add(Path::new(&link))?;
            }
        }
    }
    Ok(())
}

fn pack(folder: &Path, bytes: u64, image: &Path) -> Result<()> {
    let mkfs = find("mkfs.ext4").context("mkfs.ext4 is missing: apt-get install e2fsprogs")?;
    if image.exists() {
        fs::remove_file(image)?;
    }
    // Inodes, journal and the like take a part of it.
    let kibibytes = (bytes + bytes / 10 + SPARE_BYTES) >> 10;
    let mut pack = command(&[&mkfs.to_string_lossy(), "-q", "-F", "-m", "0", "-L", "root", "-d"]);
    run(pack.arg(folder).arg(image).arg(format!("{kibibytes}k")))
}
