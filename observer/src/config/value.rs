//! One value of a setting: read from text or from TOML, checked against its [`Kind`], written as TOML.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use toml::de::{DeArray, DeInteger, DeValue};

use super::{
    Kind,
    units::{self, parse_bytes, parse_duration},
};

/// What stands for a secret wherever settings are shown.
pub(super) const MASK: &str = "***";

/// What is wrong with a value and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}; {mend}")]
pub struct Fault {
    /// What is wrong.
    pub what: String,
    /// What to write instead.
    pub mend: String,
}

impl Fault {
    /// Makes one; neither text may hold a secret.
    pub fn new(what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { what: what.into(), mend: mend.into() }
    }
}

/// A number of something at a host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// Name or address, without brackets.
    pub host: String,
    /// Port, at least 1.
    pub port: u16,
    /// How many, at least 1.
    pub number: u64,
}

/// Entries of one setting: each is looked for among all connections, once a second.
const MAX_COUNTS: usize = 256;

impl Count {
    fn read(text: &str) -> Result<Self, Fault> {
        let wrong = || Fault::new(format!("{text:?} is not HOST:PORT=NUMBER"), COUNT_MEND);
        let split = || {
            let (place, number) = text.trim().rsplit_once('=')?;
            let (host, port) = place.trim().rsplit_once(':')?;
            Some((host, port.parse().ok()?, number.trim().parse().ok()?))
        };
        let (host, port, number) = split().ok_or_else(wrong)?;
        if host.is_empty() || port == 0 || number == 0 {
            return Err(wrong());
        }
        let no_host =
            || Fault::new(format!("{host:?} is neither a name nor an address"), COUNT_MEND);
        Ok(Self { host: host_of(host).ok_or_else(no_host)?, port, number })
    }

    fn all<'a>(texts: impl Iterator<Item = Result<&'a str, Fault>>) -> Result<Value, Fault> {
        let read: Vec<Self> =
            texts.take(MAX_COUNTS + 1).map(|text| Self::read(text?)).collect::<Result<_, _>>()?;
        if read.len() > MAX_COUNTS {
            let mend = format!("write {MAX_COUNTS} at most, those with the most connections");
            return Err(Fault::new(format!("there are more than {MAX_COUNTS} entries"), mend));
        }
        Ok(Value::Counts(read))
    }
}

/// A name or address as connections have it: IPv6 in its shortest form, without brackets.
fn host_of(text: &str) -> Option<String> {
    if let Some(bare) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        let address: Ipv6Addr = bare.parse().ok()?;
        return Some(address.to_canonical().to_string());
    }
    let only = |of: fn(char) -> bool| text.chars().all(of);
    let is_name = only(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    let is_number = only(|c| c.is_ascii_digit() || c == '.');
    (is_name && (!is_number || text.parse::<Ipv4Addr>().is_ok())).then(|| text.to_owned())
}

const COUNT_MEND: &str = "write such as db.example:5432=87 or [fd00::1]:5432=87, with a port from 1 to 65535 and a number from 1 on";

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, number } = self;
        match host.contains(':') {
            true => write!(f, "[{host}]:{port}={number}"),
            false => write!(f, "{host}:{port}={number}"),
        }
    }
}

/// A value that fits its [`Kind`].
#[derive(Clone, PartialEq)]
pub(super) enum Value {
    Bool(bool),
    Integer(u64),
    Duration(Duration),
    Bytes(u64),
    Text(String),
    List(Vec<String>),
    Ports(Vec<u16>),
    Counts(Vec<Count>),
}

