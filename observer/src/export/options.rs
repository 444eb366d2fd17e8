//! The section `export` of the configuration, read once into what the senders need; the only place that parses it.

use std::{path::PathBuf, time::Duration};

use hyper::{
    Uri,
    header::{HeaderName, HeaderValue},
};

use super::{
    OtlpSignal,
    resource::MAX_USER_BYTES,
    settings::{
        COMMON, DISABLED, GRPC, GZIP, INHERIT, LOGS, LOGS_EXPORTER, METRICS, METRICS_EXPORTER,
        NONE, Otlp, QUEUE_SIZE, RESOURCE_ATTRIBUTES, SERVICE_NAME, STORE_SIZE, TRACES,
        TRACES_EXPORTER,
    },
};
use crate::config::{Config, ConfigError, Fault, Problem, Setting, without_credentials};

/// What the export side needs to know.
#[derive(Debug, Clone)]
pub(super) struct Options {
    /// Where each signal goes; a signal that is not listed stays on the host.
    pub(super) targets: Vec<Target>,
    /// Attributes that the user set.
    pub(super) attributes: Vec<(String, String)>,
    pub(super) queue_bytes: usize,
    pub(super) store_bytes: u64,
    /// What was ignored.
    pub(super) warnings: Vec<Problem>,
}

/// Transport of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http,
    Grpc,
}

/// Where one signal goes, and how.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) signal: OtlpSignal,
    pub(super) protocol: Protocol,
    pub(super) uri: Uri,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) gzip: bool,
    pub(super) timeout: Duration,
    pub(super) tls: TlsFiles,
}

impl Target {
    /// The address as it may be shown: a query can hold a key.
    pub(super) fn shown(&self) -> String {
        let part = |part: Option<&str>| part.unwrap_or_default().to_owned();
        let authority = part(self.uri.authority().map(|authority| authority.as_str()));
        format!("{}://{authority}{}", part(self.uri.scheme_str()), self.uri.path())
    }
}

/// PEM files; they are read when connections are made, so that a renewed certificate needs no restart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TlsFiles {
    pub(super) roots: Option<PathBuf>,
    pub(super) client: Option<(PathBuf, PathBuf)>,
}

impl Options {
    /// Reads the configuration; what cannot be used is told with the place that it came from.
    pub(super) fn new(config: &Config) -> Result<Self, ConfigError> {
        let (mut problems, mut warnings) = (Vec::new(), Vec::new());
        // The resource SDK specification: a value that cannot be decoded is discarded as a whole, and said to be.
        let mut attributes = pairs(config.text(&RESOURCE_ATTRIBUTES)).unwrap_or_else(|fault| {
            let fault = Fault::new(format!("is ignored: {}", fault.what), fault.mend);
            warnings.push(config.problem(&RESOURCE_ATTRIBUTES, fault));
            Vec::new()
        });
        let service_name = config.text(&SERVICE_NAME);
        if !service_name.is_empty() {
            attributes.retain(|(key, _)| key != "service.name");
            attributes.push(("service.name".into(), service_name.into()));
        }
        let bytes: usize = attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > MAX_USER_BYTES {
            let fault =
                Fault::new(format!("has {bytes} bytes"), format!("write at most {MAX_USER_BYTES}"));
            problems.push(config.problem(&RESOURCE_ATTRIBUTES, fault));
        }
        let targets = targets(config, &mut problems);
        if !problems.is_empty() {
            return Err(ConfigError { problems });
        }
        Ok(Self {
            targets,
            attributes,
            queue_bytes: usize::try_from(config.bytes(&QUEUE_SIZE)).unwrap_or(usize::MAX),
            store_bytes: config.bytes(&STORE_SIZE),
            warnings,
        })
    }
}

fn targets(config: &Config, problems: &mut Vec<Problem>) -> Vec<Target> {
    let mut targets = Vec::new();
    if config.bool(&DISABLED) {
        return targets;
    }
    for (signal, own, exporter) in [
        (OtlpSignal::Traces, &TRACES, &TRACES_EXPORTER),
        (OtlpSignal::Metrics, &METRICS, &METRICS_EXPORTER),
        (OtlpSignal::Logs, &LOGS, &LOGS_EXPORTER),
    ] {
        if config.text(exporter) == NONE {
            continue;
        }
        match target(config, signal, own) {
            Ok(target) => targets.extend(target),
            // Three signals may share a setting; its fault is told once.
            Err(problem) if problems.contains(&problem) => {}
            Err(problem) => problems.push(problem),
        }
    }
    targets
}

