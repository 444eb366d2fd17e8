//! One `check`, many small configurations.

use proptest::prelude::*;

use super::*;

const PORTS: Setting =
    Setting { key: "tcp.ports", kind: Kind::Ports, default: "", otel: &[], help: "ports" };
const MOST: Setting =
    Setting { key: "tcp.most", kind: Kind::Counts, default: "", otel: &[], help: "counts" };
const NAMES: Setting =
    Setting { key: "tcp.names", kind: Kind::List, default: "a, b", otel: &[], help: "names" };
const ROWS: Setting = Setting {
    key: "tcp.rows",
    kind: Kind::Integer { min: 1, max: 100 },
    default: "10",
    otel: &["OTEL_ROWS"],
    help: "rows",
};
const FLAG: Setting = Setting {
    key: "tcp.flag",
    kind: Kind::Bool,
    default: "false",
    otel: &["OTEL_FLAG"],
    help: "flag",
};
const GAP: Setting = Setting {
    key: "sched.gap",
    kind: Kind::Duration { min_ms: 10, max_ms: 60_000 },
    default: "100ms",
    otel: &["OTEL_SPECIAL_GAP", "OTEL_GAP"],
    help: "gap",
};
const STEP: Setting = Setting {
    key: "sched.step",
    kind: Kind::Bytes { min: 1 << 20, max: 1 << 40 },
    default: "64MiB",
    otel: &[],
    help: "step",
};
const MODE: Setting = Setting {
    key: "export.otlp.mode",
    kind: Kind::Choice(&["none", "gzip"]),
    default: "none",
    otel: &["OTEL_MODE"],
    help: "mode",
};
const HEADERS: Setting = Setting {
    key: "export.otlp.headers",
    kind: Kind::Secret,
    default: "",
    otel: &["OTEL_HEADERS"],
    help: "headers",
};
const TESTED: &[Setting] = &[PORTS, MOST, NAMES, ROWS, FLAG, GAP, STEP, MODE, HEADERS];

fn load(toml: &str, env: &[(&str, &str)], flags: &[&str]) -> Result<Config, ConfigError> {
    let sources = Sources {
        file: (!toml.is_empty()).then(|| File { path: "o.toml".into(), text: toml.to_owned() }),
        env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
    };
    Config::load(&[SETTINGS, TESTED], &sources)
}

/// `expect` is `key = value (origin)` of what is not at its default, then warnings; or the error's lines.
#[track_caller]
fn check(toml: &str, env: &[(&str, &str)], flags: &[&str], expect: &[&str]) {
    let seen = match load(toml, env, flags) {
        Ok(config) => {
            let changed = config.entries.iter().filter(|entry| entry.origin != Origin::Default);
            let values = changed.map(|entry| {
                format!("{} = {} ({})", entry.setting.key, entry.value.to_toml(), entry.origin)
            });
            values
                .chain(config.warnings.iter().map(|warning| format!("warning: {warning}")))
                .collect::<Vec<_>>()
        }
        Err(error) => error.problems.iter().map(ToString::to_string).collect(),
    };
    assert_eq!(seen, expect);
}

#[test]
fn each_source_beats_the_one_before() {
    let toml = "[sched]\ngap = '1s'\n";
    let env: &[_] = &[("OTEL_GAP", "2000")];
    let both: &[_] = &[("OTEL_GAP", "2000"), ("OBSERVER_SCHED_GAP", "3s")];
    check("", &[], &[], &[]);
    check(toml, &[], &[], &["sched.gap = \"1s\" (o.toml:2)"]);
    check(toml, env, &[], &["sched.gap = \"2s\" (environment OTEL_GAP)"]);
    check(toml, both, &[], &["sched.gap = \"3s\" (environment OBSERVER_SCHED_GAP)"]);
    check(toml, both, &["sched.gap=4s"], &["sched.gap = \"4s\" (flag --set)"]);
    check("", &[], &["sched.gap=4s", "sched.gap=5s"], &["sched.gap = \"5s\" (flag --set)"]);
}

