//! Pure: from what this machine has to the steps that make it ready, or to a refusal that says what to type.

use std::fmt;

use super::items::{
    BPF_LINKER_VERSION, BPF_LLVM, BPF_NIGHTLY, CROSS_TARGET, Check, DEFAULT_TOOLCHAIN, Item, Source,
};

/// What this machine has, as far as the purpose needs it.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// Items that are not there, in the order of installation.
    pub(crate) missing: Vec<&'static Item>,
    /// This process runs as root.
    pub(crate) root: bool,
    /// `sudo` is there.
    pub(crate) sudo: bool,
    /// `apt-get` is there.
    pub(crate) apt: bool,
    /// `rustup` is there.
    pub(crate) rustup: bool,
    /// Toolchain that the BPF half is or will be compiled with.
    pub(crate) toolchain: String,
    /// Version of the system's Python, such as `3.11`.
    pub(crate) python: String,
}

/// One thing to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Install, of each list, the first package that the distribution has.
    Packages(Vec<Choice>),
    /// Run this command.
    Run(Vec<String>),
    /// Run this command with the programs of LLVM in front of PATH.
    RunWithLlvm(Vec<String>),
    /// Make the virtual environment with the OTLP receiver.
    Rotel,
}

/// Packages of which any one will do, the preferred first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    /// What they bring.
    pub(crate) name: &'static str,
    /// Their names.
    pub(crate) any_of: Vec<String>,
    /// What to do where the distribution has none of them.
    pub(crate) elsewhere: &'static str,
}

/// Why a task cannot go on, and the command that helps.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Why.
    pub(crate) why: String,
    /// What to type.
    pub(crate) remedy: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.\nDo this, then start again:\n\n    {}\n", self.why, self.remedy)
    }
}

impl std::error::Error for Refusal {}

/// The toolchain for the BPF half: the first installed one whose LLVM the linker can read, else the tried one.
///
/// `installed` holds names and LLVM versions.
pub(crate) fn toolchain(installed: &[(String, u32)]) -> String {
    let suits =
        |wanted: &str| installed.iter().any(|(name, llvm)| name == wanted && *llvm <= BPF_LLVM);
    let name = if suits(DEFAULT_TOOLCHAIN) { DEFAULT_TOOLCHAIN } else { BPF_NIGHTLY };
    name.to_owned()
}

/// The steps that make the machine ready.
///
/// # Errors
/// A [`Refusal`] where something is missing that may not be installed from here.
pub(crate) fn plan(facts: &Facts) -> Result<Vec<Step>, Refusal> {
    let mut steps = Vec::new();
    let choices = choices(facts);
    if !choices.is_empty() {
        may_install_packages(facts, &choices)?;
        steps.push(Step::Packages(choices));
    }
    for item in &facts.missing {
        match item.source {
            Source::Package(_) => {}
            Source::Rustup if !facts.rustup => return Err(no_rustup(item)),
            Source::Rustup if item.check == Check::Target => {
                steps.push(run(&["rustup", "target", "add", CROSS_TARGET]));
            }
            Source::Rustup if item.name == "rust-src" => {
                steps.push(run(&[
                    "rustup",
                    "component",
                    "add",
                    "rust-src",
                    "--toolchain",
                    &facts.toolchain,
                ]));
            }
            Source::Rustup => {
                steps.push(run(&[
                    "rustup",
                    "toolchain",
                    "install",
                    &facts.toolchain,
                    "--profile",
                    "minimal",
                ]));
            }
            Source::Cargo => steps.push(Step::RunWithLlvm(bpf_linker())),
            Source::Pip => steps.push(Step::Rotel),
        }
    }
    Ok(steps)
}

fn choices(facts: &Facts) -> Vec<Choice> {
    let choice = |item: &&'static Item| match item.source {
        Source::Package(names) => Some(Choice {
            name: item.name,
            any_of: names.iter().map(|name| name.replace("{python}", &facts.python)).collect(),
            elsewhere: item.elsewhere,
        }),
        _ => None,
    };
    facts.missing.iter().filter_map(choice).collect()
}