fn target(config: &Config, signal: OtlpSignal, own: &Otlp) -> Result<Option<Target>, Problem> {
    // The signal's own setting, else the common one.
    let pick = |pick: fn(&Otlp) -> &Setting| {
        let (own, common) = (pick(own), pick(&COMMON));
        match config.text(own) {
            "" | INHERIT => (config.text(common), *common),
            text => (text, *own),
        }
    };
    let file = |get: fn(&Otlp) -> &Setting| {
        Some(pick(get).0).filter(|path| !path.is_empty()).map(PathBuf::from)
    };
    let problem = |setting: Setting| move |fault| config.problem(&setting, fault);
    let (endpoint, endpoint_setting) = pick(|otlp| &otlp.endpoint);
    if endpoint.is_empty() {
        return Ok(None);
    }
    let protocol =
        if pick(|otlp| &otlp.protocol).0 == GRPC { Protocol::Grpc } else { Protocol::Http };
    let insecure = match config.text(&own.insecure) {
        "true" => true,
        "false" => false,
        _ => config.bool(&COMMON.insecure),
    };
    let is_base = endpoint_setting.key == COMMON.endpoint.key;
    let uri =
        uri(endpoint, signal, protocol, is_base, insecure).map_err(problem(endpoint_setting))?;
    let (headers, headers_setting) = pick(|otlp| &otlp.headers);
    let headers = headers_of(headers).map_err(problem(headers_setting))?;
    let timeout = config.duration(&own.timeout);
    let client = match (file(|otlp| &otlp.client_certificate), file(|otlp| &otlp.client_key)) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (certificate, _) => {
            let (certificate_setting, key_setting) =
                (pick(|otlp| &otlp.client_certificate).1, pick(|otlp| &otlp.client_key).1);
            let (set, missing) = if certificate.is_some() {
                (certificate_setting, key_setting)
            } else {
                (key_setting, certificate_setting)
            };
            let fault = Fault::new("is of no use alone", format!("set {} as well", missing.key));
            return Err(problem(set)(fault));
        }
    };
    Ok(Some(Target {
        signal,
        protocol,
        uri,
        headers,
        gzip: pick(|otlp| &otlp.compression).0 == GZIP,
        timeout: if timeout.is_zero() { config.duration(&COMMON.timeout) } else { timeout },
        tls: TlsFiles { roots: file(|otlp| &otlp.certificate), client },
    }))
}

/// Address to which requests of a signal are posted.
fn uri(
    endpoint: &str,
    signal: OtlpSignal,
    protocol: Protocol,
    is_base: bool,
    insecure: bool,
) -> Result<Uri, Fault> {
    let example = match protocol {
        Protocol::Http => "http://collector:4318",
        Protocol::Grpc => "http://collector:4317",
    };
    let fault = |what: String| Fault::new(what, format!("write it like {example}"));
    let no_url = || fault(format!("`{}` is not a URL", without_credentials(endpoint)));
    let full = match (endpoint.contains("://"), protocol, insecure) {
        (true, ..) => endpoint.to_owned(),
        (false, Protocol::Grpc, true) => format!("http://{endpoint}"),
        (false, Protocol::Grpc, false) => format!("https://{endpoint}"),
        (false, Protocol::Http, _) => return Err(fault(format!("`{endpoint}` has no scheme"))),
    };
    let parsed: Uri = full.parse().map_err(|_why| no_url())?;
    let (Some(scheme), Some(authority)) = (parsed.scheme_str(), parsed.authority()) else {
        return Err(no_url());
    };
    if !matches!(scheme, "http" | "https") {
        let what = format!("`{scheme}` cannot be spoken");
        return Err(Fault::new(what, format!("write http:// or https://, like {example}")));
    }
    if authority.as_str().contains('@') {
        return Err(Fault::new(
            "credentials do not belong in the URL, where they would be shown",
            format!("put them into {}", COMMON.headers.key),
        ));
    }
    if authority.host().is_empty() {
        return Err(fault(format!("no host in `{endpoint}`")));
    }
    // http::Uri takes ports that do not exist.
    if authority.as_str() != authority.host() && authority.port_u16().is_none() {
        let what = format!("no port of `{endpoint}` can be reached");
        return Err(Fault::new(what, format!("write a number up to 65535, like {example}")));
    }
    let path = match protocol {
        Protocol::Grpc => signal.grpc_path().to_owned(),
        Protocol::Http if is_base => {
            format!("{}{}", parsed.path().trim_end_matches('/'), signal.http_path())
        }
        Protocol::Http => parsed.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
    };
    Uri::builder()
        .scheme(scheme)
        .authority(authority.as_str())
        .path_and_query(path)
        .build()
        .map_err(|_why| no_url())
}

