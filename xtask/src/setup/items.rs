//! Everything that the tasks may install: what, why, how one sees that it is there, and where it comes from.

/// LLVM of `bpf-linker`; it must not be older than that of the compiler whose bitcode it links.
pub(crate) const BPF_LLVM: u32 = 22;

/// Toolchain that `observer/build.rs` takes by itself.
pub(crate) const DEFAULT_TOOLCHAIN: &str = "nightly";

/// Toolchain for the BPF half where no `nightly` with a suitable LLVM is installed: tried, and with LLVM 22.
pub(crate) const BPF_NIGHTLY: &str = "nightly-2026-05-20";

/// Version of `bpf-linker`.
pub(crate) const BPF_LINKER_VERSION: &str = "0.13.0";

/// Version of the OTLP receiver that the tests send to.
pub(crate) const ROTEL_VERSION: &str = "0.0.1a15";

/// Version of PM2, the process manager of the incidents that are played again.
pub(crate) const PM2_VERSION: &str = "7.0.4";

/// Version of node-postgres (npm: pg), the database client of their applications.
pub(crate) const NODE_POSTGRES_VERSION: &str = "8.23.1";

/// Target of programs for aarch64: they need no library, so they run in a guest that has none.
pub(crate) const CROSS_TARGET: &str = "aarch64-unknown-linux-musl";

/// What the machine is made ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// Build the agent and run it.
    Run,
    /// Boot other kernels in virtual machines.
    Vm,
    /// Run all tests.
    Test,
    /// Measure, beside the tools of others.
    Bench,
    /// Build for aarch64, and run it in virtual machines.
    Cross,
}

impl Purpose {
    /// Whether what another purpose needs is needed as well: each includes the ones before it, but of another architecture
    /// one only builds and boots.
    pub(crate) fn includes(self, other: Self) -> bool {
        match self {
            Self::Cross => other <= Self::Vm || other == Self::Cross,
            _ => other <= self,
        }
    }
}

/// How one sees that an item is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Check {
    /// A program in PATH or a system folder.
    Program(&'static str),
    /// A file; one `*` stands for any folder name.
    File(&'static str),
    /// `python3 -c` with this text succeeds on the system's Python.
    Python(&'static str),
    /// A compiler for the BPF half, and its `rust-src`: see `plan.rs`.
    Toolchain,
    /// `rust-src` of that compiler.
    RustSource,
    /// `bpf-linker`, linked with an LLVM that is new enough.
    BpfLinker,
    /// The test receiver, in its own virtual environment.
    Rotel,
    /// Rust's library for [`CROSS_TARGET`].
    Target,
}

/// Where an item comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The first of these Debian or Ubuntu packages that the distribution has; `{python}` stands for 3.11 and the like.
    Package(&'static [&'static str]),
    /// rustup.
    Rustup,
    /// crates.io.
    Cargo,
    /// PyPI, in a virtual environment under `target/`.
    Pip,
}

/// Something that a task needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Item {
    /// What it is called.
    pub(crate) name: &'static str,
    /// Why it is needed.
    pub(crate) why: &'static str,
    /// The first purpose that needs it.
    pub(crate) purpose: Purpose,
    /// How one sees that it is there.
    pub(crate) check: Check,
    /// Where it comes from.
    pub(crate) source: Source,
    /// What to do where the distribution lacks it; empty if the name says all.
    pub(crate) elsewhere: &'static str,
}

const fn item(
    name: &'static str,
    why: &'static str,
    purpose: Purpose,
    check: Check,
    source: Source,
) -> Item {
    Item { name, why, purpose, check, source, elsewhere: "" }
}

