//! When a pool of memory (the host's, or a control group's) will be gone, from what it and its processes did before.

use super::{
    envelope::{Envelope, Trend, Window},
    history::{Histories, History},
    levels::Levels,
};
use crate::{
    detect::{Level, Party, party},
    snapshot::Snapshot,
};

/// A trend may be drawn out by so many times the time for which it was seen: with it, a fifth of the room must be gone.
const REACH: f64 = 4.0;
/// What slows down and would end within this share of the room is let go on.
const FITS: f64 = 0.7;
/// A process whose growth is less than this share of the pool's is part of the noise.
const SMALL: f64 = 0.02;
/// A rise goes back as far as it went at this share of its present rate.
const SAME_RISE: f64 = 0.3;
/// At this share of the pool's growth, processes explain it.
const EXPLAINED: f64 = 0.5;
/// Processes whose growth is less than this share of the pool's explain next to nothing of it.
const HARDLY: f64 = 0.25;
/// A child that holds so much of what its parent holds has not let go of its parent's pages.
const COPY: f64 = 0.5;
/// Pages that two processes share must be this share of what is used, for their copies to fill a pool.
const COPIED: f64 = 0.2;
/// A rate may be so much more than that of the later half of its window: what has stopped has no time left.
const LATELY: f64 = 1.5;
/// What has just started takes memory, and so it seems to an agent that has just started: it must have taken this share of
/// the room before anybody is told.
const YOUNG_EATEN: f64 = 0.6;
/// More processes of a size that their program is known for are somebody's decision; it must go further to be told.
const MORE_EATEN: f64 = 0.8;
/// The tip of the last tooth counts unless it came this close to the end, as a share of the capacity: that was survived.
const SURVIVED: f64 = 0.01;
/// What was told is taken back only when it is missed by this factor.
const EASE: f64 = 1.6;

/// A pool.
#[derive(Clone, Copy)]
pub struct Pool<'a> {
    /// What is used of it, in bytes.
    pub usage: &'a Envelope,
    /// What may be used until it is gone.
    pub capacity: f64,
    /// Share of it that is free.
    pub free_ratio: f64,
    /// Whether the kernel says that it is short.
    pub pressed: bool,
    /// All processes.
    pub processes: &'a Histories,
    /// Which of them are in it.
    pub is_member: &'a dyn Fn(&History) -> bool,
    /// What each level means.
    pub levels: Levels,
    /// What no process shows, by name.
    pub parts: &'a [(&'static str, &'a Envelope)],
    /// Since when it is watched.
    pub first_s: f64,
    /// Since when it is told that it runs out.
    pub told_s: Option<f64>,
    /// Now.
    pub now_s: f64,
}

/// A growth that ends the memory, if it goes on.
#[derive(Debug, Clone, Copy)]
pub struct Outlook {
    /// How long it will take.
    pub left_s: f64,
    /// Bytes a second.
    pub rate: f64,
    /// Share that it has taken of the room at the beginning.
    pub eaten: f64,
    /// What it must have taken at least: more if it is mostly by processes that have grown ever since they began, or that
    /// nobody has watched for as long before, because most such growth is a start.
    least_eaten: f64,
    window: Window,
    span_s: f64,
    from_s: f64,
}

/// What processes do within a window, in bytes a second.
#[derive(Default)]
struct Share<'a> {
    /// They come back to what they held before.
    known: f64,
    /// They have grown since they began, or since they are watched.
    young: f64,
    /// They have just begun, and hold what others of their program hold.
    more: f64,
    /// They go where they have not been.
    new: f64,
    /// What is still to come of those who slow down.
    rest: f64,
    /// Who they are.
    causes: Vec<party::Cause<'a>>,
    parts: Vec<(&'static str, f64)>,
}

impl<'a> Pool<'a> {
    /// How urgent it is, and the outlook that says so; `held` is what was told last, for which less is enough.
    pub fn judge(&self, held: Option<Level>) -> Option<(Level, Outlook)> {
        Window::all()
            .filter_map(|window| self.outlook(window))
            .filter_map(|outlook| Some((self.level(&outlook, held)?, outlook)))
            .max_by(|a, b| a.0.cmp(&b.0).then(b.1.mismatch().total_cmp(&a.1.mismatch())))
    }

    fn level(&self, outlook: &Outlook, held: Option<Level>) -> Option<Level> {
        let (free_ratio, levels) = (self.free_ratio, &self.levels);
        let reached = |level: Level| {
            let ease = if held >= Some(level) { EASE } else { 1.0 };
            let within = |left_s: f64, free: f64, eaten: f64| {
                let eaten = eaten.max(outlook.least_eaten);
                outlook.left_s < left_s * ease
                    && free_ratio < free * ease
                    && outlook.eaten > eaten / ease
            };
            match level {
                Level::Watch => within(levels.watch_s, 0.6, 0.2),
                Level::Warn => {
                    within(levels.warn_s, levels.free_ratio, 0.25)
                        || within(levels.warn_s * 6.0, levels.little_ratio, 0.25)
                }
                Level::Critical => {
                    let critical_s = levels.critical_s;
                    within(critical_s, 0.2, 0.4) && (self.pressed || free_ratio < 0.12 * ease)
                        || within(critical_s * 5.0, levels.little_ratio, 0.4)
                        || within(critical_s / 6.0, 0.25, 0.5)
                }
                Level::Emergency => {
                    within(levels.emergency_s, 0.15, 0.5)
                        && (self.pressed || free_ratio < levels.little_ratio)
                }
            }
        };
        Level::ALL.into_iter().rev().find(|level| reached(*level))
    }