fn headers_of(text: &str) -> Result<Vec<(HeaderName, HeaderValue)>, Fault> {
    let mut headers = Vec::new();
    // Errors name the header, never its value.
    for (name, value) in pairs(text)? {
        let header: HeaderName = name.to_ascii_lowercase().parse().map_err(|_why| {
            let mend = "write letters, digits and `-` before the `=`";
            Fault::new(format!("`{name}` cannot be the name of a header"), mend)
        })?;
        let mut value = HeaderValue::from_str(&value).map_err(|_why| {
            let mend = "write it without line breaks and other control characters";
            Fault::new(format!("the value of `{name}` cannot be sent"), mend)
        })?;
        value.set_sensitive(true);
        headers.push((header, value));
    }
    Ok(headers)
}

/// `key=value,key=value`, percent-encoded as in W3C Baggage.
fn pairs(text: &str) -> Result<Vec<(String, String)>, Fault> {
    const FORM: &str = "write key=value,key=value";
    let mut pairs = Vec::new();
    for (n, pair) in text.split(',').map(str::trim).enumerate().filter(|(_, pair)| !pair.is_empty())
    {
        let of = |what: &str| format!("entry {} has no {what}", n + 1);
        let (key, value) = pair.split_once('=').ok_or_else(|| Fault::new(of("`=`"), FORM))?;
        let key = percent_decoded(key.trim(), || format!("the key of entry {}", n + 1))?;
        if key.is_empty() {
            return Err(Fault::new(of("key"), FORM));
        }
        let value = percent_decoded(value.trim(), || format!("the value of `{key}`"))?;
        pairs.push((key, value));
    }
    Ok(pairs)
}

