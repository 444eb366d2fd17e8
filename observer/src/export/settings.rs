//! Settings of the section `export`, with the standard variables that also set them
//! (opentelemetry-specification, protocol/exporter.md and configuration/sdk-environment-variables.md).

use crate::config::{Kind, Setting};

const SECOND_MS: u64 = 1000;
const HOUR_MS: u64 = 3600 * SECOND_MS;
const MIB: u64 = 1024 * 1024;

/// What a setting of one signal says when the common one is to be used.
pub(super) const INHERIT: &str = "inherit";
pub(super) const GRPC: &str = "grpc";
pub(super) const HTTP: &str = "http/protobuf";
pub(super) const GZIP: &str = "gzip";
pub(super) const NONE: &str = "none";

/// How one kind of telemetry is sent: the settings that exist in common and once more per signal.
#[derive(Debug, Clone, Copy)]
pub struct Otlp {
    /// Where to. In common: the base, to which HTTP adds `/v1/traces` and so on. Per signal: taken as it is.
    pub endpoint: Setting,
    /// `grpc` or `http/protobuf`.
    pub protocol: Setting,
    /// `name=value` pairs sent with every request.
    pub headers: Setting,
    /// `none` or `gzip`.
    pub compression: Setting,
    /// Longest time for one request.
    pub timeout: Setting,
    /// Whether a gRPC endpoint without a scheme is plain.
    pub insecure: Setting,
    /// PEM file of the certificates to trust instead of the system's.
    pub certificate: Setting,
    /// PEM file of our certificate.
    pub client_certificate: Setting,
    /// PEM file of its key.
    pub client_key: Setting,
}

const fn setting(
    key: &'static str,
    kind: Kind,
    default: &'static str,
    otel: &'static [&'static str],
    help: &'static str,
) -> Setting {
    Setting { key, kind, default, otel, help }
}

macro_rules! per_signal {
    ($key:literal, $var:literal, $what:literal) => {
        Otlp {
            endpoint: setting(
                concat!("export.", $key, "_endpoint"),
                Kind::Text,
                "",
                &[concat!("OTEL_EXPORTER_OTLP_", $var, "_ENDPOINT")],
                concat!(
                    "Where ",
                    $what,
                    " go instead of export.endpoint; taken as it is, no path is added."
                ),
            ),
            protocol: setting(
                concat!("export.", $key, "_protocol"),
                Kind::Choice(&[INHERIT, HTTP, GRPC]),
                INHERIT,
                &[concat!("OTEL_EXPORTER_OTLP_", $var, "_PROTOCOL")],
                concat!("Transport for ", $what, "; `inherit` is export.protocol."),
            ),
            headers: setting(
                concat!("export.", $key, "_headers"),
                Kind::Secret,
                "",
                &[concat!("OTEL_EXPORTER_OTLP_", $var, "_HEADERS")],
                concat!("Headers for ", $what, " instead of export.headers."),
            ),
            compression: setting(
                concat!("export.", $key, "_compression"),
                Kind::Choice(&[INHERIT, NONE, GZIP]),
                INHERIT,
                &[concat!("OTEL_EXPORTER_OTLP_", $var, "_COMPRESSION")],
                concat!("Compression of ", $what, "; `inherit` is export.compression."),
            ),
            timeout: setting(
                concat!("export.", $key, "_timeout"),
                Kind::Duration { min_ms: 0, max_ms: HOUR_MS },
                "0s",
                &[concat!("OTEL_EXPORTER_OTLP_", $var, "_TIMEOUT")],
                concat!("Longest time for a request with ", $what, "; 0s is export.timeout."),
            ),
            insecure: setting(
                concat!("export.", $key, "_insecure"),
                Kind::Choice(&[INHERIT, "true", "false"]),
                INHERIT,
                &[concat!("OTEL_EXPORTER_OTLP_", $var, "_INSECURE")],
                concat!("Whether a gRPC endpoint without a scheme is plain, for ", $what, "."),
            ),
            certificate: setting(
                concat!("export.", $key, "_certificate"),
                Kind::Text,
                "",
                &[concat!("OTEL_EXPORTER_OTLP_", $var, "_CERTIFICATE")],
                concat!("File for ", $what, " instead of export.certificate."),
            ),
            client_certificate: setting(
                concat!("export.", $key, "_client_certificate"),
                Kind::Text,
                "",
                &[concat!("OTEL_EXPORTER_OTLP_", $var, "_CLIENT_CERTIFICATE")],
                concat!("File for ", $what, " instead of export.client_certificate."),
            ),
            client_key: setting(
                concat!("export.", $key, "_client_key"),
                Kind::Text,
                "",
                &[concat!("OTEL_EXPORTER_OTLP_", $var, "_CLIENT_KEY")],
                concat!("File for ", $what, " instead of export.client_key."),
            ),
        }
    };
}