    fn outlook(&self, window: Window) -> Option<Outlook> {
        let trend = self.usage.trend(window).filter(|trend| trend.slope.grows())?;
        let room = self.room(trend.high);
        let enough = |rate: f64| rate > 0.0 && rate * REACH * trend.span_s >= room;
        if !enough(trend.slope.per_second) {
            return None;
        }
        let share = self.share(window, &trend);
        let lately = window.half().and_then(|half| self.usage.trend(half));
        let lately = lately.map_or(f64::INFINITY, |half| half.slope.per_second.max(0.0) * LATELY);
        let rate = (trend.slope.per_second - share.known).min(lately);
        if !enough(rate) {
            return None;
        }
        let explained = share.new + share.young + share.more >= rate * EXPLAINED;
        let expected = self.usage.before(trend.from_s).map_or(0.0, |past| past.expected());
        if !explained && trend.high <= expected {
            return None;
        }
        let rest = if explained { share.rest } else { rest(self.usage, window, rate) };
        if rest < room * FITS {
            return None;
        }
        let rise_s = rise(self.usage, window, rate).unwrap_or(trend.from_s);
        let least_eaten = self.least_eaten(&share, rise_s);
        let by_processes = share.new + share.young + share.more;
        // Of a start, what it has taken itself counts, and not the teeth of others in the same window.
        let rise = if explained && least_eaten > 0.0 { rate.min(by_processes) } else { rate };
        let grown = self.taken(&trend).min(rise * trend.span_s);
        Some(Outlook {
            left_s: room / rate,
            rate,
            eaten: grown / (grown + room).max(1.0),
            least_eaten,
            window,
            span_s: trend.span_s,
            from_s: trend.from_s,
        })
    }

    /// How much of the room must be taken before a growth is told that began at an instant.
    fn least_eaten(&self, share: &Share<'_>, rise_s: f64) -> f64 {
        let unwatched = rise_s - self.first_s < self.now_s - rise_s;
        if share.more > share.young + share.new {
            MORE_EATEN
        } else if unwatched || share.young + share.more > share.new {
            YOUNG_EATEN
        } else {
            0.0
        }
    }

    /// How much more is in use than when a window began. A trend's rate is that of its steepest half, which need not have
    /// lasted for all of the window.
    fn taken(&self, trend: &Trend) -> f64 {
        let before = self.usage.at(trend.from_s).unwrap_or(trend.high);
        (trend.high - before).max(0.0)
    }

    /// What may still be taken, from the highest reading of late on.
    fn room(&self, high: f64) -> f64 {
        let room = self.capacity - high;
        if room > self.capacity * SURVIVED {
            return room;
        }
        (self.capacity - self.usage.last().unwrap_or(high)).max(0.0)
    }

