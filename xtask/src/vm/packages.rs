//! Pure: which of this host's packages, and which of their files, the disk of a guest needs.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};

/// What dpkg says of a package whose files are all there; the latter two while others that it waits for are set up.
const THERE: &[&str] = &["installed", "triggers-pending", "triggers-awaited"];

/// `dpkg-query --showformat` of a line that [`Package::parse`] reads.
pub(super) const FORMAT: &str = concat!(
    "${Package}\t${Version}\t${db:Status-Status}\t${Essential}\t",
    "${Pre-Depends}, ${Depends}\t${Provides}\n"
);

/// Endings of static libraries. Only those that `cc`, with and without `-static`, of plain C needs are taken.
const STATIC_LIBRARY: &str = ".a";

/// Static libraries that the loads of the tests link; of a shared C library a small part is static.
const LINKED: &[&str] =
    &["libc.a", "libc_nonshared.a", "libm.a", "libpthread.a", "libgcc.a", "libgcc_eh.a"];

/// Parts of paths that no program needs in order to run.
const LEFT_OUT: &[&str] = &[
    "/usr/share/doc/",
    "/usr/share/doc-base/",
    "/usr/share/info/",
    "/usr/share/i18n/",
    "/usr/share/lintian/",
    "/usr/share/locale/",
    "/usr/share/man/",
    "/usr/include/node/",
    "/usr/lib/node_modules/",
    "/usr/share/postgresql/*/man/",
    "/var/cache/",
    "/var/lib/dpkg/",
    // PostgreSQL without its JIT does not ask for LLVM, which is as large as all the rest of it.
    "/lib/bitcode/",
    "/lib/llvmjit",
    "/jmods/",
    // Link-time optimization.
    "/lto1",
];

/// An installed package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Package {
    /// Its version.
    pub(super) version: String,
    essential: bool,
    /// As `Depends` has it.
    depends: String,
    provides: Vec<String>,
}

/// Installed packages by name.
pub(super) type Packages = BTreeMap<String, Package>;

/// Reads what `dpkg-query` says in [`FORMAT`].
pub(super) fn parse(text: &str) -> Packages {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<(String, Package)> {
    let fields: Vec<_> = line.split('\t').collect();
    let [name, version, status, essential, depends, provides] = *fields else {
        return None;
    };
    if !THERE.contains(&status) {
        return None;
    }
    let package = Package {
        version: version.to_owned(),
        essential: essential == "yes",
        depends: depends.to_owned(),
        provides: provides.split(',').map(|one| bare(one).to_owned()).collect(),
    };
    Some((name.to_owned(), package))
}

/// A name without version, architecture and space.
fn bare(relation: &str) -> &str {
    relation.trim().split([' ', '(', ':', '[']).next().unwrap_or_default()
}

/// Names of all packages that are needed for `wanted`, which is written as `Depends` is.
///
/// # Errors
/// Where nothing installed is or provides one of the wanted.
pub(super) fn closure(
    packages: &Packages,
    wanted: &str,
    left_out: &[&str],
) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut open: Vec<_> = packages.iter().filter(|(_, package)| package.essential).collect();
    for group in groups(wanted) {
        let choice = choose(packages, group);
        ensure!(
            choice.is_some(),
            "not installed: {group}. `cargo xtask test` installs what tests need; the rest: apt-get install {}",
            bare(group)
        );
        open.extend(choice);
    }
    while let Some((name, package)) = open.pop() {
        if left_out.iter().any(|start| name.starts_with(start)) || !found.insert(name.clone()) {
            continue;
        }
        // What is not there, this host does without.
        open.extend(groups(&package.depends).filter_map(|group| choose(packages, group)));
    }
    Ok(found)
}

fn groups(depends: &str) -> impl Iterator<Item = &str> {
    depends.split(',').map(str::trim).filter(|group| !group.is_empty())
}

/// The first installed one of `a | b`, by its own name or as who provides it.
fn choose<'a>(packages: &'a Packages, group: &str) -> Option<(&'a String, &'a Package)> {
    group.split('|').map(bare).find_map(|name| {
        let provides =
            |(_, package): &(_, &Package)| package.provides.iter().any(|one| one == name);
        packages.get_key_value(name).or_else(|| packages.iter().find(provides))
    })
}

