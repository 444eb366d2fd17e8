//! The five signals, each in the file or folder of its name, and the registry that export, `top`, docs and config read.

pub mod alloc;
pub mod limit;
pub mod oom;
pub mod sched;
pub mod tcp;
#[cfg(test)]
pub(crate) mod testing;
mod tick;

pub use self::tick::{
    MAX_ITEMS, Now, Output, PressureReading, Readings, Who, comm_bytes, comm_text, per_second,
    ratio, span_context,
};
use crate::{config::Setting, snapshot::Snapshot, telemetry::Metric, top::Table};

/// What the rest of the agent needs to know about a signal.
pub struct Signal {
    /// The word that names it in every folder, in the config and in the docs.
    pub name: &'static str,
    /// One sentence for people.
    pub help: &'static str,
    /// Every metric that it exports.
    pub metrics: &'static [&'static Metric],
    /// Its settings, keys starting with `<name>.`.
    pub settings: &'static [Setting],
    /// Its pane in `observer top`.
    pub table: fn(&Snapshot) -> Table,
}

/// All signals; the order is the order of panes, docs and config sections.
pub const ALL: &[&Signal] =
    &[&alloc::SIGNAL, &oom::SIGNAL, &tcp::SIGNAL, &sched::SIGNAL, &limit::SIGNAL];
