//! From a tick's [`Batch`](crate::telemetry::Batch) to its destinations.

pub mod encode;
#[cfg(test)]
mod generate;
mod group;
pub mod json;
pub mod resource;
pub mod wire;

/// One of OTLP's three kinds of telemetry; each has its own service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtlpSignal {
    /// Spans.
    Traces,
    /// Metric points.
    Metrics,
    /// Log records.
    Logs,
}
