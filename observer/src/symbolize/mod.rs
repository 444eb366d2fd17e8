//! Addresses of stacks to names of functions, on demand.
//!
//! Symbol tables are large (Node's takes tens of MiB), so a short-lived child process, `observer symbolize`, loads them and
//! takes them with it. It reads one [`Request`] as JSON on its standard input and answers with one [`Response`] on its
//! standard output. [`Client`] is the agent's side.

mod client;
mod kernel;
mod leaf;
mod maps;
mod perf_map;
mod user;

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
};

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::child;

pub use self::{
    client::{Client, Error, MAX_WAITING},
    kernel::kernel_symbols,
};

/// Stacks in a request.
pub const MAX_STACKS: usize = 256;

/// Frames of a stack: what the kernel gives (kernel.perf_event_max_stack).
pub const MAX_FRAMES: usize = 127;

/// Bytes of a request or an answer.
pub const MAX_MESSAGE: u64 = 16 * 1024 * 1024;

/// Bytes kept of a name. C++ templates can fill pages.
pub const MAX_NAME: usize = 256;

/// What to name. Stacks have the innermost frame first; all frames behind it are return addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Process that the user stacks are of.
    pub pid: u32,
    /// User stacks.
    #[serde(default)]
    pub stacks: Vec<Vec<u64>>,
    /// For each user stack the word at its top, 0 if unknown: the return address, if the innermost function has no frame.
    #[serde(default)]
    pub leaf_returns: Vec<u64>,
    /// Kernel stacks.
    #[serde(default)]
    pub kernel_stacks: Vec<Vec<u64>>,
}

/// Names, in the order and number of the request. Where no symbol is known: `binary+0xOFFSET` of the file, or `0xADDRESS`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// Names of the user stacks' frames.
    #[serde(default)]
    pub stacks: Vec<Vec<String>>,
    /// Names of the kernel stacks' frames.
    #[serde(default)]
    pub kernel_stacks: Vec<Vec<String>>,
    /// Why names are missing; empty if nothing went wrong.
    #[serde(default)]
    pub problems: Vec<String>,
}

impl Request {
    /// Whether it keeps the bounds.
    fn check(&self) -> anyhow::Result<()> {
        let stacks = self.stacks.len() + self.kernel_stacks.len();
        ensure!(
            stacks <= MAX_STACKS,
            "{stacks} stacks in a request; at most {MAX_STACKS} are answered"
        );
        if let Some(stack) =
            self.stacks.iter().chain(&self.kernel_stacks).find(|stack| stack.len() > MAX_FRAMES)
        {
            bail!("a stack of {} frames; at most {MAX_FRAMES} are answered", stack.len());
        }
        Ok(())
    }
}

/// Names what a request asks for. Reads `/proc` and the binaries of the process; a name that cannot be had is an address, so
/// there is an answer to any request that keeps the bounds.
pub fn answer(request: &Request) -> Response {
    let mut response = Response::default();
    if let Err(problem) = request.check() {
        response.problems.push(format!("{problem:#}"));
        return response;
    }
    let stacks = leaf::with_callers(request.pid, &request.stacks, &request.leaf_returns);
    response.stacks =
        named(&stacks, |addresses| user::names(request.pid, addresses, &mut response.problems));
    response.kernel_stacks =
        named(&request.kernel_stacks, |addresses| kernel::names(addresses, &mut response.problems));
    response
}

/// The child: one request in, one answer out. It is the first to go should memory run out meanwhile.
///
/// Errors: the request is no JSON of a [`Request`], or the pipes are closed.
pub fn child_main() -> anyhow::Result<()> {
    child::prepare(c"observer-names");
    let mut text = Vec::new();
    io::stdin()
        .lock()
        .take(MAX_MESSAGE)
        .read_to_end(&mut text)
        .context("cannot read the request on standard input")?;
    let request: Request = serde_json::from_slice(&text).context(
        "the request on standard input is not of the form {\"pid\": 1, \"stacks\": [[4198400]]}",
    )?;
    let mut output = io::stdout().lock();
    serde_json::to_writer(&mut output, &answer(&request))
        .context("cannot write the answer to standard output")?;
    output.flush().context("cannot write the answer to standard output")
}

/// Names stacks through a function that names sorted distinct addresses. A return address lies behind the call, maybe already
/// in the next function, so the byte before it is looked up.
fn named(
    stacks: &[Vec<u64>],
    names: impl FnOnce(&[u64]) -> Vec<Option<String>>,
) -> Vec<Vec<String>> {
    let looked_up = |(frame, &address): (usize, &u64)| address.saturating_sub(u64::from(frame > 0));
    let mut addresses: Vec<u64> =
        stacks.iter().flat_map(|stack| stack.iter().enumerate().map(looked_up)).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let names: BTreeMap<u64, Option<String>> = match addresses.is_empty() {
        true => BTreeMap::new(),
        false => addresses.iter().copied().zip(names(&addresses)).collect(),
    };
    let name = |(frame, address): (usize, &u64)| {
        let found = names.get(&looked_up((frame, address))).cloned().flatten();
        found.unwrap_or_else(|| format!("{address:#x}"))
    };
    stacks.iter().map(|stack| stack.iter().enumerate().map(name).collect()).collect()
}

/// A name without blanks around it and within [`MAX_NAME`].
fn trimmed(name: &str) -> String {
    let name = name.trim();
    name[..name.floor_char_boundary(MAX_NAME)].to_owned()
}

#[cfg(test)]
mod tests;