fn may_install_packages(facts: &Facts, choices: &[Choice]) -> Result<(), Refusal> {
    let names: Vec<_> = choices.iter().map(|choice| choice.name).collect();
    let packages: Vec<_> = choices.iter().map(|choice| choice.any_of[0].as_str()).collect();
    let install = format!(
        "apt-get update && apt-get install --no-install-recommends -y {}",
        packages.join(" ")
    );
    if !facts.apt {
        return Err(Refusal {
            why: format!(
                "{} missing, and this is not Debian or Ubuntu (no apt-get)",
                names.join(", ")
            ),
            remedy: format!("install what your distribution calls {}", packages.join(", ")),
        });
    }
    if !facts.root && !facts.sudo {
        return Err(Refusal {
            why: format!(
                "{} missing, and packages can be installed only by root (no sudo here)",
                names.join(", ")
            ),
            remedy: format!("su -c '{install}'"),
        });
    }
    Ok(())
}

fn no_rustup(item: &Item) -> Refusal {
    Refusal {
        why: format!(
            "{} missing ({}), and this Rust was not installed by rustup",
            item.name, item.why
        ),
        remedy: "curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh".to_owned(),
    }
}

/// The packages to install: of each choice, the first that is available.
///
/// # Errors
/// A [`Refusal`] that names the first choice of which the distribution has nothing.
pub(crate) fn resolve(
    choices: &[Choice],
    available: impl Fn(&str) -> bool,
) -> Result<Vec<String>, Refusal> {
    let pick = |choice: &Choice| {
        let names = choice.any_of.join(" or ");
        choice.any_of.iter().find(|name| available(name)).cloned().ok_or_else(|| Refusal {
            why: format!("{} missing, and this distribution has no package {names}", choice.name),
            remedy: match choice.elsewhere {
                "" => format!("install {} by hand", choice.name),
                elsewhere => elsewhere.to_owned(),
            },
        })
    };
    choices.iter().map(pick).collect()
}

fn bpf_linker() -> Vec<String> {
    let feature = format!("llvm-{BPF_LLVM}");
    [
        "cargo",
        "install",
        "bpf-linker",
        "--version",
        BPF_LINKER_VERSION,
        "--force",
        "--no-default-features",
        "--features",
        &feature,
    ]
    .map(str::to_owned)
    .to_vec()
}

