//! What a quantity was like over seconds, minutes and hours, in a few hundred bytes: the lowest and the highest reading of
//! blocks of time, at six scales. The lowest readings are what a garbage collector could not free; of the scale whose
//! blocks hold a whole tooth of a sawtooth, they show no teeth. No period has to be known beforehand.

use std::cell::Cell;

use super::slope::{MAX_POINTS, Slope, slope};

/// Scales.
pub const SCALES: usize = 6;
/// Length of a block of each scale, in seconds: windows from 8 s to 7 h, each twice the one before it.
const SPANS_S: [f64; SCALES] = [2.0, 8.0, 32.0, 128.0, 512.0, 2048.0];
/// Closed blocks kept of each scale.
const MAX_BLOCKS: usize = MAX_POINTS;
/// Blocks of a window: the last half of what is kept, and all.
const WINDOWS: [usize; 2] = [MAX_BLOCKS / 2, MAX_BLOCKS];

/// What grew by this much faster in the first half of a window slows down; less is chance.
const SLOWER: f64 = 1.25;

/// A stretch of time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Block {
    /// Its first reading, in seconds.
    pub from_s: f64,
    /// When the lowest reading was.
    pub low_s: f64,
    /// The lowest.
    pub low: f64,
    /// The highest.
    pub high: f64,
}

/// What the closed blocks of a window say; the same until another one is closed.
#[derive(Debug, Clone, Copy)]
struct Closed {
    slope: Slope,
    from_s: f64,
    rest: f64,
}

#[derive(Debug, Clone, Default)]
struct Scale {
    /// Closed blocks; the oldest is at `next` once all are in use.
    blocks: [Block; MAX_BLOCKS],
    next: usize,
    len: usize,
    open: Option<Block>,
    /// Of each window that was asked for since the last block was closed.
    trends: [Cell<Option<Option<Closed>>>; WINDOWS.len()],
}

/// The envelope of one quantity.
#[derive(Debug, Clone, Default)]
pub struct Envelope {
    scales: [Scale; SCALES],
    /// The last reading: when, and what.
    last: Option<(f64, f64)>,
}

/// A window of an envelope: of which scale, and how many of its last blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Window {
    scale: usize,
    blocks: usize,
}

/// How the lower envelope went over a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trend {
    /// Of the lowest readings.
    pub slope: Slope,
    /// From the first block's beginning to now.
    pub from_s: f64,
    /// The same, as a length.
    pub span_s: f64,
    /// The highest reading of the last closed block and of the open one: the tip of the present tooth.
    pub high: f64,
    /// What is still to come if it goes on slowing down as it did within the window, in the unit of the values; infinite if
    /// it does not slow down.
    pub rest: f64,
}

/// What something was like before an instant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Past {
    /// The highest reading.
    pub high: f64,
    /// The deepest fall from a height to a later reading: the teeth of a collected heap. A leak has none.
    pub fall: f64,
    /// How long that was watched.
    pub span_s: f64,
}

impl Window {
    /// All of them, the shortest first.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..SCALES).flat_map(|scale| WINDOWS.map(|blocks| Self { scale, blocks }))
    }

    /// The next shorter one: the later half of it.
    pub fn half(self) -> Option<Self> {
        let [half, whole] = WINDOWS;
        match self.scale.checked_sub(1) {
            _ if self.blocks > half => Some(Self { blocks: half, ..self }),
            Some(scale) => Some(Self { scale, blocks: whole }),
            None => None,
        }
    }

    /// Whether it is one of minutes and more.
    pub fn is_long(self) -> bool {
        self.scale >= 2
    }
}

impl Envelope {
    /// Adds a reading. One that is not later than the last, or is no number, is left out.
    pub fn add(&mut self, now_s: f64, value: f64) {
        let later = self.last.is_none_or(|(at, _)| now_s > at);
        if !later || !value.is_finite() || !now_s.is_finite() {
            return;
        }
        self.last = Some((now_s, value));
        for (scale, span_s) in self.scales.iter_mut().zip(SPANS_S) {
            scale.add(now_s, value, span_s);
        }
    }

    /// The last reading.
    pub fn last(&self) -> Option<f64> {
        self.last.map(|(_, value)| value)
    }

    /// The highest reading that is still known; 0 before the first.
    pub fn highest(&self) -> f64 {
        let blocks = self.scales.iter().flat_map(Scale::all);
        blocks.map(|block| block.high).fold(0.0, f64::max)
    }

    /// When the first reading was that is still known.
    pub fn since_s(&self) -> Option<f64> {
        let oldest = |scale: &Scale| scale.all().next().map(|block| block.from_s);
        self.scales.iter().filter_map(oldest).min_by(f64::total_cmp)
    }

