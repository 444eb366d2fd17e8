//! Names of kernels, and which package of the suites each one means.

use std::{cmp::Ordering, fmt, str::FromStr};

use anyhow::{Error, bail};

use super::arch::Arch;

/// The kernels that every change is tried on.
pub(crate) const MATRIX: &[&str] = &["5.10", "6.1", "6.12", "6.18", "newest"];

/// Kernels of other architectures that are tried beside them.
pub(crate) const FOREIGN: &[&str] = &["arm64:6.12"];

/// A kernel, as one asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    /// What it runs on.
    pub(super) arch: Arch,
    /// A line such as 6.12, of which the newest is meant, or one version such as 6.12.117+deb13; `None` for the newest
    /// that the suites have.
    version: Option<String>,
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (arch, version) = Arch::of(text);
        let version = version.strip_suffix(arch.flavour()).unwrap_or(version);
        let allowed = |c: char| c.is_ascii_alphanumeric() || ".+-~".contains(c);
        match version {
            "newest" => Ok(Self { arch, version: None }),
            _ if version.starts_with(|c: char| c.is_ascii_digit())
                && version.chars().all(allowed) =>
            {
                Ok(Self { arch, version: Some(version.to_owned()) })
            }
            _ => bail!(
                "`{text}` is no kernel: `newest`, a line such as 6.12, or a full version such as 6.12.117+deb13, \
                 with `arm64:` before it for aarch64"
            ),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.arch.prefix())?;
        f.write_str(self.version.as_deref().unwrap_or("newest"))
    }
}

impl Name {
    /// Whether a version is meant by this name.
    fn covers(&self, version: &str) -> bool {
        self.version.as_deref().is_none_or(|wanted| {
            version
                .strip_prefix(wanted)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    }

    /// What `uname -r` says on the newest kernel of this name, out of names of packages.
    pub(super) fn release(&self, packages: &[String]) -> Option<String> {
        let flavour = self.arch.flavour();
        let versions = packages.iter().filter_map(|name| version(name, flavour));
        let newest =
            versions.filter(|version| self.covers(version)).max_by(|a, b| compare(a, b))?;
        Some(format!("{newest}{flavour}"))
    }
}

/// Name of the package with the kernel of this release.
pub(super) fn image(release: &str) -> String {
    format!("linux-image-{release}")
}

/// Whether a package that the image depends on is a part of the kernel itself: from 7.0 on it comes in several.
pub(super) fn is_part(package: &str) -> bool {
    ["linux-binary-", "linux-modules-"].iter().any(|start| package.starts_with(start))
}

/// Version in the name of a package with a kernel. A name without a full version only stands for the newest.
fn version<'a>(package: &'a str, flavour: &str) -> Option<&'a str> {
    let version = package.strip_prefix("linux-image-")?.strip_suffix(flavour)?;
    (numbers(version).len() > 2 && version.starts_with(|c: char| c.is_ascii_digit()))
        .then_some(version)
}

fn numbers(version: &str) -> Vec<u32> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

/// By numbers; of equal ones any order will do, but always the same.
fn compare(a: &str, b: &str) -> Ordering {
    numbers(a).cmp(&numbers(b)).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_the_newest_of_its_line() {
        let packages = [
            "linux-image-5.10.0-9-cloud-amd64",
            "linux-image-5.10.0-46-cloud-amd64",
            "linux-image-6.1-cloud-amd64",
            "linux-image-6.1.0-0.deb11.50-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.12.94+deb13-cloud-amd64",
            "linux-image-6.12.94+deb13-cloud-arm64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12.117+deb13-cloud-amd64",
            "linux-image-6.12.117+deb13-rt-amd64",
            "linux-image-rt-amd64",
            "linux-image-cloud-amd64",
        ]
        .map(str::to_owned);
        let check = |name: &str, expected: Option<&str>| {
            let name: Name = name.parse().expect("a name");
            assert_eq!(name.release(&packages).as_deref(), expected, "{name}");
        };
        check("5.10", Some("5.10.0-46-cloud-amd64"));
        check("6.1", Some("6.1.0-56-cloud-amd64"));
        check("6.12", Some("6.12.117+deb13-cloud-amd64"));
        check("6.12.94+deb13-cloud-amd64", Some("6.12.94+deb13-cloud-amd64"));
        check("arm64:6.12", Some("6.12.94+deb13-cloud-arm64"));
        check("arm64:6.18", None);
        check("newest", Some("6.12.117+deb13-cloud-amd64"));
        check("6.18", None);
        check("6", Some("6.12.117+deb13-cloud-amd64"));
    }

    #[test]
    fn names_are_shown_as_they_are_typed() {
        for text in ["newest", "6.12", "arm64:newest", "arm64:6.12.117+deb13"] {
            assert_eq!(text.parse::<Name>().expect("a name").to_string(), text);
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in ["", "latest", "../6.1", "6.1 x"] {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
    }

    #[test]
    fn parts_of_a_kernel_are_known() {
        assert!(is_part("linux-modules-7.2.12+deb13-cloud-amd64"));
        assert!(!is_part("linux-base"));
    }
}