#[test]
fn every_kind_from_toml() {
    check("group = 'ops'", &[], &[], &["group = \"ops\" (o.toml:1)"]);
    check("log.level = 'debug'", &[], &[], &["log.level = \"debug\" (o.toml:1)"]);
    check("[tcp]\nports = [5432, 6379]", &[], &[], &["tcp.ports = [5432, 6379] (o.toml:2)"]);
    check(
        "tcp = { names = ['x'], flag = true }",
        &[],
        &[],
        &["tcp.names = [\"x\"] (o.toml:1)", "tcp.flag = true (o.toml:1)"],
    );
    check("[tcp]\nrows = 0x10", &[], &[], &["tcp.rows = 16 (o.toml:2)"]);
    check("[sched]\nstep = '1GiB'", &[], &[], &["sched.step = \"1GiB\" (o.toml:2)"]);
    check("[export.otlp]\nmode = 'gzip'", &[], &[], &["export.otlp.mode = \"gzip\" (o.toml:2)"]);
}

#[test]
fn own_variables() {
    check(
        "",
        &[("OBSERVER_TCP_PORTS", " 1, 2,65535,")],
        &[],
        &["tcp.ports = [1, 2, 65535] (environment OBSERVER_TCP_PORTS)"],
    );
    check(
        "",
        &[("OBSERVER_TCP_FLAG", "true"), ("HOME", "/")],
        &[],
        &["tcp.flag = true (environment OBSERVER_TCP_FLAG)"],
    );
    check("", &[("OBSERVER_TCP_ROWS", "")], &[], &[]);
    check(
        "",
        &[("OBSERVER_TCP_ROWS", "ten")],
        &[],
        &[
            "environment OBSERVER_TCP_ROWS: \"ten\" does not fit; write a whole number from 1 to 100",
        ],
    );
    check(
        "",
        &[("OBSERVER_TCP_PORTS", "0")],
        &[],
        &["environment OBSERVER_TCP_PORTS: \"0\" is not a port; write ports from 1 to 65535"],
    );
    check(
        "",
        &[("OBSERVER_TCP_FLAG", "yes")],
        &[],
        &["environment OBSERVER_TCP_FLAG: \"yes\" is neither true nor false; write true or false"],
    );
    check(
        "",
        &[("OBSERVER_TCP_PORT", "1")],
        &[],
        &["environment OBSERVER_TCP_PORT: no such variable; did you mean OBSERVER_TCP_PORTS?"],
    );
}

#[test]
fn counts_at_a_host_and_port() {
    let shown = "[\"db.example:5432=87\", \"[fd00::1]:6379=5\"]";
    let toml = format!("[tcp]\nmost = {shown}");
    check(&toml, &[], &[], &[&format!("tcp.most = {shown} (o.toml:2)")]);
    let text = "db.example:5432 = 87,[fd00::1]:6379=5";
    let expect = format!("tcp.most = {shown} (environment OBSERVER_TCP_MOST)");
    check("", &[("OBSERVER_TCP_MOST", text)], &[], &[&expect]);
    let mend = "write such as db.example:5432=87 or [fd00::1]:5432=87, with a port from 1 to 65535 and a number from 1 on";
    let form = |text: &str| format!("\"{text}\" is not HOST:PORT=NUMBER");
    let host = |text: &str| format!("\"{text}\" is neither a name nor an address");
    let huge = format!("db:5432={}0", u64::MAX);
    for (bad, what) in [
        ("db=5", form("db=5")),
        ("db:5432", form("db:5432")),
        ("db:0=5", form("db:0=5")),
        ("db:-1=5", form("db:-1=5")),
        ("db:x=5", form("db:x=5")),
        ("db:5432=0", form("db:5432=0")),
        ("db:5432=-5", form("db:5432=-5")),
        ("db:5432=5.5", form("db:5432=5.5")),
        (&huge, form(&huge)),
        (":5432=5", form(":5432=5")),
        ("fd00::1:5432=5", host("fd00::1")),
        ("[fd00::1:5432=5", host("[fd00::1")),
        ("[10.0.0.1]:5432=5", host("[10.0.0.1]")),
        ("10.0.0.256:5432=5", host("10.0.0.256")),
        ("a db:5432=5", host("a db")),
        ("tcp//db:5432=5", host("tcp//db")),
        ("dö:5432=5", host("dö")),
    ] {
        let what = format!("tcp.most: {what}; {mend}");
        let expect = what.replace("tcp.most:", "environment OBSERVER_TCP_MOST:");
        check("", &[("OBSERVER_TCP_MOST", bad)], &[], &[&expect]);
        check(&format!("[tcp]\nmost = ['{bad}']"), &[], &[], &[&format!("o.toml:2:8: {what}")]);
    }
    let texts = ["[FD00:0::01]:1=2", "[::ffff:10.0.0.9]:1=2"];
    let read = "tcp.most = [\"[fd00::1]:1=2\", \"10.0.0.9:1=2\"] (environment OBSERVER_TCP_MOST)";
    check("", &[("OBSERVER_TCP_MOST", &texts.join(","))], &[], &[read]);
    check(
        "[tcp]\nmost = [5]",
        &[],
        &[],
        &[
            "o.toml:2:8: tcp.most: found a TOML integer; write a list such as [\"db.example:5432=87\"]",
        ],
    );
}