fn run(words: &[&str]) -> Step {
    Step::Run(words.iter().map(|word| (*word).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::{
        super::items::{ITEMS, Purpose},
        *,
    };

    fn bare(purpose: Purpose) -> Facts {
        Facts {
            missing: ITEMS.iter().filter(|item| purpose.includes(item.purpose)).collect(),
            root: true,
            sudo: false,
            apt: true,
            rustup: true,
            toolchain: BPF_NIGHTLY.to_owned(),
            python: "3.11".to_owned(),
        }
    }

    fn shown(step: &Step) -> String {
        match step {
            Step::Packages(choices) => {
                let names = choices.iter().map(|choice| choice.any_of.join("|"));
                format!("packages {}", names.collect::<Vec<_>>().join(" "))
            }
            Step::Run(words) | Step::RunWithLlvm(words) => words.join(" "),
            Step::Rotel => "rotel".to_owned(),
        }
    }

    fn check(facts: &Facts, expected: &[&str]) {
        let steps = plan(facts).expect("allowed");
        assert_eq!(steps.iter().map(shown).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_ready_machine_needs_nothing() {
        check(&Facts::default(), &[]);
    }

    #[test]
    fn a_bare_machine_gets_everything_in_order() {
        check(
            &bare(Purpose::Run),
            &[
                "packages build-essential libc6-dev llvm-22-dev",
                "rustup toolchain install nightly-2026-05-20 --profile minimal",
                "rustup component add rust-src --toolchain nightly-2026-05-20",
                "cargo install bpf-linker --version 0.13.0 --force --no-default-features --features llvm-22",
            ],
        );
        let test = plan(&bare(Purpose::Test)).expect("allowed");
        assert!(shown(&test[0]).contains("postgresql redis-server nodejs"), "{test:?}");
        assert!(shown(&test[0]).ends_with("python3-venv libpython3.11"), "{test:?}");
        assert_eq!(test.last(), Some(&Step::Rotel));
        assert!(!shown(&test[0]).contains("libbpf-tools"), "only bench compares with others");
    }

    #[test]
    fn another_architecture_needs_no_servers() {
        let facts = bare(Purpose::Cross);
        let steps = plan(&facts).expect("allowed");
        assert!(shown(&steps[0]).ends_with("qemu-system-arm"), "{steps:?}");
        assert!(!shown(&steps[0]).contains("postgresql"), "{steps:?}");
        let target = "rustup target add aarch64-unknown-linux-musl";
        assert_eq!(steps.last().map(shown).as_deref(), Some(target));
        assert!(!shown(&plan(&bare(Purpose::Bench)).expect("allowed")[0]).contains("aarch64"));
    }

    #[test]
    fn only_what_is_missing_is_installed() {
        let facts = Facts {
            missing: ITEMS.iter().filter(|item| item.name == "rust-src").collect(),
            toolchain: "nightly".to_owned(),
            apt: false,
            ..bare(Purpose::Run)
        };
        check(&facts, &["rustup component add rust-src --toolchain nightly"]);
    }

    #[test]
    fn refusals_give_the_command() {
        let check = |facts: Facts, why: &str, remedy: &str| {
            let refusal = plan(&facts).expect_err("refused");
            assert!(refusal.why.contains(why), "{refusal:?}");
            assert!(refusal.remedy.contains(remedy), "{refusal:?}");
        };
        check(
            Facts { root: false, ..bare(Purpose::Run) },
            "only by root",
            "apt-get install --no-install-recommends -y build-essential libc6-dev llvm-22-dev",
        );
        check(Facts { apt: false, ..bare(Purpose::Run) }, "no apt-get", "llvm-22-dev");
        check(Facts { rustup: false, ..bare(Purpose::Run) }, "rustup", "https://sh.rustup.rs");
    }

    #[test]
    fn sudo_is_as_good_as_root() {
        let facts = Facts { root: false, sudo: true, ..bare(Purpose::Run) };
        assert!(plan(&facts).is_ok());
    }

    #[test]
    fn the_first_available_package_is_taken() {
        let choices = choices(&bare(Purpose::Test));
        let all = resolve(&choices, |_| true).expect("all there");
        assert!(all.contains(&"default-jdk-headless".to_owned()));
        let other =
            resolve(&choices, |name| name != "default-jdk-headless").expect("another will do");
        assert!(other.contains(&"openjdk-17-jdk-headless".to_owned()));
        let refusal = resolve(&choices, |name| name != "llvm-22-dev").expect_err("nothing will do");
        assert!(refusal.why.contains("LLVM 22"), "{refusal:?}");
        assert!(refusal.remedy.contains("llvm.sh 22"), "{refusal:?}");
    }

    #[test]
    fn a_nightly_that_the_linker_can_read_is_used() {
        let check = |installed: &[(&str, u32)], expected: &str| {
            let installed: Vec<_> =
                installed.iter().map(|(name, llvm)| ((*name).to_owned(), *llvm)).collect();
            assert_eq!(toolchain(&installed), expected);
        };
        check(&[], BPF_NIGHTLY);
        check(&[("nightly", 22), ("stable", 22)], "nightly");
        check(&[("nightly", 23)], BPF_NIGHTLY);
        check(&[("nightly", 23), (BPF_NIGHTLY, 22)], BPF_NIGHTLY);
    }
}
