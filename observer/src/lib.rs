//! The user half of `observer`. Read `agent.rs` first.

pub mod agent;
pub mod alert;
pub mod check;
mod child;
pub mod cli;
pub mod config;
pub mod control;
pub mod detect;
pub mod dns;
pub mod export;
pub mod files;
pub mod host;
pub mod identity;
pub mod kernel;
pub mod limits;
mod line_file;
pub mod lines;
pub mod proc;
mod queue_thread;
pub mod record;
pub mod replay;
pub mod sampler;
pub mod signal;
pub mod snapshot;
pub mod symbolize;
pub mod telemetry;
pub mod top;