/// `whose` says what the text is, for errors: it may be a secret and is not repeated.
fn percent_decoded(text: &str, whose: impl Fn() -> String) -> Result<String, Fault> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let hex = rest.get(..2).and_then(|hex| str::from_utf8(hex).ok());
        let byte = hex
            .filter(|hex| !hex.starts_with('+'))
            .and_then(|hex| u8::from_str_radix(hex, 16).ok())
            .ok_or_else(|| {
                let what = format!("{}: `%` is not followed by two hexadecimal digits", whose());
                Fault::new(what, "write %25 for a percent sign")
            })?;
        bytes.push(byte);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).map_err(|_why| {
        let what = format!("{} is not UTF-8 after percent-decoding", whose());
        Fault::new(what, "encode it as UTF-8")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Sources, export::settings::SETTINGS};

    #[test]
    fn pairs_are_read_and_their_faults_named() {
        let check = |text: &str, want: &str| {
            let got = match pairs(text) {
                Ok(pairs) => format!("{pairs:?}"),
                Err(fault) => fault.to_string(),
            };
            assert!(got.contains(want), "{text}: {got}");
        };
        check("", "[]");
        check(" a=1 , b = two words,", r#"[("a", "1"), ("b", "two words")]"#);
        check("a=x%3D%2Cy=z", r#"[("a", "x=,y=z")]"#);
        check("a=", r#"[("a", "")]"#);
        check("a=1,b", "entry 2 has no `=`");
        check("=1", "no key");
        check("a=%4", "two hexadecimal digits");
        check("a=%+4", "two hexadecimal digits");
        check("a=%ff", "not UTF-8");
    }

    #[test]
    fn endpoints_become_addresses_or_say_how_to_write_them() {
        let check = |endpoint: &str, protocol, is_base, insecure, want: &str| {
            let got = match uri(endpoint, OtlpSignal::Traces, protocol, is_base, insecure) {
                Ok(uri) => uri.to_string(),
                Err(fault) => fault.to_string(),
            };
            assert!(got.contains(want), "{endpoint}: {got}");
        };
        let service = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
        check("http://c:4318", Protocol::Http, true, false, "http://c:4318/v1/traces");
        check("https://c/otlp/", Protocol::Http, true, false, "https://c/otlp/v1/traces");
        check("http://c:4318", Protocol::Http, false, false, "http://c:4318/");
        check("http://c/my/path?x=1", Protocol::Http, false, false, "http://c/my/path?x=1");
        check(
            "http://[::1]:4317",
            Protocol::Grpc,
            true,
            false,
            &format!("http://[::1]:4317{service}"),
        );
        check("c:4317", Protocol::Grpc, true, true, &format!("http://c:4317{service}"));
        check("c:4317", Protocol::Grpc, true, false, &format!("https://c:4317{service}"));
        check(
            "c:4318",
            Protocol::Http,
            true,
            false,
            "has no scheme; write it like http://collector:4318",
        );
        check("ftp://c", Protocol::Http, true, false, "`ftp` cannot be spoken");
        check("http://user:pw@c", Protocol::Http, true, false, "put them into export.headers");
        check("http://", Protocol::Http, true, false, "is not a URL");
        check("http://a b", Protocol::Http, true, false, "is not a URL");
        check("http://c:99999", Protocol::Http, true, false, "a number up to 65535");
    }

    fn options(env: &[(&str, &str)]) -> Result<Options, ConfigError> {
        let env =
            env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let sources = Sources { env, ..Sources::default() };
        Options::new(&Config::load(&[SETTINGS], &sources).unwrap())
    }

    #[test]
    fn nothing_leaves_the_host_unless_an_endpoint_is_set() {
        let check = |env: &[(&str, &str)], want: &[&str]| {
            let targets = options(env).unwrap().targets;
            let shown: Vec<_> = targets.iter().map(Target::shown).collect();
            assert_eq!(shown, want, "{env:?}");
        };
        let base = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318");
        let (traces, metrics, logs) =
            ("http://c:4318/v1/traces", "http://c:4318/v1/metrics", "http://c:4318/v1/logs");
        check(&[], &[]);
        check(&[("OTEL_EXPORTER_OTLP_HEADERS", "a=b")], &[]);
        check(&[base], &[traces, metrics, logs]);
        check(&[base, ("OTEL_SDK_DISABLED", "true")], &[]);
        check(&[base, ("OTEL_METRICS_EXPORTER", "none")], &[traces, logs]);
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://t/in?key=s3cret");
        check(&[own], &["https://t/in"]);
        check(&[base, own], &["https://t/in", metrics, logs]);
    }

    #[test]
    fn what_is_set_for_one_signal_goes_before_what_is_set_for_all() {
        let targets = options(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=common"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "2000"),
            ("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "a=own"),
            ("OTEL_EXPORTER_OTLP_LOGS_COMPRESSION", "none"),
            ("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "500"),
            ("OTEL_EXPORTER_OTLP_LOGS_CERTIFICATE", "/roots.pem"),
        ])
        .unwrap()
        .targets;
        let read = |target: &Target| {
            let header = target.headers[0].1.to_str().unwrap().to_owned();
            (
                target.protocol,
                header,
                target.gzip,
                target.timeout.as_millis(),
                target.tls.roots.clone(),
            )
        };
        let common = (Protocol::Http, "common".to_owned(), true, 2000, None);
        assert_eq!([read(&targets[0]), read(&targets[1])], [common.clone(), common]);
        let own = (Protocol::Grpc, "own".to_owned(), false, 500, Some("/roots.pem".into()));
        assert_eq!(read(&targets[2]), own);
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_name_of_its_setting() {
        let check = |env: &[(&str, &str)], want: &str| {
            let error = options(env).unwrap_err().to_string();
            assert!(error.starts_with(want) && error.contains("; "), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        };
        let base = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318");
        check(
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "c:4318")],
            "environment OTEL_EXPORTER_OTLP_ENDPOINT: export.endpoint: `c:4318` has no scheme",
        );
        check(
            &[base, ("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "x")],
            "environment OTEL_EXPORTER_OTLP_LOGS_HEADERS: export.logs_headers: entry 1",
        );
        check(
            &[base, ("OBSERVER_EXPORT_CLIENT_KEY", "/k.pem")],
            "environment OBSERVER_EXPORT_CLIENT_KEY: export.client_key: is of no use alone; set export.client_certificate",
        );
        let long = format!("a={}", "x".repeat(MAX_USER_BYTES));
        check(
            &[("OTEL_RESOURCE_ATTRIBUTES", &long)],
            "environment OTEL_RESOURCE_ATTRIBUTES: export.resource_attributes: has",
        );
    }

    #[test]
    fn attributes_that_cannot_be_read_are_discarded_as_a_whole_and_the_service_name_wins() {
        let check = |attributes: &str, name: &str, want: &[(&str, &str)]| {
            let env = [("OTEL_RESOURCE_ATTRIBUTES", attributes), ("OTEL_SERVICE_NAME", name)];
            let options = options(&env).unwrap();
            assert_eq!(options.warnings.is_empty(), !want.is_empty(), "{:?}", options.warnings);
            let got = options.attributes;
            let got: Vec<_> =
                got.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            assert_eq!(got, want);
        };
        check("a=1,service.name=x", "", &[("a", "1"), ("service.name", "x")]);
        check("a=1,service.name=x", "y", &[("a", "1"), ("service.name", "y")]);
        check("a=1,b", "", &[]);
        check("", "y", &[("service.name", "y")]);
    }

    #[test]
    fn headers_are_checked_and_their_values_never_shown() {
        let check = |text: &str, want: &str| {
            let got = match headers_of(text) {
                Ok(headers) => format!("{headers:?}"),
                Err(fault) => fault.to_string(),
            };
            assert!(got.contains(want), "{text}: {got}");
            assert!(!got.contains("s3cret"), "{got}");
        };
        check("Authorization=Basic%20s3cret", r#"("authorization", Sensitive)"#);
        check("a b=s3cret", "`a b` cannot be the name");
        check("a=s3cret%0A", "the value of `a` cannot be sent");
    }
}
