//! The user half of `observer`. Read `agent.rs` first.

pub mod cli;
pub mod config;
pub mod export;
pub mod control;
pub mod identity;
pub mod signal;
pub mod snapshot;
pub mod telemetry;
pub mod top;