/// Whether a file of a package belongs on the disk.
pub(super) fn is_wanted(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    let library = !name.ends_with(STATIC_LIBRARY) || LINKED.contains(&name);
    // A folder is written without the slash at its end.
    let folder = format!("{path}/");
    library && !LEFT_OUT.iter().any(|part| folder.contains(part))
}

/// Links of an entry of `/var/lib/dpkg/alternatives`: name below `/etc/alternatives`, and the link that leads there.
pub(super) fn alternatives(name: &str, text: &str) -> Vec<(String, String)> {
    // How it is chosen; its own link; then name and link of each that follows it, up to an empty line.
    let mut lines = text.lines().skip(1);
    let mut found = Vec::new();
    let mut next = Some(name.to_owned());
    while let (Some(name), Some(link)) = (next, lines.next()) {
        found.push((name, link.to_owned()));
        next = lines.next().filter(|line| !line.is_empty()).map(str::to_owned);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "\
        bash\t5.2\tinstalled\tyes\tlibc6 (>= 2.36), base-files, \t\n\
        base-files\t12\tinstalled\t\t, awk\tbase\n\
        mawk\t1.3\tinstalled\t\tlibc6, \tawk\n\
        libc6\t2.36\tinstalled\t\t, libgcc-s1\t\n\
        libgcc-s1\t12\ttriggers-pending\t\tlibc6:any (>= 2), \t\n\
        postgresql-15\t15.2\tinstalled\t\tdebconf, locales | locales-all, libllvm14, libc6\t\n\
        locales-all\t2.36\tinstalled\t\t, \t\n\
        libllvm14\t14\tinstalled\t\tlibz3-4, \t\n\
        libz3-4\t4\tinstalled\t\t, \t\n\
        removed\t1\tconfig-files\t\t, \t\n\
        openjdk-17-jdk-headless\t17\tinstalled\t\t, libc6\tjava-compiler (= 17), java-sdk\n";

    #[test]
    fn a_closure_takes_what_is_installed() {
        let packages = parse(SAMPLE);
        assert!(!packages.contains_key("removed"));
        let check = |wanted: &str, expected: &str| {
            let names = closure(&packages, wanted, &["libllvm"]).expect("installed");
            assert_eq!(Vec::from_iter(names).join(" "), expected, "{wanted}");
        };
        check("", "base-files bash libc6 libgcc-s1 mawk");
        check(
            "postgresql-15, default-jdk | java-sdk",
            "base-files bash libc6 libgcc-s1 locales-all mawk openjdk-17-jdk-headless postgresql-15",
        );
    }

    #[test]
    fn what_is_wanted_and_not_there_is_named() {
        let error = closure(&parse(SAMPLE), "bash, tmux | screen", &[]).expect_err("no tmux");
        assert!(error.to_string().contains("not installed: tmux | screen"), "{error}");
    }

    #[test]
    fn files_for_reading_stay_behind() {
        for path in ["/usr/bin/ss", "/usr/share/zoneinfo/UTC", "/usr/lib/x86_64-linux-gnu/libc.a"] {
            assert!(is_wanted(path), "{path}");
        }
        for path in [
            "/usr/share/man/man1/ss.1.gz",
            "/usr/share/doc",
            "/usr/lib/gcc/x86_64-linux-gnu/12/libasan.a",
            "/usr/lib/postgresql/15/lib/llvmjit.so",
        ] {
            assert!(!is_wanted(path), "{path}");
        }
    }

    #[test]
    fn alternatives_have_followers() {
        let text = "auto\n/usr/bin/java\njava.1.gz\n/usr/share/man/man1/java.1.gz\n\n/usr/lib/jvm/17/bin/java\n1711\n";
        let expected = [("java", "/usr/bin/java"), ("java.1.gz", "/usr/share/man/man1/java.1.gz")]
            .map(|(name, link)| (name.to_owned(), link.to_owned()));
        assert_eq!(alternatives("java", text), expected);
        assert_eq!(alternatives("awk", "auto\n/usr/bin/awk\n\n/usr/bin/mawk\n5\n").len(), 1);
    }
}
