//! What the agent's child processes have in common: short lives, for what is better done in a process of its own.

use std::ffi::CStr;

/// Makes this process the first to go should memory run out, and gives it a name: else it is called `exe` in lists of
/// processes, and in the agent's own findings.
pub fn prepare(name: &CStr) {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "1000") {
        tracing::debug!("oom_score_adj stays as it is: {error}");
    }
    if let Err(error) = rustix::thread::set_name(name) {
        tracing::debug!("the name of the process stays as it is: {error}");
    }
}
