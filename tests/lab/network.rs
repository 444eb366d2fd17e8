//! A network of one's own for scenarios that change it: witness, agent and programs are in it together.

use std::{env, os::unix::process::CommandExt as _, process::Command};

/// Brings loopback up and becomes what was asked for.
const INSIDE: &str = r#"ip link set lo up && exec "$0" "$@""#;

/// Says that this has been done.
const DONE: &str = "LAB_OWN_NETWORK";

/// Starts this program again in a network namespace of its own; comes back if that has been done, or with what is in the way.
pub fn isolate() -> Result<(), String> {
    if env::var_os(DONE).is_some() {
        return Ok(());
    }
    let own = env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", INSIDE]).arg(own).args(env::args_os().skip(1));
    Err(format!("unshare --net: {}", command.env(DONE, "1").exec()))
}
