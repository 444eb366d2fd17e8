//! The user half of `observer`. Read `agent.rs` first.

pub mod cli;
pub mod config;
pub mod host;
pub mod control;
pub mod export;
pub mod identity;
pub mod kernel;
pub mod signal;
pub mod snapshot;
pub mod telemetry;
pub mod top;
