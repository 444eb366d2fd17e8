//! One trace an incident: from the first abnormal sign until all is well, with a span for each finding in the order in which
//! it spread. Findings that never come to WARN make no trace.

use std::sync::Arc;

use super::{Finding, Level, Link, key::ByKey, track::Instant};
use crate::{
    signal::{Output, span_context},
    telemetry::{Span, SpanContext, Subject, attr},
};

/// Findings that one trace tells; those beyond are counted in the root span.
const MAX_CHILDREN: usize = 128;

/// All must be well for this long before an incident is over: what returns sooner belongs to it.
const CALM_NS: u64 = 60_000_000_000;

/// A finding of the incident.
#[derive(Debug, Clone)]
struct Child {
    number: u64,
    finding: Arc<Finding>,
    worst: Level,
    end_unix_ns: Option<u64>,
}

/// The open incident, if any.
#[derive(Debug, Default)]
pub(super) struct Incident {
    start_unix_ns: u64,
    children: ByKey<String, Child>,
    beyond: u64,
    calm_since_ns: Option<u64>,
}

impl Incident {
    /// Takes a finding of which something is told, `new` if it is the first word of it; returns its place in the trace.
    pub(super) fn take(&mut self, finding: &Arc<Finding>, new: bool) -> Option<SpanContext> {
        if self.children.is_empty() {
            *self = Self { start_unix_ns: finding.since_unix_ns, ..Self::default() };
        }
        if let Some(number) = self.follow(finding) {
            return Some(self.context(number));
        }
        if self.children.len() >= MAX_CHILDREN {
            self.beyond += u64::from(new);
            return None;
        }
        let number = self.children.len() as u64 + 1;
        let (id, worst) = (finding.id.clone(), finding.level);
        let child = Child { number, finding: finding.clone(), worst, end_unix_ns: None };
        self.children.insert(id, child);
        Some(self.context(number))
    }

    /// Takes the present state of a finding that has a place; returns its number there.
    pub(super) fn follow(&mut self, finding: &Arc<Finding>) -> Option<u64> {
        let child = self.children.get_mut(&finding.id)?;
        child.worst = child.worst.max(finding.level);
        child.finding = finding.clone();
        Some(child.number)
    }

    /// A finding is over.
    pub(super) fn end(&mut self, finding: &Finding, unix_ns: u64) {
        if let Some(child) = self.children.get_mut(&finding.id) {
            child.end_unix_ns = Some(unix_ns);
        }
    }

    /// Tells the incident if it is over, or if the agent `ends`.
    pub(super) fn tick(&mut self, at: Instant, ends: bool, out: &mut Output) {
        if self.children.is_empty() {
            return;
        }
        if self.children.values().any(|child| child.end_unix_ns.is_none()) {
            self.calm_since_ns = None;
        } else {
            let since_ns = *self.calm_since_ns.get_or_insert(at.boot_ns);
            if at.boot_ns.saturating_sub(since_ns) >= CALM_NS {
                return self.tell(at.unix_ns, false, out);
            }
        }
        if ends {
            self.tell(at.unix_ns, true, out);
        }
    }

    fn context(&self, number: u64) -> SpanContext {
        span_context([u64::from_be_bytes(*b"incident"), self.start_unix_ns], number)
    }

    fn tell(&mut self, unix_ns: u64, open: bool, out: &mut Output) {
        let this = std::mem::take(self);
        let worst = this.children.values().map(|child| child.worst).max().unwrap_or_default();
        if worst < Level::Warn {
            return;
        }
        let ends = this.children.values().map(|child| child.end_unix_ns.unwrap_or(unix_ns));
        let end_unix_ns = ends.max().unwrap_or(unix_ns).max(this.start_unix_ns);
        let mut children: Vec<&Child> = this.children.values().collect();
        children.sort_by_key(|child| child.number);
        let main = children.iter().find(|child| child.worst == worst);
        let mut attrs = vec![
            attr("observer.finding.level", worst.text()),
            attr("observer.incident.findings", this.children.len() as u64 + this.beyond),
            attr("observer.open", open),
        ];
        if let Some(party) = main.and_then(|child| child.finding.culprit.as_ref()) {
            attrs.push(attr("observer.culprit.name", party.title.clone()));
        }
        let root = this.context(0);
        out.span(Span {
            name: "incident",
            context: root,
            parent_span_id: None,
            links: Vec::new(),
            start_unix_ns: this.start_unix_ns,
            end_unix_ns,
            error: Some("incident"),
            attrs,
            subject: Subject::Host,
        });
        for child in children {
            out.span(child.span(this.context(child.number), root.span_id, unix_ns));
        }
    }
}

