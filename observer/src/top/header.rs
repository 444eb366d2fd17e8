//! The lines above the panes: host, agent, and what the agent cannot see.

use super::{
    Tone,
    format::{bytes, duration, percent},
    panes::findings,
};
use crate::snapshot::{Exporter, Health, Snapshot, Verdict};

/// State of an exporter that sends.
const OPEN: &str = "open";
/// State of an exporter that its destination refuses.
const HELD: &str = "held";

/// Three lines, each with its tone.
pub(super) fn lines(snapshot: &Snapshot) -> [(String, Tone); 3] {
    let health = &snapshot.health;
    [host(snapshot), (agent(health), agent_tone(health)), blind_spots(health)]
}

/// The host, and the worst that is found on it.
fn host(snapshot: &Snapshot) -> (String, Tone) {
    let worst = findings::worst(&snapshot.detect);
    let found = worst.map(|finding| format!("  {} {}", finding.level.text(), finding.kind));
    let text = format!(
        "{}  {}  up {}  kernel {}{}",
        if snapshot.host_name.is_empty() { "host?" } else { &snapshot.host_name },
        time(snapshot.time_unix_ns),
        duration(snapshot.uptime_ns),
        snapshot.kernel,
        found.unwrap_or_default()
    );
    (text, worst.map_or(Tone::Plain, |finding| findings::tone(finding.level)))
}

fn time(unix_ns: u64) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(unix_ns)) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        Err(_) => "time?".to_owned(),
    }
}

fn agent(health: &Health) -> String {
    // Those in trouble first: the line may be cut.
    let (open, trouble): (Vec<_>, Vec<_>) = health
        .exporters
        .iter()
        .partition(|exporter| exporter.state == OPEN && exporter.dropped == 0);
    let exporters: String = trouble.into_iter().chain(open).map(exporter).collect();
    format!(
        "agent: {} cpu, {} rss, {} maps{exporters}",
        percent(health.cpu_ratio),
        bytes(health.rss_bytes),
        bytes(health.bpf_map_bytes)
    )
}

fn exporter(exporter: &Exporter) -> String {
    let mut text = format!("; {} {}", exporter.name, exporter.state);
    if exporter.state != OPEN && !exporter.reason.is_empty() {
        text += &format!(" ({})", exporter.reason);
    }
    if exporter.dropped > 0 {
        text += &format!(", {} dropped", exporter.dropped);
    }
    text
}

fn agent_tone(health: &Health) -> Tone {
    let tone = |exporter: &Exporter| match exporter.state.as_str() {
        HELD => Tone::Bad,
        OPEN if exporter.dropped == 0 => Tone::Plain,
        _ => Tone::Warn,
    };
    health.exporters.iter().map(tone).max().unwrap_or_default()
}

fn blind_spots(health: &Health) -> (String, Tone) {
    let with =
        |verdict: Verdict| health.programs.iter().filter(move |program| program.verdict == verdict);
    let mut parts = Vec::new();
    let mut tone = Tone::Plain;
    for (verdict, word, urgency) in
        [(Verdict::Impossible, "blind", Tone::Bad), (Verdict::Degraded, "degraded", Tone::Warn)]
    {
        let programs: Vec<_> =
            with(verdict).map(|program| format!("{} ({})", program.name, program.reason)).collect();
        if !programs.is_empty() {
            parts.push(format!("{word}: {}", programs.join(", ")));
            tone = tone.max(urgency);
        }
    }
    let losses: Vec<_> = health
        .losses
        .iter()
        .filter(|loss| loss.count > 0)
        .map(|loss| format!("{} {}", loss.stage, loss.count))
        .collect();
    if !losses.is_empty() {
        parts.push(format!("lost: {}", losses.join(", ")));
        tone = tone.max(Tone::Warn);
    }
    if parts.is_empty() {
        let running = with(Verdict::Attached).count();
        let standby = with(Verdict::Standby).count();
        return (
            format!("sees all: {running} programs attached, {standby} on standby, nothing lost"),
            tone,
        );
    }
    (parts.join("; "), tone)
}