#[test]
fn there_is_a_bound_to_counts() {
    let many = |number: usize| vec!["db:5432=87"; number].join(",");
    let fits =
        load("", &[("OBSERVER_TCP_MOST", &many(256))], &[]).map(|read| read.counts(&MOST).len());
    assert_eq!(fits.ok(), Some(256));
    let what =
        "there are more than 256 entries; write 256 at most, those with the most connections";
    let expect = format!("environment OBSERVER_TCP_MOST: {what}");
    check("", &[("OBSERVER_TCP_MOST", &many(5000))], &[], &[&expect]);
    let toml = format!("[tcp]\nmost = ['{}']", many(257).replace(',', "', '"));
    check(&toml, &[], &[], &[&format!("o.toml:2:8: tcp.most: {what}")]);
}

#[test]
fn standard_variables() {
    check(
        "",
        &[("OTEL_GAP", "250"), ("OTEL_SPECIAL_GAP", "")],
        &[],
        &["sched.gap = \"250ms\" (environment OTEL_GAP)"],
    );
    check(
        "",
        &[("OTEL_GAP", "250"), ("OTEL_SPECIAL_GAP", "300")],
        &[],
        &["sched.gap = \"300ms\" (environment OTEL_SPECIAL_GAP)"],
    );
    check(
        "",
        &[("OTEL_MODE", "GZIP"), ("OTEL_FLAG", "True")],
        &[],
        &[
            "tcp.flag = true (environment OTEL_FLAG)",
            "export.otlp.mode = \"gzip\" (environment OTEL_MODE)",
        ],
    );
    check("", &[("OTEL_UNRELATED", "x")], &[], &[]);
    let ignored = "warning: environment OTEL_GAP: is ignored: \"1s\" is not a number; write milliseconds without a unit";
    check("", &[("OTEL_GAP", "1s")], &[], &[ignored]);
    let ignored = "warning: environment OTEL_SPECIAL_GAP: is ignored: 1ms is out of bounds; write a duration from \"10ms\" to \"1m\"";
    check(
        "",
        &[("OTEL_GAP", "250"), ("OTEL_SPECIAL_GAP", "1")],
        &[],
        &["sched.gap = \"250ms\" (environment OTEL_GAP)", ignored],
    );
    let ignored = "warning: environment OTEL_MODE: is ignored: \"gzp\" is not known; did you mean \"gzip\"? Allowed: none, gzip";
    check("", &[("OTEL_MODE", "gzp")], &[], &[ignored]);
    check(
        "",
        &[("OTEL_FLAG", "1")],
        &[],
        &[
            "warning: environment OTEL_FLAG: is ignored: \"1\" is neither true nor false; write true or false",
        ],
    );
}