impl Kind {
    /// Reads text of the environment, a flag or a default.
    pub(super) fn read_text(&self, text: &str) -> Result<Value, Fault> {
        match self {
            Kind::Bool => match text.trim() {
                "true" => Ok(Value::Bool(true)),
                "false" => Ok(Value::Bool(false)),
                other => Err(Fault::new(
                    format!("{other:?} is neither true nor false"),
                    "write true or false",
                )),
            },
            Kind::Integer { .. } => match text.trim().parse() {
                Ok(number) => self.bounded(Value::Integer(number)),
                Err(_) => Err(self.mismatch(&format!("{text:?}"))),
            },
            Kind::Duration { .. } => self.bounded(Value::Duration(parse_duration(text)?)),
            Kind::Bytes { .. } => self.bounded(Value::Bytes(parse_bytes(text)?)),
            Kind::Text if text.contains(&format!("://{MASK}@")) => Err(masked()),
            Kind::Text => Ok(Value::Text(text.to_owned())),
            Kind::Secret if text == MASK => Err(masked()),
            Kind::Secret => Ok(Value::Text(text.to_owned())),
            Kind::List => Ok(Value::List(items(text).map(str::to_owned).collect())),
            Kind::Ports => items(text)
                .map(|item| port(item, &format!("{item:?}")))
                .collect::<Result<_, _>>()
                .map(Value::Ports),
            Kind::Counts => Count::all(items(text).map(Ok)),
            Kind::Choice(words) => match words.iter().find(|word| **word == text.trim()) {
                Some(word) => Ok(Value::Text((*word).to_owned())),
                None => Err(unknown_word(text, words)),
            },
        }
    }

    /// Reads the text of a standard `OTEL_*` variable (specification, configuration/common.md): durations are bare
    /// milliseconds, words and `true` are taken in any case, anything but `true` is false.
    pub(super) fn read_otel(&self, text: &str) -> Result<Value, Fault> {
        let text = text.trim();
        match self {
            Kind::Bool => self.read_text(&text.to_ascii_lowercase()),
            Kind::Choice(_) => self.read_text(&text.to_ascii_lowercase()),
            Kind::Duration { .. } => match text.parse() {
                Ok(ms) => self.bounded(Value::Duration(Duration::from_millis(ms))),
                Err(_) => Err(Fault::new(
                    format!("{text:?} is not a number"),
                    "write milliseconds without a unit",
                )),
            },
            Kind::Bytes { .. } => match text.parse() {
                Ok(bytes) => self.bounded(Value::Bytes(bytes)),
                Err(_) => Err(Fault::new(
                    format!("{text:?} is not a number"),
                    "write bytes without a unit",
                )),
            },
            _ => self.read_text(text),
        }
    }

    /// Reads a TOML value, which must have the type that belongs to the kind.
    pub(super) fn read_toml(&self, value: &DeValue<'_>) -> Result<Value, Fault> {
        match (self, value) {
            (Kind::Bool, DeValue::Boolean(flag)) => Ok(Value::Bool(*flag)),
            (Kind::Integer { .. }, DeValue::Integer(number)) => match whole(number) {
                Some(number) => self.bounded(Value::Integer(number)),
                None => Err(self.mismatch(&number.to_string())),
            },
            (Kind::Duration { .. }, DeValue::Integer(number)) => {
                Err(units::no_time_unit(&number.to_string()))
            }
            (Kind::Bytes { .. }, DeValue::Integer(number)) => {
                Err(units::no_size_unit(&number.to_string()))
            }
            (Kind::List, DeValue::Array(array)) => {
                let texts = self.toml_texts(array).map(|text| text.map(str::to_owned));
                texts.collect::<Result<_, _>>().map(Value::List)
            }
            (Kind::Counts, DeValue::Array(array)) => Count::all(self.toml_texts(array)),
            (Kind::Ports, DeValue::Array(array)) => array
                .iter()
                .map(|item| self.toml_port(item.get_ref()))
                .collect::<Result<_, _>>()
                .map(Value::Ports),
            (
                Kind::Duration { .. }
                | Kind::Bytes { .. }
                | Kind::Text
                | Kind::Secret
                | Kind::Choice(_),
                DeValue::String(text),
            ) => self.read_text(text),
            _ => Err(self.mistyped(value)),
        }
    }