    /// The trend over a window; `None` with too few blocks, or while the scale has no more to say than a shorter one.
    pub fn trend(&self, window: Window) -> Option<Trend> {
        let scale = self.scales.get(window.scale)?;
        let Closed { slope, from_s, rest } = scale.trend(window.blocks)?;
        let now_s = self.last?.0;
        let last = scale.last()?;
        let high = scale.open.map_or(last.high, |open| open.high.max(last.high));
        Some(Trend { slope, from_s, span_s: (now_s - from_s).max(0.0), high, rest })
    }

    /// What is known of the time before an instant.
    pub fn before(&self, instant_s: f64) -> Option<Past> {
        let mut past: Option<Past> = None;
        for scale in &self.scales {
            let ends = scale.all().skip(1).map(|next| next.from_s);
            let mut top = f64::MIN;
            for (block, _) in scale.closed().zip(ends).filter(|(_, end_s)| *end_s <= instant_s) {
                let past = past.get_or_insert(Past { high: block.high, fall: 0.0, span_s: 0.0 });
                past.span_s = past.span_s.max(instant_s - block.from_s);
                past.fall = past.fall.max(top - block.low);
                past.high = past.high.max(block.high);
                top = top.max(block.high);
            }
        }
        past
    }

    /// The reading at an instant, as well as the finest scale that reaches back so far tells: the lowest of its block.
    pub fn at(&self, instant_s: f64) -> Option<f64> {
        let reaches = |scale: &&Scale| scale.all().next().is_some_and(|b| b.from_s <= instant_s);
        let scale = self.scales.iter().find(reaches)?;
        let upto = scale.all().take_while(|block| block.from_s <= instant_s);
        upto.last().map(|block| block.low)
    }
}

impl Scale {
    fn add(&mut self, now_s: f64, value: f64, span_s: f64) {
        let fresh = Block { from_s: now_s, low_s: now_s, low: value, high: value };
        let Some(open) = &mut self.open else {
            self.open = Some(fresh);
            return;
        };
        if now_s - open.from_s >= span_s {
            if let Some(slot) = self.blocks.get_mut(self.next) {
                *slot = *open;
            }
            self.next = (self.next + 1) % MAX_BLOCKS;
            self.len = (self.len + 1).min(MAX_BLOCKS);
            *open = fresh;
            self.trends = Default::default();
            return;
        }
        if value < open.low {
            (open.low, open.low_s) = (value, now_s);
        }
        open.high = open.high.max(value);
    }

    /// Closed blocks, the oldest first.
    fn closed(&self) -> impl Iterator<Item = Block> + '_ {
        let oldest = if self.len == MAX_BLOCKS { self.next } else { 0 };
        let (newer, older) = self.blocks.split_at(oldest.min(MAX_BLOCKS));
        older.iter().chain(newer).take(self.len).copied()
    }

    /// The last closed block.
    fn last(&self) -> Option<Block> {
        let at = (self.next + MAX_BLOCKS - 1) % MAX_BLOCKS;
        self.blocks.get(at).filter(|_| self.len > 0).copied()
    }

    /// The trend over so many of the last closed blocks.
    fn trend(&self, blocks: usize) -> Option<Closed> {
        let kept = self.trends.get(usize::from(blocks > WINDOWS[0]))?;
        kept.get().unwrap_or_else(|| {
            let trend = self.slope(blocks);
            kept.set(Some(trend));
            trend
        })
    }

    fn slope(&self, blocks: usize) -> Option<Closed> {
        if blocks > WINDOWS[0] && self.len <= WINDOWS[0] {
            return None;
        }
        let mut points = [(0.0, 0.0); MAX_POINTS];
        let mut count = 0;
        let mut from_s = f64::MAX;
        let skipped = self.len.saturating_sub(blocks);
        for (point, block) in points.iter_mut().zip(self.closed().skip(skipped)) {
            *point = (block.low_s, block.low);
            from_s = block.from_s.min(from_s);
            count += 1;
        }
        let points = points.get(..count)?;
        Some(Closed { slope: slope(points)?, from_s, rest: rest(points) })
    }

    /// With the open one.
    fn all(&self) -> impl Iterator<Item = Block> + '_ {
        self.closed().chain(self.open)
    }
}

/// What is still to come of a growth whose halves shrink geometrically, as those of a filling cache do.
fn rest(points: &[(f64, f64)]) -> f64 {
    let middle = points.len() / 2;
    let grown = |from: usize, to: usize| {
        let ((from_s, before), (to_s, after)) = (*points.get(from)?, *points.get(to)?);
        (to_s > from_s).then(|| ((after - before) / (to_s - from_s), after - before))
    };
    match (grown(0, middle), grown(middle, points.len().saturating_sub(1))) {
        (Some((first, _)), Some((second, grown))) if first > second * SLOWER && first > 0.0 => {
            grown.max(0.0) / (first / second.max(first * 0.01) - 1.0)
        }
        _ => f64::INFINITY,
    }
}

#[cfg(test)]
mod tests;
