//! Packages of other suites than the system's own, with apt's own programs and a state of our own beside the system's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::arch::Arch;
use crate::command::{command, output};

/// Keys of all Debian suites, as the package `debian-archive-keyring` installs them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Which suites a state knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Suites {
    /// Those that together have all kernel lines, for this architecture.
    Kernels(Arch),
    /// The system's own and its backports: what is in them runs on this system.
    System,
}

/// All kernel lines from 5.10 on; of a suite that does not answer the others remain.
const KERNEL_SUITES: &[&str] = &[
    "bullseye",
    "bullseye-security",
    "bookworm",
    "bookworm-security",
    "bookworm-backports",
    "trixie",
    "trixie-security",
    "trixie-backports",
];

impl Suites {
    /// Folder of the state.
    fn folder(self) -> String {
        match self {
            Self::Kernels(arch) => format!("apt/kernels-{}", arch.debian()),
            Self::System => "apt/system".to_owned(),
        }
    }
}

/// A state of apt in a folder. The system's own is only read.
pub(super) struct Apt {
    folder: PathBuf,
    suites: Suites,
    codename: String,
}

/// An archive that the system is set up with.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Source {
    uri: String,
    suite: String,
}

impl Apt {
    /// The state in this cache, with lists as new as the archives have them.
    ///
    /// # Errors
    /// Where apt is missing, has no Debian archive among its sources, or cannot reach it.
    pub(super) fn updated(cache: &Path, suites: Suites) -> Result<Self> {
        let folder = cache.join(suites.folder());
        let sources = own_sources()?;
        let codename = codename(&sources)
            .context("no Debian archive among the sources of apt (`apt-get indextargets`)")?;
        let wanted = match suites {
            Suites::Kernels(_) => KERNEL_SUITES.iter().map(|suite| (*suite).to_owned()).collect(),
            Suites::System => vec![
                codename.clone(),
                format!("{codename}-security"),
                format!("{codename}-backports"),
            ],
        };
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part))?;
        }
        fs::write(folder.join("sources.list"), source_lines(&sources, &wanted))?;
        fs::write(folder.join("status"), "")?;
        let apt = Self { folder, suites, codename };
        // One suite that is gone is no end: what is missing then is told by name.
        if let Err(error) = output(&mut apt.command("apt-get", &["update", "--quiet=2"])) {
            println!("warning: not all suites answered: {error:#}");
        }
        Ok(apt)
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut apt = command(&[program]);
        let mut set = |name: &str, value: &str| {
            apt.args(["-o", &format!("{name}={value}")]);
        };
        let path = |name: &str| self.folder.join(name).display().to_string();
        set("Dir::State::lists", &path("lists"));
        set("Dir::Cache", &path("cache"));
        set("Dir::Etc::sourcelist", &path("sources.list"));
        set("Dir::Etc::sourceparts", "/dev/null");
        // The folder is the user's own, which apt's own user may not read.
        set("APT::Sandbox::User", "root");
        set("Acquire::Languages", "none");
        set("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false");
        match self.suites {
            Suites::Kernels(arch) => {
                set("Dir::State::status", &path("status"));
                set("APT::Architecture", arch.debian());
                set("APT::Architectures", arch.debian());
            }
            Suites::System => set("APT::Default-Release", &format!("{}-backports", self.codename)),
        }
        apt.args(args);
        apt
    }

    /// Names of all packages that start so.
    pub(super) fn names(&self, start: &str) -> Result<Vec<String>> {
        let names = output(&mut self.command("apt-cache", &["pkgnames", start]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Packages that this one cannot do without.
    pub(super) fn depends(&self, package: &str) -> Result<Vec<String>> {
        let args = ["depends", "--no-recommends", "--no-suggests", package];
        let text = output(&mut self.command("apt-cache", &args))?;
        let depends = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(depends.map(str::to_owned).collect())
    }

    /// Downloads packages, with the checks of apt, and unpacks all of them into one folder.
    pub(super) fn unpack(&self, packages: &[&str], folder: &Path) -> Result<()> {
        let archives = beside(folder, "debs");
        remove(&archives)?;
        fs::create_dir_all(&archives)?;
        fs::create_dir_all(folder)?;
        let mut download = self.command("apt-get", &["--quiet=2", "download"]);
        output(download.args(packages).current_dir(&archives))?;
        let mut count = 0;
        for entry in fs::read_dir(&archives)? {
            let archive = entry?.path();
            output(command(&["dpkg-deb", "--extract"]).arg(&archive).arg(folder))?;
            count += 1;
        }
        ensure!(count == packages.len(), "apt-get downloaded {count} of {packages:?}");
        remove(&archives)
    }
}

/// Debian's own archives among the sources that the system is set up with.
fn own_sources() -> Result<Vec<Source>> {
    let format = "$(ORIGIN) $(REPO_URI) $(RELEASE)";
    let words = ["apt-get", "indextargets", "--format", format, "Created-By: Packages"];
    Ok(sources(&output(&mut command(&words))?))
}

/// Whether the system can fetch kernels for guests.
pub(crate) fn has_archive() -> bool {
    own_sources().is_ok_and(|sources| codename(&sources).is_some())
}

/// A folder whose name is that of another and one more ending.
pub(super) fn beside(folder: &Path, ending: &str) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

/// Removes a folder that may not be there.
pub(super) fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Debian's own archives among lines of origin, address and suite.
fn sources(listed: &str) -> Vec<Source> {
    let source = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next()? == "Debian").then_some(())?;
        Some(Source { uri: words.next()?.to_owned(), suite: words.next()?.to_owned() })
    };
    listed.lines().filter_map(source).collect()
}

/// Name of the system's release: the first suite that is no addition to another.
fn codename(sources: &[Source]) -> Option<String> {
    sources.iter().map(|source| &source.suite).find(|suite| !suite.contains('-')).cloned()
}

/// The suites, each from the archive from which the system has its like.
fn source_lines(sources: &[Source], suites: &[String]) -> String {
    let is_security = |suite: &str| suite.ends_with("-security");
    let keys =
        if Path::new(KEYRING).exists() { format!("[signed-by={KEYRING}] ") } else { String::new() };
    let line = |suite: &String| {
        let like = |source: &&Source| is_security(&source.suite) == is_security(suite);
        let uri = &sources.iter().find(like)?.uri;
        Some(format!("deb {keys}{uri} {suite} main\n"))
    };
    suites.iter().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = "Debian http://a/debian/ bookworm\nDebian http://a/debian/ bookworm-updates\n\
                          Debian http://b/security/ bookworm-security\nNode http://c/ nodistro\n";

    #[test]
    fn suites_come_from_where_the_system_has_their_like() {
        let sources = sources(LISTED);
        assert_eq!(codename(&sources).as_deref(), Some("bookworm"));
        let lines = source_lines(&sources, &["trixie".to_owned(), "bullseye-security".to_owned()]);
        let bare: Vec<_> = lines.lines().map(|line| line.split("] ").last()).collect();
        assert!(
            bare[0].is_some_and(|line| line.ends_with("http://a/debian/ trixie main")),
            "{lines}"
        );
        assert!(
            bare[1].is_some_and(|line| line.ends_with("http://b/security/ bullseye-security main"))
        );
    }

    #[test]
    fn another_distribution_has_no_codename() {
        assert_eq!(codename(&sources("Ubuntu http://a/ noble\n")), None);
    }
}