    fn toml_texts<'a>(
        &self,
        array: &'a DeArray<'_>,
    ) -> impl Iterator<Item = Result<&'a str, Fault>> {
        let items = array.iter().map(|item| item.get_ref());
        items.map(|item| item.as_str().ok_or_else(|| self.mistyped(item)))
    }

    fn toml_port(&self, item: &DeValue<'_>) -> Result<u16, Fault> {
        match item {
            DeValue::Integer(number) => port(number.as_str(), &number.to_string()),
            other => Err(self.mistyped(other)),
        }
    }

    fn bounded(&self, value: Value) -> Result<Value, Fault> {
        let (fits, shown) = match (self, &value) {
            (Kind::Integer { min, max }, Value::Integer(number)) => {
                ((min..=max).contains(&number), number.to_string())
            }
            (Kind::Bytes { min, max }, Value::Bytes(bytes)) => {
                ((min..=max).contains(&bytes), units::format_bytes(*bytes))
            }
            (Kind::Duration { min_ms, max_ms }, Value::Duration(duration)) => {
                let range = Duration::from_millis(*min_ms)..=Duration::from_millis(*max_ms);
                (range.contains(duration), units::format_duration(*duration))
            }
            _ => (true, String::new()),
        };
        if fits {
            Ok(value)
        } else {
            Err(Fault::new(format!("{shown} is out of bounds"), format!("write {}", self.wanted())))
        }
    }

    /// What a valid value looks like, in words, for messages and docs.
    pub fn wanted(&self) -> String {
        match self {
            Kind::Bool => "true or false".to_owned(),
            Kind::Integer { min, max } => format!("a whole number from {min} to {max}"),
            Kind::Duration { min_ms, max_ms } => {
                let bound = |ms: &u64| units::format_duration(Duration::from_millis(*ms));
                format!("a duration from \"{}\" to \"{}\"", bound(min_ms), bound(max_ms))
            }
            Kind::Bytes { min, max } => format!(
                "a size from \"{}\" to \"{}\"",
                units::format_bytes(*min),
                units::format_bytes(*max)
            ),
            Kind::Text | Kind::Secret => "text in quotes".to_owned(),
            Kind::List => "a list of texts, such as [\"a\", \"b\"]".to_owned(),
            Kind::Ports => "a list of ports, such as [5432, 6379]".to_owned(),
            Kind::Counts => "a list such as [\"db.example:5432=87\"]".to_owned(),
            Kind::Choice(words) => format!("one of {}", words.join(", ")),
        }
    }

    fn mismatch(&self, shown: &str) -> Fault {
        Fault::new(format!("{shown} does not fit"), format!("write {}", self.wanted()))
    }

    /// Names the type only: the value could be a secret.
    fn mistyped(&self, value: &DeValue<'_>) -> Fault {
        Fault::new(format!("found a TOML {}", value.type_str()), format!("write {}", self.wanted()))
    }
}

impl Value {
    /// As TOML that [`Kind::read_toml`] reads back.
    pub(super) fn to_toml(&self) -> String {
        match self {
            Value::Bool(flag) => flag.to_string(),
            Value::Integer(number) => number.to_string(),
            Value::Duration(duration) => format!("\"{}\"", units::format_duration(*duration)),
            Value::Bytes(bytes) => format!("\"{}\"", units::format_bytes(*bytes)),
            Value::Text(text) => toml::Value::from(text.as_str()).to_string(),
            Value::List(texts) => toml::Value::from(texts.clone()).to_string(),
            Value::Counts(counts) => {
                let texts: Vec<_> = counts.iter().map(ToString::to_string).collect();
                toml::Value::from(texts).to_string()
            }
            Value::Ports(ports) => {
                toml::Value::from(ports.iter().map(|port| i64::from(*port)).collect::<Vec<_>>())
                    .to_string()
            }
        }
    }
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn port(text: &str, shown: &str) -> Result<u16, Fault> {
    match text.parse() {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(Fault::new(format!("{shown} is not a port"), "write ports from 1 to 65535")),
    }
}

fn whole(number: &DeInteger<'_>) -> Option<u64> {
    u64::from_str_radix(number.as_str(), number.radix()).ok()
}

fn masked() -> Fault {
    Fault::new(
        format!("{MASK} is the mask that `observer config` prints"),
        "write the secret itself, or remove the line",
    )
}

fn unknown_word(text: &str, words: &[&str]) -> Fault {
    let mend = match super::nearest(text, words.iter().copied()) {
        Some(word) => format!("did you mean \"{word}\"? Allowed: {}", words.join(", ")),
        None => format!("write one of {}", words.join(", ")),
    };
    Fault::new(format!("{text:?} is not known"), mend)
}
