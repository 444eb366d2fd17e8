//! OTLP resources: who an item is about, in the terms of the semantic conventions (resource/{service,host,os,process}).

use std::fmt::{self, Write as _};

use super::{encode, json};
use crate::identity::Process;

/// `ResourceX.schema_url`: the semantic conventions that the names follow.
pub const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.44.0";
/// `InstrumentationScope.name`.
pub const SCOPE_NAME: &str = "observer";
/// `InstrumentationScope.version`.
pub const SCOPE_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Longest text in a resource; a longer one is cut. With it a resource stays far below a request's limit.
pub const MAX_TEXT_BYTES: usize = 16 * 1024;
/// Most bytes of all attributes that the user may set.
pub const MAX_USER_BYTES: usize = 64 * 1024;

/// The host that the agent runs on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostResource {
    /// `host.name`.
    pub name: String,
    /// `host.id` (`/etc/machine-id`); empty if unknown.
    pub id: String,
    /// `os.version`; empty if unknown.
    pub os_version: String,
}

/// Attributes of the host's resource and those that every process shares, encoded once in both forms.
#[derive(Debug, Default)]
pub struct Resources {
    host_name: String,
    pub(super) host: Encoded,
    pub(super) shared: Encoded,
}

/// Attributes encoded ahead.
#[derive(Debug, Default)]
pub(super) struct Encoded {
    /// `Resource.attributes` as protobuf fields.
    pub(super) wire: Vec<u8>,
    /// The same as elements of a JSON list.
    pub(super) json: Vec<u8>,
}

impl Resources {
    /// Joins what is known of the host with what the user has set (`OTEL_RESOURCE_ATTRIBUTES`; `OTEL_SERVICE_NAME` as
    /// `service.name`). The user wins on the host's resource. Processes get the user's attributes too, except those that
    /// say which service or process it is: these are known per process.
    pub fn new(host: &HostResource, user: &[(String, String)]) -> Self {
        let own = [
            ("service.name", "observer"),
            ("service.version", SCOPE_VERSION),
            ("host.name", &host.name),
            ("host.id", &host.id),
            ("os.type", "linux"),
            ("os.version", &host.os_version),
        ];
        let set_by_user = |key: &str| user.iter().any(|(set, _)| set == key);
        let own = own.into_iter().filter(|(key, value)| !value.is_empty() && !set_by_user(key));
        let user = user.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let all: Vec<(&str, &str)> =
            own.chain(user).map(|(key, value)| (key, cut(value))).collect();
        let shared: Vec<_> = all.iter().copied().filter(|(key, _)| is_shared(key)).collect();
        Self { host_name: host.name.clone(), host: Encoded::of(&all), shared: Encoded::of(&shared) }
    }

    pub(super) fn host_name(&self) -> &str {
        &self.host_name
    }
}

impl Encoded {
    fn of(attrs: &[(&str, &str)]) -> Self {
        Self { wire: encode::texts(attrs), json: json::texts(attrs) }
    }
}

fn is_shared(key: &str) -> bool {
    let own = ["service.name", "service.version", "service.instance.id"];
    !own.contains(&key) && !key.starts_with("process.") && !key.starts_with("container.")
}

/// Value of a process's resource attribute.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Known<'a> {
    Text(&'a str),
    Int(i64),
}

/// Texts of a process's resource that have to be put together, without allocating.
pub(super) struct Texts {
    started: Inline<40>,
    instance: Inline<160>,
}

impl Texts {
    pub(super) fn of(process: &Process, host_name: &str) -> Self {
        let mut texts = Self { started: Inline::default(), instance: Inline::default() };
        // An Inline cuts what does not fit, it never fails.
        if let Ok(time) = jiff::Timestamp::from_nanosecond(i128::from(process.start_unix_ns)) {
            write!(texts.started, "{time:.3}").ok();
        }
        let started_s = process.start_unix_ns / 1_000_000_000;
        write!(texts.instance, "{host_name}-{}-{started_s}", process.pid).ok();
        texts
    }
}

/// What a process's resource says, absent ones left out. `service.instance.id` keeps apart the workers of one service,
/// which Prometheus would otherwise take for one target.
pub(super) fn attributes<'a>(
    process: &'a Process,
    texts: &'a Texts,
) -> impl DoubleEndedIterator<Item = (&'static str, Known<'a>)> {
    let text = |key, text: &'a str| (!text.is_empty()).then(|| (key, Known::Text(cut(text))));
    let int = |key, number: u32| Some((key, Known::Int(i64::from(number))));
    let pm2 = process.pm2.as_ref();
    [
        text("service.name", &process.service_name),
        text("service.instance.id", texts.instance.as_str()),
        int("process.pid", process.pid),
        int("process.parent_pid", process.parent_pid),
        text("process.creation.time", texts.started.as_str()),
        text("process.executable.name", &process.name),
        text("process.executable.path", &process.executable),
        text("process.command_line", &process.command_line),
        text("process.owner", &process.user_name),
        int("process.user.id", process.user_id),
        text("process.linux.cgroup", &process.cgroup),
        text("container.id", &process.container_id),
        text("observer.unit", &process.unit),
        pm2.and_then(|pm2| text("observer.pm2.app", &pm2.app)),
        pm2.and_then(|pm2| int("observer.pm2.worker", pm2.worker)),
    ]
    .into_iter()
    .flatten()
}

/// The first [`MAX_TEXT_BYTES`] of a text, whole characters.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT_BYTES)]
}

/// A short text on the stack.
struct Inline<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Default for Inline<N> {
    fn default() -> Self {
        Self { bytes: [0; N], len: 0 }
    }
}

impl<const N: usize> Inline<N> {
    fn as_str(&self) -> &str {
        str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

impl<const N: usize> fmt::Write for Inline<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let fits = &text[..text.floor_char_boundary(N - self.len)];
        self.bytes[self.len..self.len + fits.len()].copy_from_slice(fits.as_bytes());
        self.len += fits.len();
        Ok(())
    }
}