#[test]
fn faults_of_a_file() {
    check(
        "[tcp]\nprots = [1]",
        &[],
        &[],
        &["o.toml:2:1: tcp.prots: no such setting; did you mean tcp.ports?"],
    );
    check("[tpc]\nports = [1]", &[], &[], &["o.toml:1:2: tpc: no such section; did you mean tcp?"]);
    check(
        "[zebra]",
        &[],
        &[],
        &["o.toml:1:2: zebra: no such section; `observer config` lists all settings"],
    );
    check(
        "tcp = 3",
        &[],
        &[],
        &["o.toml:1:1: tcp: is a section, not a value; write [tcp] and its settings below"],
    );
    check(
        "[sched]\ngap = 10",
        &[],
        &[],
        &[
            "o.toml:2:7: sched.gap: 10 has no unit; write \"10s\" for seconds or \"10ms\" for milliseconds",
        ],
    );
    check(
        "[sched]\nstep = 64",
        &[],
        &[],
        &[
            "o.toml:2:8: sched.step: 64 has no unit; write \"64B\" for bytes or \"64MiB\" for mebibytes",
        ],
    );
    check(
        "[sched]\n  gap = '2m'",
        &[],
        &[],
        &["o.toml:2:9: sched.gap: 2m is out of bounds; write a duration from \"10ms\" to \"1m\""],
    );
    check(
        "[sched]\nstep = '1B'",
        &[],
        &[],
        &["o.toml:2:8: sched.step: 1B is out of bounds; write a size from \"1MiB\" to \"1TiB\""],
    );
    check(
        "[tcp]\nrows = -1",
        &[],
        &[],
        &["o.toml:2:8: tcp.rows: -1 does not fit; write a whole number from 1 to 100"],
    );
    check(
        "[tcp]\nrows = 101",
        &[],
        &[],
        &["o.toml:2:8: tcp.rows: 101 is out of bounds; write a whole number from 1 to 100"],
    );
    check(
        "[tcp]\nrows = '5'",
        &[],
        &[],
        &["o.toml:2:8: tcp.rows: found a TOML string; write a whole number from 1 to 100"],
    );
    check(
        "[tcp]\nports = [70000]",
        &[],
        &[],
        &["o.toml:2:9: tcp.ports: 70000 is not a port; write ports from 1 to 65535"],
    );
    check(
        "[tcp]\nports = '1'",
        &[],
        &[],
        &[
            "o.toml:2:9: tcp.ports: found a TOML string; write a list of ports, such as [5432, 6379]",
        ],
    );
    check(
        "[tcp.ports]",
        &[],
        &[],
        &["o.toml:1:1: tcp.ports: found a TOML table; write a list of ports, such as [5432, 6379]"],
    );
    check(
        "log.level = 'warning'",
        &[],
        &[],
        &[
            "o.toml:1:13: log.level: \"warning\" is not known; did you mean \"warn\"? Allowed: error, warn, info, debug, trace",
        ],
    );
    check(
        "a = 1\nb = 2",
        &[],
        &[],
        &[
            "o.toml:1:1: a: no such setting; `observer config` lists all settings",
            "o.toml:2:1: b: no such setting; `observer config` lists all settings",
        ],
    );
}

#[test]
fn broken_toml_names_its_line() {
    for (toml, place) in [
        ("group = ", "o.toml:1:9"),
        ("x = 1\nx = 2", "o.toml:2:1"),
        ("\n[tcp", "o.toml:2:5"),
        ("é = '", "o.toml:1:"),
    ] {
        let error = load(toml, &[], &[]).unwrap_err().to_string();
        assert!(
            error.starts_with(place) && error.ends_with("; mend the TOML there"),
            "{toml:?}: {error}"
        );
    }
}

#[test]
fn faults_of_flags() {
    check(
        "",
        &[],
        &["tcp.rows"],
        &["--set: has no \"=\"; write --set key=value, such as --set interval=2s"],
    );
    check("", &[], &["tcp.row=3"], &["--set tcp.row: no such setting; did you mean tcp.rows?"]);
    check(
        "",
        &[],
        &["interval=5"],
        &["--set interval: 5 has no unit; write \"5s\" for seconds or \"5ms\" for milliseconds"],
    );
    check("", &[], &["tcp.names="], &["tcp.names = [] (flag --set)"]);
}