impl Child {
    fn span(&self, context: SpanContext, parent: u64, unix_ns: u64) -> Span {
        let finding = &self.finding;
        let mut attrs = vec![
            attr("observer.finding.kind", finding.kind.clone()),
            attr("observer.finding.level", self.worst.text()),
            attr("observer.finding.subject", finding.subject.clone()),
            attr("observer.finding.message", finding.message.clone()),
        ];
        if let Some(party) = &finding.culprit {
            attrs.push(attr("observer.culprit.name", party.title.clone()));
            attrs.extend(party.pid.map(|pid| attr("observer.culprit.pid", pid)));
        }
        Span {
            name: "finding",
            context,
            parent_span_id: Some(parent),
            links: finding.links.iter().filter_map(context_of).collect(),
            start_unix_ns: finding.since_unix_ns,
            end_unix_ns: self.end_unix_ns.unwrap_or(unix_ns).max(finding.since_unix_ns),
            error: None,
            attrs,
            subject: Subject::Host,
        }
    }
}

fn context_of(link: &Link) -> Option<SpanContext> {
    Some(SpanContext {
        trace_id: u128::from_str_radix(&link.trace_id, 16).ok()?,
        span_id: u64::from_str_radix(&link.span_id, 16).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(id: &str, level: Level, since_s: u64) -> Arc<Finding> {
        let since_unix_ns = since_s * 1_000_000_000;
        Arc::new(Finding { id: id.into(), level, since_unix_ns, ..Finding::default() })
    }

    fn at(second: u64) -> Instant {
        Instant { boot_ns: second * 1_000_000_000, unix_ns: second * 1_000_000_000 }
    }

    #[test]
    fn an_incident_is_one_trace_in_the_order_of_its_spreading() {
        let (mut incident, mut out) = (Incident::default(), Output::default());
        let first = incident.take(&finding("a", Level::Watch, 10), true).expect("a place");
        let second = incident.take(&finding("b", Level::Critical, 20), true).expect("a place");
        assert_eq!(first.trace_id, second.trace_id);
        incident.end(&finding("a", Level::Watch, 10), 30_000_000_000);
        incident.tick(at(30), false, &mut out);
        incident.end(&finding("b", Level::Critical, 20), 40_000_000_000);
        (40..100).for_each(|second| incident.tick(at(second), false, &mut out));
        assert!(out.batch.spans.is_empty());
        incident.tick(at(100), false, &mut out);
        let told: Vec<_> = out
            .batch
            .spans
            .iter()
            .map(|s| (s.name, s.start_unix_ns / 1_000_000_000, s.end_unix_ns / 1_000_000_000))
            .collect();
        assert_eq!(told, [("incident", 10, 40), ("finding", 10, 30), ("finding", 20, 40)]);
        assert_eq!(out.batch.spans[1].parent_span_id, Some(out.batch.spans[0].context.span_id));
        assert_eq!(out.batch.spans[1].context, first);
    }

    #[test]
    fn findings_beyond_the_bound_are_counted_once() {
        let (mut incident, mut out) = (Incident::default(), Output::default());
        let all: Vec<_> = (0..MAX_CHILDREN + 5)
            .map(|number| finding(&number.to_string(), Level::Warn, 10))
            .collect();
        all.iter().for_each(|finding| _ = incident.take(finding, true));
        for _ in 0..3 {
            all.iter().for_each(|finding| _ = incident.follow(finding));
            assert_eq!(incident.take(&all[MAX_CHILDREN], false), None);
        }
        incident.tick(at(20), true, &mut out);
        assert_eq!(out.batch.spans.len(), 1 + MAX_CHILDREN);
        let number = attr("observer.incident.findings", MAX_CHILDREN as u64 + 5);
        assert!(out.batch.spans[0].attrs.contains(&number), "{:?}", out.batch.spans[0].attrs);
    }

    #[test]
    fn what_nobody_was_warned_of_is_no_incident() {
        let (mut incident, mut out) = (Incident::default(), Output::default());
        incident.take(&finding("a", Level::Watch, 10), true);
        incident.tick(at(20), true, &mut out);
        assert!(out.batch.spans.is_empty());
        incident.take(&finding("b", Level::Warn, 30), true);
        incident.tick(at(40), true, &mut out);
        assert_eq!(out.batch.spans.len(), 2);
        assert!(out.batch.spans[0].attrs.contains(&attr("observer.open", true)));
    }
}
