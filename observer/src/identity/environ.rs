//! What the environment that a process was started with tells of its service and of PM2.
//!
//! PM2 (as its source has it, and as 7.0.4 does it): in fork mode `lib/God/ForkMode.js` passes every scalar of the app's
//! description as a variable, so `name`, `pm_id` and `PM2_HOME` are plain. In cluster mode `lib/God/ClusterMode.js` passes
//! one variable `pm2_env`, a JSON of it all; the worker unpacks that into its own environment later, which `/proc` does not
//! show. The daemon's own environment is inherited beside it, so where there is a `pm2_env`, that is the truth.

use serde::Deserialize;
use serde_json::Value;

use super::Pm2;

/// What is taken from an environment. The rest, which may hold secrets, is dropped here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// OTEL_SERVICE_NAME, else `service.name` in OTEL_RESOURCE_ATTRIBUTES.
    pub service_name: Option<String>,
    /// PM2, if it started this process or one of its ancestors.
    pub pm2: Option<Pm2>,
    /// PM2_HOME, which a PM2 daemon has too.
    pub pm2_home: Option<String>,
    /// HOME, below which PM2's home is by default.
    pub home: Option<String>,
}

/// What matters of a worker's description. The values may be of any JSON type, as users set them.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Worker {
    name: Value,
    pm_id: Value,
    #[serde(rename = "PM2_HOME")]
    home: Value,
    #[serde(rename = "NODE_APP_INSTANCE")]
    instance: Value,
    restart_time: Value,
    max_memory_restart: Value,
    #[serde(rename = "OTEL_SERVICE_NAME")]
    service_name: Value,
    #[serde(rename = "OTEL_RESOURCE_ATTRIBUTES")]
    resource_attributes: Value,
}

/// Reads `/proc/PID/environ`: `KEY=VALUE`, each ended by NUL. The first of a name counts, as for getenv(3).
pub fn parse_environ(bytes: &[u8]) -> Environment {
    let variable = |key: &str| {
        let value = |entry: &'_ [u8]| {
            entry.strip_prefix(key.as_bytes()).is_some_and(|rest| rest.starts_with(b"="))
        };
        let entry = bytes.split(|&byte| byte == 0).find(|entry| value(entry))?;
        Some(String::from_utf8_lossy(&entry[key.len() + 1..]).into_owned())
    };
    let text = |key: &str| variable(key).map_or(Value::Null, Value::String);
    let cluster: Option<Worker> =
        variable("pm2_env").and_then(|json| serde_json::from_str(&json).ok());
    let worker = cluster.unwrap_or_else(|| Worker {
        name: text("name"),
        pm_id: text("pm_id"),
        home: text("PM2_HOME"),
        instance: text("NODE_APP_INSTANCE"),
        restart_time: text("restart_time"),
        max_memory_restart: text("max_memory_restart"),
        service_name: Value::Null,
        resource_attributes: Value::Null,
    });
    let pm2_home = string(&worker.home).or_else(|| variable("PM2_HOME"));
    let service_name = [string(&worker.service_name), variable("OTEL_SERVICE_NAME")]
        .into_iter()
        .flatten()
        .find(|name| !name.is_empty())
        .or_else(|| service_name(&string(&worker.resource_attributes)?))
        .or_else(|| service_name(&variable("OTEL_RESOURCE_ATTRIBUTES")?));
    let pm2 = number(&worker.pm_id).map(|id| Pm2 {
        app: string(&worker.name).unwrap_or_default(),
        worker: id,
        home: pm2_home.clone().unwrap_or_default(),
        instance: number(&worker.instance),
        restarts: number(&worker.restart_time),
        max_memory_restart_bytes: memory_bytes(&worker.max_memory_restart),
    });
    Environment { service_name, pm2, pm2_home, home: variable("HOME") }
}

fn string(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn number(value: &Value) -> Option<u32> {
    match value {
        Value::String(text) => text.parse().ok(),
        other => other.as_u64().and_then(|number| u32::try_from(number).ok()),
    }
}

/// PM2 passes on a number of bytes, whatever its user wrote; a program that starts workers itself may write `300M`.
fn memory_bytes(value: &Value) -> Option<u64> {
    let text = match value {
        Value::String(text) => text.trim(),
        other => return other.as_u64().filter(|bytes| *bytes > 0),
    };
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 0,
        "K" | "KB" => 10,
        "M" | "MB" => 20,
        "G" | "GB" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift).filter(|bytes| *bytes > 0)
}