    fn share(&self, window: Window, pool: &Trend) -> Share<'a> {
        let mut share = Share::default();
        let least = pool.slope.per_second * SMALL * pool.span_s;
        for (name, part) in self.parts {
            let grown = part.trend(window).filter(|trend| trend.slope.grows());
            let Some(trend) = grown.filter(|t| t.slope.per_second * t.span_s >= least) else {
                continue;
            };
            let rate = trend.slope.per_second;
            if trend.high <= part.before(trend.from_s).map_or(0.0, |past| past.expected()) {
                share.known += rate;
            } else {
                share.new += rate;
                share.rest += rest(part, window, rate);
                share.parts.push((name, rate));
            }
        }
        for (pid, process) in self.processes.all() {
            if (self.is_member)(process) && process.growth_since(pool.from_s) >= least {
                self.add(&mut share, window, pool, pid, process);
            }
        }
        share
    }

    fn add(
        &self,
        share: &mut Share<'a>,
        window: Window,
        pool: &Trend,
        pid: u32,
        process: &'a History,
    ) {
        let Some(trend) = process.private.trend(window) else {
            // It is too young for the window.
            let rate = process.growth_since(pool.from_s) / pool.span_s.max(1.0);
            let is_one_more = self.processes.is_one_more(process);
            *if is_one_more { &mut share.more } else { &mut share.young } += rate;
            share.rest += rest_of_young(&process.private);
            share.causes.push((pid, &process.name, rate));
            return;
        };
        let rate = trend.slope.per_second;
        if !trend.slope.grows() {
            return;
        }
        if self.processes.is_known(process, &trend) {
            share.known += rate;
            return;
        }
        share.causes.push((pid, &process.name, rate));
        share.rest += rest(&process.private, window, rate);
        let rise_s = rise(&process.private, window, rate).unwrap_or(trend.from_s);
        let since_s = process.private.since_s().unwrap_or(rise_s);
        if rise_s - since_s < self.now_s - rise_s {
            let is_one_more = self.processes.is_one_more(process);
            *if is_one_more { &mut share.more } else { &mut share.young } += rate;
        } else {
            share.new += rate;
        }
    }

    /// Who takes it, over the longest window within which it was told: who has paused, or waits for memory as all do then,
    /// does not leave the blame to whoever takes the rest.
    pub fn culprit(&self, snapshot: &Snapshot, outlook: &Outlook) -> Option<Party> {
        let told = |trend: &Trend| self.told_s.is_some_and(|told_s| trend.from_s >= told_s);
        let grows = |window| self.usage.trend(window).filter(|trend| trend.slope.grows());
        let longer = Window::all().filter(|window| *window > outlook.window);
        let longest = longer.filter(|window| grows(*window).as_ref().is_some_and(told)).last();
        let window = longest.unwrap_or(outlook.window);
        let pool = self.usage.trend(window)?;
        let share = self.share(window, &pool);
        let of_processes: f64 = share.causes.iter().map(|cause| cause.2).sum();
        let part = share.parts.iter().max_by(|a, b| a.1.total_cmp(&b.1));
        if let Some((name, rate)) = part.filter(|(_, rate)| *rate > of_processes) {
            return Some(party::kernel(name, (rate / outlook.rate.max(1.0)).min(1.0)));
        }
        let explained = (of_processes / pool.slope.per_second.max(1.0)).min(1.0);
        if explained < HARDLY
            && let Some(copied) = self.copied(snapshot)
        {
            return Some(copied);
        }
        if share.causes.is_empty() {
            return self.grower(snapshot, outlook.from_s);
        }
        let mut party = party::culprit(snapshot, &share.causes)?;
        party.share_ratio *= explained;
        Some(party)
    }

    /// A program and its child that hold the same pages: what either writes is copied, and neither grows by it. Of several
    /// the largest, if it holds a good part of what is used.
    fn copied(&self, snapshot: &Snapshot) -> Option<Party> {
        let held = |pid: u32| {
            let process = self.processes.get(pid).filter(|process| (self.is_member)(process))?;
            Some((process.name.as_str(), process.private.last()?))
        };
        let pair = |pid: u32| {
            let parent_pid = snapshot.processes.get(&pid)?.parent_pid;
            let ((name, child), (parent_name, parent)) = (held(pid)?, held(parent_pid)?);
            let is_copy = name == parent_name && child >= parent * COPY;
            is_copy.then_some((parent_pid, pid, name, child.min(parent)))
        };
        let pairs = self.processes.all().filter_map(|(pid, _)| pair(pid));
        let (parent_pid, pid, name, held) = pairs.max_by(|a, b| a.3.total_cmp(&b.3))?;
        let is_large = held >= self.usage.last()? * COPIED;
        let causes = [(parent_pid, name, 1.0), (pid, name, 1.0)];
        is_large.then(|| party::culprit(snapshot, &causes)).flatten()
    }

    /// Who grew most since an instant.
    pub fn grower(&self, snapshot: &Snapshot, from_s: f64) -> Option<Party> {
        let members = self.processes.all().filter(|(_, process)| (self.is_member)(process));
        let causes: Vec<party::Cause<'_>> = members
            .map(|(pid, process)| (pid, process.name.as_str(), process.growth_since(from_s)))
            .filter(|cause| cause.2 > 0.0)
            .collect();
        party::culprit(snapshot, &causes)
    }
}

impl Outlook {
    /// How far the time for which it was seen is from the time that it foretells: the nearer, the better it knows.
    fn mismatch(&self) -> f64 {
        (self.span_s.max(1.0) / self.left_s.max(1.0)).ln().abs()
    }
}

/// Since when something rises as it does in a window, as far as longer windows tell.
fn rise(envelope: &Envelope, window: Window, rate: f64) -> Option<f64> {
    longer(envelope, window, rate).map(|trend| trend.from_s).min_by(f64::total_cmp)
}

/// What is still to come, by the window that says least.
fn rest(envelope: &Envelope, window: Window, rate: f64) -> f64 {
    longer(envelope, window, rate).map(|trend| trend.rest).fold(f64::INFINITY, f64::min)
}

/// The same of what is younger than the window: by the longest window that it has.
fn rest_of_young(envelope: &Envelope) -> f64 {
    let known = Window::all().filter_map(|window| envelope.trend(window));
    known.filter(|trend| trend.slope.grows()).last().map_or(f64::INFINITY, |trend| trend.rest)
}

fn longer(envelope: &Envelope, window: Window, rate: f64) -> impl Iterator<Item = Trend> + '_ {
    Window::all()
        .filter(move |longer| *longer >= window)
        .filter_map(|longer| envelope.trend(longer))
        .filter(move |trend| trend.slope.grows() && trend.slope.per_second >= rate * SAME_RISE)
}