/// All items; an item is installed after those above it.
pub(crate) const ITEMS: &[Item] = {
    use Check::{BpfLinker, File, Program, Python, Rotel, RustSource, Target, Toolchain};
    use Purpose::{Bench, Cross, Run, Test, Vm};
    use Source::{Cargo, Package, Pip, Rustup};
    &[
        item("cc", "links Rust programs", Run, Program("cc"), Package(&["build-essential"])),
        item(
            "C library headers",
            "builds the TLS library",
            Run,
            File("/usr/include/stdlib.h"),
            Package(&["libc6-dev"]),
        ),
        Item {
            elsewhere: "add LLVM's own packages as root: curl -fsSLO https://apt.llvm.org/llvm.sh && bash llvm.sh 22 \
                        && apt-get install -y llvm-22-dev",
            ..item(
                "LLVM 22",
                "bpf-linker is built on it",
                Run,
                File("/usr/lib/llvm-22/include/llvm-c/Core.h"),
                Package(&["llvm-22-dev"]),
            )
        },
        item("nightly Rust", "compiles for the BPF target", Run, Toolchain, Rustup),
        item("rust-src", "core is built from source for the BPF target", Run, RustSource, Rustup),
        item("bpf-linker", "links the BPF half", Run, BpfLinker, Cargo),
        item(
            "QEMU",
            "emulates machines with other kernels",
            Vm,
            Program("qemu-system-x86_64"),
            Package(&["qemu-system-x86"]),
        ),
        item(
            "depmod",
            "orders modules of other kernels",
            Vm,
            Program("depmod"),
            Package(&["kmod"]),
        ),
        item("xz", "unpacks modules of other kernels", Vm, Program("xz"), Package(&["xz-utils"])),
        item(
            "PostgreSQL",
            "tests watch real connections to it",
            Test,
            File("/usr/lib/postgresql/*/bin/postgres"),
            Package(&["postgresql"]),
        ),
        item(
            "Redis",
            "tests watch real connections to it",
            Test,
            Program("redis-server"),
            Package(&["redis-server"]),
        ),
        item("Node.js", "tests block its event loop", Test, Program("node"), Package(&["nodejs"])),
        item(
            "Java compiler",
            "tests watch a JVM that runs a source file",
            Test,
            Program("javac"),
            Package(&["default-jdk-headless", "openjdk-17-jdk-headless"]),
        ),
        item(
            "ss",
            "tests compare with what it says of sockets",
            Test,
            Program("ss"),
            Package(&["iproute2"]),
        ),
        item(
            "tmux",
            "tests drive `observer top` in a terminal",
            Test,
            Program("tmux"),
            Package(&["tmux"]),
        ),
        item("gcc", "tests compile small C loads", Test, Program("gcc"), Package(&["gcc"])),
        item(
            "Python's venv",
            "holds the OTLP receiver of the tests",
            Test,
            Python("import venv, ensurepip"),
            Package(&["python3-venv"]),
        ),
        item(
            "Python's library",
            "the OTLP receiver of the tests links it",
            Test,
            File("/usr/lib/*/libpython{python}.so.1.0"),
            Package(&["libpython{python}"]),
        ),
        item("rotel", "the OTLP receiver of the tests", Test, Rotel, Pip),
        item(
            "perf",
            "its scheduler benchmarks are workloads",
            Bench,
            Program("perf"),
            Package(&["linux-perf", "linux-tools-generic"]),
        ),
        item(
            "redis-benchmark",
            "workload",
            Bench,
            Program("redis-benchmark"),
            Package(&["redis-tools"]),
        ),
        item(
            "pgbench",
            "workload",
            Bench,
            File("/usr/lib/postgresql/*/bin/pgbench"),
            Package(&["postgresql-contrib", "postgresql"]),
        ),
        item(
            "libbpf-tools",
            "what we compare with",
            Bench,
            Program("runqlat"),
            Package(&["libbpf-tools"]),
        ),
        item(
            "bpftool",
            "reads the kernel's statistics of BPF programs",
            Bench,
            Program("bpftool"),
            Package(&["bpftool", "linux-tools-generic"]),
        ),
        item(
            "bpftrace",
            "attaches an empty program, the floor of these statistics",
            Bench,
            Program("bpftrace"),
            Package(&["bpftrace"]),
        ),
        item("Rust for aarch64", "compiles for it", Cross, Target, Rustup),
        item(
            "C compiler for aarch64",
            "builds the TLS library, and links",
            Cross,
            Program("aarch64-linux-gnu-gcc"),
            Package(&["gcc-aarch64-linux-gnu"]),
        ),
        item(
            "C library headers for aarch64",
            "build the TLS library",
            Cross,
            File("/usr/aarch64-linux-gnu/include/stdlib.h"),
            Package(&["libc6-dev-arm64-cross"]),
        ),
        item(
            "QEMU for aarch64",
            "emulates its machines",
            Cross,
            Program("qemu-system-aarch64"),
            Package(&["qemu-system-arm"]),
        ),
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_item_names_the_version_that_the_linker_is_built_with() {
        let llvm = ITEMS.iter().find(|item| item.name == format!("LLVM {BPF_LLVM}"));
        let packages = [format!("llvm-{BPF_LLVM}-dev")];
        match llvm.expect("LLVM is an item").source {
            Source::Package(names) => assert_eq!(names, packages),
            other => panic!("{other:?}"),
        }
    }
}