/// `service.name` of `key=value,key=value`, values percent-encoded (OpenTelemetry, resource SDK specification).
fn service_name(attributes: &str) -> Option<String> {
    let pairs = attributes.split(',').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.rev().find(|(key, _)| key.trim() == "service.name")?;
    Some(percent_decoded(value.trim())).filter(|name| !name.is_empty())
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let decoded = match (first, tail) {
            (b'%', [high, low, ..]) => {
                hex_digit(*high).zip(hex_digit(*low)).map(|(high, low)| high * 16 + low)
            }
            _ => None,
        };
        bytes.push(decoded.unwrap_or(*first));
        rest = if decoded.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(variables: &[&str], expected: &Environment) {
        assert_eq!(&parse_environ(variables.join("\0").as_bytes()), expected, "{variables:?}");
        let ended = variables.join("\0") + "\0";
        assert_eq!(&parse_environ(ended.as_bytes()), expected, "{variables:?}");
    }

    fn pm2(app: &str, worker: u32, home: &str, instance: Option<u32>) -> Option<Pm2> {
        Some(Pm2 { app: app.to_owned(), worker, home: home.to_owned(), instance, ..Pm2::default() })
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn service_names() {
        #[track_caller]
        fn named(variables: &[&str], expected: Option<&str>) {
            let expected =
                Environment { service_name: expected.map(str::to_owned), ..Environment::default() };
            check(variables, &expected);
        }
        named(
            &[
                "PATH=/bin",
                "OTEL_SERVICE_NAME=checkout",
                "OTEL_RESOURCE_ATTRIBUTES=service.name=other",
            ],
            Some("checkout"),
        );
        named(
            &["OTEL_RESOURCE_ATTRIBUTES=a=b, service.name = my%20shop%2C%E2%82%AC ,c=d"],
            Some("my shop,€"),
        );
        named(&["OTEL_RESOURCE_ATTRIBUTES=service.name=100%,x=%zz"], Some("100%"));
        named(&["OTEL_SERVICE_NAME=", "OTEL_RESOURCE_ATTRIBUTES=service.name="], None);
        named(&["OTEL_SERVICE_NAME=", "OTEL_RESOURCE_ATTRIBUTES=service.name=b"], Some("b"));
        named(&["XOTEL_SERVICE_NAME=a", "OTEL_SERVICE_NAMES=b", "OTEL_SERVICE_NAME"], None);
        named(&["OTEL_SERVICE_NAME=first", "OTEL_SERVICE_NAME=second"], Some("first"));
        named(&[""], None);
    }

    #[test]
    fn pm2_fork_mode() {
        let variables = [
            "PM2_HOME=/root/.pm2",
            "HOME=/root",
            "name=api",
            "namespace=default",
            "exec_mode=fork_mode",
            "pm_id=3",
        ];
        let expected = Environment {
            pm2: pm2("api", 3, "/root/.pm2", None),
            pm2_home: some("/root/.pm2"),
            home: some("/root"),
            ..Environment::default()
        };
        check(&variables, &expected);
        let with_instance = Environment { pm2: pm2("api", 3, "/root/.pm2", Some(0)), ..expected };
        check(&[&variables[..], &["NODE_APP_INSTANCE=0"]].concat(), &with_instance);
    }

    #[test]
    fn pm2_restarts() {
        #[track_caller]
        fn check(variables: &[&str], restarts: Option<u32>, bytes: Option<u64>) {
            let found = parse_environ(variables.join("\0").as_bytes()).pm2.unwrap();
            assert_eq!((found.restarts, found.max_memory_restart_bytes), (restarts, bytes));
        }
        check(&["pm_id=1"], None, None);
        check(
            &["pm_id=1", "restart_time=15", "max_memory_restart=314572800"],
            Some(15),
            Some(300 << 20),
        );
        check(
            &[r#"pm2_env={"pm_id":1,"restart_time":2,"max_memory_restart":1048576}"#],
            Some(2),
            Some(1 << 20),
        );
        check(&["pm_id=1", "max_memory_restart=300M"], None, Some(300 << 20));
        check(&["pm_id=1", "max_memory_restart=0"], None, None);
        check(&["pm_id=1", "max_memory_restart=99999999999999999999G"], None, None);
    }

    #[test]
    fn pm2_cluster_mode() {
        let json = r#"pm2_env={"name":"api","pm_id":1,"NODE_APP_INSTANCE":1,"exec_mode":"cluster_mode","instances":2,
            "PM2_HOME":"/home/deploy/.pm2","OTEL_SERVICE_NAME":"shop-api","args":["a"],"env":{"name":"inner"},"km_link":false}"#;
        let expected = Environment {
            service_name: some("shop-api"),
            pm2: pm2("api", 1, "/home/deploy/.pm2", Some(1)),
            pm2_home: some("/home/deploy/.pm2"),
            home: None,
        };
        check(&["NODE_UNIQUE_ID=2", json], &expected);
        // A daemon that was started from within another PM2's app hands down that app's variables.
        check(
            &["PM2_HOME=/old", "name=deployer", "pm_id=0", "OTEL_SERVICE_NAME=deployer", json],
            &expected,
        );
    }

    #[test]
    fn pm2_daemon_and_nonsense() {
        let daemon = Environment {
            pm2_home: some("/srv/.pm2"),
            home: some("/srv"),
            ..Environment::default()
        };
        check(&["SILENT=true", "PM2_HOME=/srv/.pm2", "HOME=/srv"], &daemon);
        check(&["name=api"], &Environment::default());
        check(&["pm_id=_old_3", "name=api"], &Environment::default());
        check(&["pm_id=99999999999"], &Environment::default());
        check(&["pm2_env={\"pm_id\":-1}"], &Environment::default());
        check(&["pm2_env=[1"], &Environment::default());
        check(
            &["pm2_env={\"pm_id\":\"4\",\"name\":5}"],
            &Environment { pm2: pm2("", 4, "", None), ..Environment::default() },
        );
        check(
            &["pm2_env=broken", "pm_id=4", "name=api"],
            &Environment { pm2: pm2("api", 4, "", None), ..Environment::default() },
        );
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), value in "[ -~€%]{0,60}") {
            parse_environ(&bytes);
            for key in ["pm2_env", "pm_id", "OTEL_RESOURCE_ATTRIBUTES=service.name"] {
                parse_environ(format!("{key}={value}\0").as_bytes());
            }
        }
    }
}
