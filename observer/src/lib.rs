//! The user half of `observer`. Read `agent.rs` first.

pub mod cli;
pub mod config;
pub mod dns;
pub mod host;
pub mod control;
pub mod export;
pub mod identity;
pub mod kernel;
pub mod signal;
pub mod snapshot;
pub mod symbolize;
pub mod telemetry;
pub mod top;
