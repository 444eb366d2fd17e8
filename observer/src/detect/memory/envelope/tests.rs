//! Teeth of many shapes, and what their lower envelope says.

use proptest::prelude::*;

use super::*;

const MIB: f64 = 1048576.0;

fn filled(seconds: usize, value: impl Fn(f64) -> f64) -> Envelope {
    let mut envelope = Envelope::default();
    (0..seconds).for_each(|second| envelope.add(second as f64, value(second as f64)));
    envelope
}

/// The rates, in MiB/s, of all windows that grow for sure.
fn rates(envelope: &Envelope) -> Vec<f64> {
    Window::all()
        .filter_map(|window| envelope.trend(window))
        .filter(|trend| trend.slope.grows())
        .map(|trend| trend.slope.per_second / MIB)
        .collect()
}

#[test]
fn a_ramp_has_its_rate_at_every_scale() {
    let envelope = filled(3600, |second| 5.0 * MIB * second);
    let rates = rates(&envelope);
    assert!(rates.len() >= 8, "{rates:?}");
    rates.iter().for_each(|rate| assert!((rate - 5.0).abs() < 0.2, "{rates:?}"));
}

#[test]
fn teeth_are_gone_at_the_scale_that_holds_one() {
    for period in [20.0, 70.0, 200.0] {
        let tooth = |second: f64| (second % period) * MIB + 300.0 * MIB;
        let envelope = filled(7200, tooth);
        let long = Window::all().filter(|window| SPANS_S[window.scale] >= period * 1.5);
        for window in long {
            let Some(trend) = envelope.trend(window) else { continue };
            let rate = trend.slope.per_second / MIB;
            assert!(rate.abs() < 0.02, "period {period}: {window:?} {rate}");
        }
        // And what rises within a tooth has been there before.
        for window in Window::all() {
            let Some(trend) = envelope.trend(window).filter(|trend| trend.slope.grows()) else {
                continue;
            };
            let before = envelope.before(trend.from_s).expect("older teeth").high;
            assert!(
                trend.high <= before + 2.0 * MIB,
                "period {period}: {window:?} {trend:?} {before}"
            );
        }
    }
}

#[test]
fn a_leak_below_teeth_is_found() {
    let envelope = filled(3600, |second| (second % 60.0) * 3.0 * MIB + second * 0.5 * MIB);
    let long = Window::all().filter(|window| SPANS_S[window.scale] >= 90.0);
    let found: Vec<_> = long.filter_map(|window| envelope.trend(window)).collect();
    assert!(!found.is_empty());
    for trend in found {
        let rate = trend.slope.per_second / MIB;
        assert!(trend.slope.grows() && (rate - 0.5).abs() < 0.1, "{trend:?}");
    }
}

#[test]
fn what_fills_up_has_little_to_come() {
    let tau = 300.0;
    let envelope = filled(600, |second| 1000.0 * MIB * (1.0 - (-second / tau).exp()));
    let window = Window { scale: 2, blocks: MAX_BLOCKS };
    let rest = envelope.trend(window).expect("ten minutes").rest / MIB;
    // At 600 s 135 MiB are to come.
    assert!((100.0..250.0).contains(&rest), "{rest}");
    let ramp = filled(600, |second| second * MIB);
    assert!(ramp.trend(window).expect("ten minutes").rest > 1e5 * MIB);
}

#[test]
fn slow_ticks_make_longer_blocks() {
    let mut envelope = Envelope::default();
    (0..30)
        .for_each(|minute| envelope.add(f64::from(minute) * 60.0, f64::from(minute) * 60.0 * MIB));
    let rates = rates(&envelope);
    assert!(!rates.is_empty());
    rates.iter().for_each(|rate| assert!((rate - 1.0).abs() < 0.05, "{rates:?}"));
}

#[test]
fn the_past_can_be_asked() {
    let envelope = filled(1000, |second| second);
    for second in [10.0, 500.0, 990.0] {
        let found = envelope.at(second).expect("it was seen");
        let finest = [2.0, 8.0, 32.0, 128.0].into_iter().find(|span| 1000.0 - second < span * 12.0);
        assert!((0.0..=finest.unwrap_or(128.0)).contains(&(second - found)), "{second}: {found}");
    }
    assert_eq!(envelope.since_s(), Some(0.0));
}

proptest! {
    #[test]
    fn never_panics(readings in prop::collection::vec((any::<f64>(), any::<f64>()), 0..200)) {
        let mut envelope = Envelope::default();
        for (at, value) in readings {
            envelope.add(at, value);
            for window in Window::all() {
                if let Some(trend) = envelope.trend(window) {
                    envelope.before(trend.from_s);
                    envelope.at(trend.from_s);
                }
            }
        }
    }
}