/// Common to the three signals.
pub const COMMON: Otlp = Otlp {
    endpoint: setting(
        "export.endpoint",
        Kind::Text,
        "",
        &["OTEL_EXPORTER_OTLP_ENDPOINT"],
        "Where telemetry goes, such as http://collector:4318. Empty: nothing leaves the host.",
    ),
    protocol: setting(
        "export.protocol",
        Kind::Choice(&[HTTP, GRPC]),
        HTTP,
        &["OTEL_EXPORTER_OTLP_PROTOCOL"],
        "Transport: OTLP over HTTP or over gRPC.",
    ),
    headers: setting(
        "export.headers",
        Kind::Secret,
        "",
        &["OTEL_EXPORTER_OTLP_HEADERS"],
        "Headers of every request, as name=value,name=value with %XX for what is not plain text.",
    ),
    compression: setting(
        "export.compression",
        Kind::Choice(&[NONE, GZIP]),
        NONE,
        &["OTEL_EXPORTER_OTLP_COMPRESSION"],
        "Compression of requests; switched off by itself where the destination refuses it.",
    ),
    timeout: setting(
        "export.timeout",
        Kind::Duration { min_ms: 1, max_ms: HOUR_MS },
        "10s",
        &["OTEL_EXPORTER_OTLP_TIMEOUT"],
        "Longest time for one request with its answer; a request that takes longer is sent again.",
    ),
    insecure: setting(
        "export.insecure",
        Kind::Bool,
        "false",
        &["OTEL_EXPORTER_OTLP_INSECURE"],
        "Whether a gRPC endpoint without a scheme is plain instead of TLS.",
    ),
    certificate: setting(
        "export.certificate",
        Kind::Text,
        "",
        &["OTEL_EXPORTER_OTLP_CERTIFICATE"],
        "PEM file of the certificates to trust; empty: those of the system.",
    ),
    client_certificate: setting(
        "export.client_certificate",
        Kind::Text,
        "",
        &["OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"],
        "PEM file of the certificate chain by which the agent shows who it is; needs export.client_key.",
    ),
    client_key: setting(
        "export.client_key",
        Kind::Text,
        "",
        &["OTEL_EXPORTER_OTLP_CLIENT_KEY"],
        "PEM file of the private key of export.client_certificate.",
    ),
};

/// What differs for spans.
pub const TRACES: Otlp = per_signal!("traces", "TRACES", "traces");
/// What differs for metric points.
pub const METRICS: Otlp = per_signal!("metrics", "METRICS", "metrics");
/// What differs for events.
pub const LOGS: Otlp = per_signal!("logs", "LOGS", "logs");

/// Whether spans are sent.
pub const TRACES_EXPORTER: Setting = setting(
    "export.traces",
    Kind::Choice(&["otlp", NONE]),
    "otlp",
    &["OTEL_TRACES_EXPORTER"],
    "Whether traces leave the host (if there is an endpoint).",
);
/// Whether metric points are sent.
pub const METRICS_EXPORTER: Setting = setting(
    "export.metrics",
    Kind::Choice(&["otlp", NONE]),
    "otlp",
    &["OTEL_METRICS_EXPORTER"],
    "Whether metrics leave the host (if there is an endpoint).",
);
/// Whether events are sent.
pub const LOGS_EXPORTER: Setting = setting(
    "export.logs",
    Kind::Choice(&["otlp", NONE]),
    "otlp",
    &["OTEL_LOGS_EXPORTER"],
    "Whether logs leave the host (if there is an endpoint).",
);
/// Whether nothing is sent at all.
pub const DISABLED: Setting = setting(
    "export.disabled",
    Kind::Bool,
    "false",
    &["OTEL_SDK_DISABLED"],
    "Whether to send nothing, whatever the endpoints; local files are written all the same.",
);
/// Time between two readings of the metrics.
pub const METRIC_INTERVAL: Setting = setting(
    "export.metric_interval",
    Kind::Duration { min_ms: SECOND_MS, max_ms: HOUR_MS },
    "10s",
    &["OTEL_METRIC_EXPORT_INTERVAL"],
    "Time between two exports of the metrics.",
);
/// Attributes of every resource.
pub const RESOURCE_ATTRIBUTES: Setting = setting(
    "export.resource_attributes",
    Kind::Text,
    "",
    &["OTEL_RESOURCE_ATTRIBUTES"],
    "Attributes added to every resource, as key=value,key=value with %XX for what is not plain text.",
);
/// Name of the agent's own service.
pub const SERVICE_NAME: Setting = setting(
    "export.service_name",
    Kind::Text,
    "",
    &["OTEL_SERVICE_NAME"],
    "service.name of what is about the host; empty: observer. Processes keep their own.",
);
/// Bound of each signal's queue.
pub const QUEUE_SIZE: Setting = setting(
    "export.queue_size",
    Kind::Bytes { min: 4 * MIB, max: 4096 * MIB },
    "8MiB",
    &[],
    "Memory for requests that wait for their destination, for each of traces, metrics and logs; the oldest go first.",
);
/// Bound of the local store.
pub const STORE_SIZE: Setting = setting(
    "export.store_size",
    Kind::Bytes { min: 16 * MIB, max: 1024 * 1024 * MIB },
    "64MiB",
    &[],
    "Disk space of the local store, eight files of OTLP JSON lines in the state directory; the oldest go first.",
);

macro_rules! settings_of {
    ($($otlp:expr),*; $($one:expr),*) => {
        &[
            $($otlp.endpoint, $otlp.protocol, $otlp.headers, $otlp.compression, $otlp.timeout, $otlp.insecure,
              $otlp.certificate, $otlp.client_certificate, $otlp.client_key,)*
            $($one,)*
        ]
    };
}

/// All settings of the section.
pub const SETTINGS: &[Setting] = settings_of!(
    COMMON, TRACES, METRICS, LOGS;
    TRACES_EXPORTER, METRICS_EXPORTER, LOGS_EXPORTER, DISABLED, METRIC_INTERVAL, RESOURCE_ATTRIBUTES, SERVICE_NAME,
    QUEUE_SIZE, STORE_SIZE
);

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn keys_and_variables_are_each_used_once() {
        let mut seen = HashSet::new();
        for setting in SETTINGS {
            assert!(
                setting.key.starts_with("export.") && setting.help.ends_with('.'),
                "{}",
                setting.key
            );
            for name in [setting.key].iter().chain(setting.otel) {
                assert!(seen.insert(*name), "{name} twice");
            }
            if let Kind::Choice(words) = setting.kind {
                assert!(words.contains(&setting.default), "{}", setting.key);
            }
        }
        assert_eq!(SETTINGS.len(), 45);
    }
}
