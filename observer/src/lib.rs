//! The user half of `observer`. Read `agent.rs` first.

pub mod config;
pub mod dns;
pub mod host;
pub mod identity;
pub mod signal;
pub mod snapshot;
pub mod symbolize;
pub mod telemetry;
pub mod top;
