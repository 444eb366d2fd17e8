//! `cargo xtask run`: from a clone to the first line about this host.

use std::{env, os::unix::process::CommandExt as _};

use anyhow::{Result, bail};

use crate::{
    command::{find, is_root, line, run as run_command},
    setup::{self, Purpose},
};

/// The product, as `cargo build --release` leaves it.
pub(crate) const BINARY: &str = "target/release/observer";

/// Installs, builds, and becomes the agent.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let tools = setup::ensure(Purpose::Run)?;
    run_command(&mut tools.cargo(&["build", "--release", "--package", "observer"]))?;
    let args = if args.is_empty() { &["run".to_owned()] } else { args };
    let mut words = privileged()?;
    words.extend([BINARY.to_owned()]);
    words.extend_from_slice(args);
    let mut agent = crate::command::command(&words);
    println!("$ {}", line(&agent));
    Err(agent.exec().into())
}

/// What stands before the command so that it runs as root.
fn privileged() -> Result<Vec<String>> {
    if is_root() {
        return Ok(Vec::new());
    }
    if find("sudo").is_none() {
        bail!(
            "observer loads BPF programs and must run as root, and there is no sudo here.\n\
             It is built; start it as root:\n\n    su -c '{BINARY} run'\n"
        );
    }
    Ok(sudo(env::vars().map(|(name, _)| name)))
}

/// `sudo` that lets the agent's own settings through.
pub(crate) fn sudo(names: impl Iterator<Item = String>) -> Vec<String> {
    let kept: Vec<_> =
        names.filter(|name| name.starts_with("OBSERVER_") || name.starts_with("OTEL_")).collect();
    let mut words = vec!["sudo".to_owned()];
    if !kept.is_empty() {
        words.push(format!("--preserve-env={}", kept.join(",")));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_pass_through_sudo() {
        let check = |names: &[&str], expected: &[&str]| {
            assert_eq!(sudo(names.iter().map(|name| (*name).to_owned())), expected);
        };
        check(&["PATH", "HOME"], &["sudo"]);
        check(
            &["PATH", "OTEL_SERVICE_NAME", "OBSERVER_TCP_PORTS"],
            &["sudo", "--preserve-env=OTEL_SERVICE_NAME,OBSERVER_TCP_PORTS"],
        );
    }
}
