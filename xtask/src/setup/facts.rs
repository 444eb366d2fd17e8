//! Looks at this machine: which items are there, and what may be installed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    ROTEL_FOLDER,
    items::{BPF_LLVM, CROSS_TARGET, Check, ITEMS, Purpose},
    plan::{Facts, toolchain},
};
use crate::command::{command, find, is_root, output, succeeds};

/// Python of the distribution: the one that its packages serve, whatever is first in PATH.
pub(super) const PYTHON: &str = "/usr/bin/python3";

/// Reads the facts that the purpose needs.
pub(super) fn read(purpose: Purpose) -> Facts {
    let toolchain = toolchain(&installed_toolchains());
    let python = python_version();
    let missing = ITEMS
        .iter()
        .filter(|item| purpose.includes(item.purpose))
        .filter(|item| !is_there(item.check, &toolchain, &python))
        .collect();
    Facts {
        missing,
        root: is_root(),
        sudo: find("sudo").is_some(),
        apt: find("apt-get").is_some(),
        rustup: find("rustup").is_some(),
        toolchain,
        python,
    }
}

fn is_there(check: Check, toolchain: &str, python: &str) -> bool {
    match check {
        Check::Program(name) => find(name).is_some(),
        Check::File(pattern) => first_match(&pattern.replace("{python}", python)).is_some(),
        Check::Python(text) => succeeds(&mut command(&[PYTHON, "-c", text])),
        Check::Toolchain => {
            succeeds(&mut command(&["rustup", "run", toolchain, "rustc", "--version"]))
        }
        Check::RustSource => has_rust_source(toolchain),
        Check::BpfLinker => has_bpf_linker(),
        Check::Rotel => rotel_agent().is_some(),
        Check::Target => has_target(),
    }
}

/// Names and LLVM versions of the installed nightly toolchains.
fn installed_toolchains() -> Vec<(String, u32)> {
    let Ok(list) = output(&mut command(&["rustup", "toolchain", "list"])) else {
        return Vec::new();
    };
    let nightly = list
        .lines()
        .any(|line| line.starts_with("nightly-x86_64") || line.starts_with("nightly-aarch64"));
    let version = || output(&mut command(&["rustup", "run", "nightly", "rustc", "-vV"])).ok();
    match nightly.then(version).flatten().as_deref().and_then(llvm_of_rustc) {
        Some(llvm) => vec![("nightly".to_owned(), llvm)],
        None => Vec::new(),
    }
}

/// Major version in a line such as `LLVM version: 22.1.4`.
fn llvm_of_rustc(text: &str) -> Option<u32> {
    let version = text.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

fn has_rust_source(toolchain: &str) -> bool {
    let sysroot =
        output(&mut command(&["rustup", "run", toolchain, "rustc", "--print", "sysroot"]));
    sysroot.is_ok_and(|folder| {
        Path::new(folder.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file()
    })
}

/// Of the toolchain that builds the agent; that of the BPF half is another.
fn has_target() -> bool {
    let folder =
        output(&mut command(&["rustc", "--print", "target-libdir", "--target", CROSS_TARGET]));
    folder.is_ok_and(|folder| Path::new(folder.trim()).is_dir())
}

/// A linker that cannot tell its LLVM is taken as good: a build that fails then says so itself.
fn has_bpf_linker() -> bool {
    let Some(linker) = find("bpf-linker") else {
        return false;
    };
    let libraries = output(&mut command(&["ldd", &linker.to_string_lossy()])).unwrap_or_default();
    llvm_of_libraries(&libraries).is_none_or(|llvm| llvm >= BPF_LLVM)
}

/// Major version in a line such as `libLLVM.so.22.1 => ...` or `libLLVM-15.so.1 => ...`.
fn llvm_of_libraries(text: &str) -> Option<u32> {
    let rest = text.split("libLLVM").nth(1)?;
    let digits = rest.trim_start_matches(|c: char| !c.is_ascii_digit());
    digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Version of the distribution's Python, such as `3.11`.
pub(crate) fn python_version() -> String {
    let text = "import sys; print('%d.%d' % sys.version_info[:2])";
    let version = output(&mut command(&[PYTHON, "-c", text]));
    // No Python yet: its package and its library come in one installation, as Debian's default version.
    version.map_or_else(|_| "3".to_owned(), |version| version.trim().to_owned())
}

/// The receiver of the tests, if it is installed and starts.
pub(crate) fn rotel_agent() -> Option<PathBuf> {
    let agent = first_match(&format!("{ROTEL_FOLDER}/lib/*/site-packages/rotel/rotel-agent"))?;
    succeeds(&mut command(&[&agent.to_string_lossy(), "--version"])).then_some(agent)
}

/// First path that fits a pattern, in which `*` stands for any one folder name.
pub(crate) fn first_match(pattern: &str) -> Option<PathBuf> {
    let Some((folder, rest)) = pattern.split_once("/*/") else {
        return fs::exists(pattern).is_ok_and(|there| there).then(|| PathBuf::from(pattern));
    };
    let mut found: Vec<_> = fs::read_dir(folder)
        .ok()?
        .filter_map(Result::ok)
        .filter_map(|entry| first_match(&format!("{}/{rest}", entry.path().display())))
        .collect();
    found.sort();
    found.pop()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_llvm_are_read() {
        assert_eq!(llvm_of_rustc("release: 1.97.0-nightly\nLLVM version: 22.1.4\n"), Some(22));
        assert_eq!(llvm_of_rustc("release: 1.97.0-nightly\n"), None);
        let check = |text: &str, expected| assert_eq!(llvm_of_libraries(text), expected);
        check("\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x7f)", Some(22));
        check("\tlibLLVM-15.so.1 => /lib/libLLVM-15.so.1 (0x7f)", Some(15));
        check("\tlibc.so.6 => /lib/libc.so.6 (0x7f)", None);
    }

    #[test]
    fn patterns_match_one_folder() {
        assert!(first_match("src/*/plan.rs").is_some_and(|path| path.ends_with("setup/plan.rs")));
        assert_eq!(first_match("src/*/no-such-file"), None);
        assert_eq!(first_match("no-such-folder/*/x"), None);
    }
}