#[test]
fn all_faults_are_told_at_once() {
    let error = load("zebra = 1", &[("OBSERVER_ZEBRA", "1")], &["zebra=1"]).unwrap_err();
    assert_eq!(error.to_string().lines().count(), 3);
}

#[test]
fn secrets_are_never_shown() {
    let config = load("", &[("OTEL_HEADERS", "key=hush")], &[]).unwrap();
    assert_eq!(config.text(&HEADERS), "key=hush");
    assert!(!config.to_toml().contains("hush") && !format!("{config:?}").contains("hush"));
    assert!(config.to_toml().contains("headers = \"***\""));
    for toml in [
        "export.otlp.headers = ['hush']",
        "export.otlp.headers = {x = 'hush'}",
        "export.otlp.headers = 'hush",
    ] {
        let error = load(toml, &[], &[]).unwrap_err().to_string();
        assert!(!error.contains("hush"), "{error}");
    }
    check(
        "export.otlp.headers = '***'",
        &[],
        &[],
        &[
            "o.toml:1:23: export.otlp.headers: *** is the mask that `observer config` prints; write the secret itself, or remove the line",
        ],
    );
}

#[test]
fn passwords_in_urls_are_never_shown() {
    let check = |url: &str, expect: &str| {
        let config = load("", &[("OBSERVER_GROUP", url)], &[]).unwrap();
        assert_eq!(config.text(&GROUP), url);
        assert!(
            config.to_toml().contains(&format!("group = \"{expect}\"")),
            "{}",
            config.to_toml()
        );
    };
    check("https://ann:hush@host:4318/v1?a=b@c", "https://***@host:4318/v1?a=b@c");
    check("https://a@b:hush@host", "https://***@host");
    check("https://host/x@y", "https://host/x@y");
    check("plain@text", "plain@text");
    let error = load("group = 'https://***@host'", &[], &[]).unwrap_err().to_string();
    assert!(error.contains("is the mask"), "{error}");
}

#[test]
fn folders_follow_the_state_dir() {
    let config = Config::default_for_tests(&[SETTINGS]);
    assert_eq!(config.store_dir(), PathBuf::from("/var/lib/observer"));
    assert_eq!(config.run_dir(), PathBuf::from("/run/observer"));
    let config = load("", &[("OBSERVER_STATE_DIR", "/tmp/o")], &[]).unwrap();
    assert_eq!((config.store_dir(), config.run_dir()), ("/tmp/o".into(), "/tmp/o".into()));
}

#[test]
fn every_registered_setting_is_sound() {
    let all = all_settings();
    Config::default_for_tests(&all);
    for key in all.iter().copied().flatten().map(|setting| setting.key) {
        let section = format!("{key}.");
        assert!(
            !all.iter().copied().flatten().any(|setting| setting.key.starts_with(&section)),
            "{key} is a section too"
        );
    }
    let mut variables: Vec<_> = all.iter().copied().flatten().map(Setting::variable).collect();
    let count = variables.len();
    variables.sort();
    variables.dedup();
    assert_eq!(variables.len(), count, "two settings share a variable");
}

proptest! {
    /// What `observer config` prints is TOML that gives the same configuration.
    #[test]
    fn printed_configuration_reads_back(group in "\\PC*", names in prop::collection::vec("\\PC+", 0..4), rows in 1u64..=100, gap in 10u64..60_000) {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let names = names.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ");
        let toml = format!("group = {}\n[tcp]\nnames = [{names}]\nrows = {rows}\n[sched]\ngap = '{gap}ms'\n", quoted(&group));
        let first = load(&toml, &[], &[]).unwrap();
        let second = load(&first.to_toml(), &[], &[]).unwrap();
        let values = |config: &Config| config.entries.iter().map(|entry| entry.value.to_toml()).collect::<Vec<_>>();
        prop_assert_eq!(values(&first), values(&second));
    }

    #[test]
    fn no_file_panics(text in "(\\PC|\n|=|\\[|\\])*") {
        if let Err(error) = load(&text, &[], &[]) {
            prop_assert!(!error.problems.is_empty());
        }
    }
}
