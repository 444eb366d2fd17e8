//! Who is to blame: from shares of single processes to the group that a person would name.

use std::collections::BTreeMap;

use super::{Group, MAX_PIDS, Party};
use crate::{identity::Process, snapshot::Snapshot};

/// A process with at least this share of the cause is named itself; else its group (signals.md, section 2, rule 7).
const OWN_SHARE: f64 = 0.6;

/// The group that a process belongs to: container, PM2 application, unit, else program of a user.
pub fn group_of(process: &Process) -> (Group, String) {
    if !process.container_id.is_empty() {
        return (Group::Container, process.container_id.clone());
    }
    if let Some(pm2) = &process.pm2 {
        return (Group::Pm2App, format!("{}@{}", pm2.app, pm2.home));
    }
    if process.unit.ends_with(".service") {
        return (Group::Unit, process.unit.clone());
    }
    let program = if process.executable.is_empty() { &process.name } else { &process.executable };
    (Group::Program, format!("{program} of {}", process.user_id))
}

/// One process as a party.
pub fn process(snapshot: &Snapshot, pid: u32, name: &str, share_ratio: f64) -> Party {
    let known = snapshot.processes.get(&pid);
    let comm = known.map_or(name, |process| process.name.as_str());
    let title = match known.and_then(|process| process.pm2.as_ref()) {
        Some(pm2) => format!("{comm} {pid} (PM2 app {}, worker {})", pm2.app, pm2.worker),
        None => match known.map(|process| process.unit.as_str()) {
            Some(unit) if unit.ends_with(".service") => format!("{comm} {pid} ({unit})"),
            _ => format!("{comm} {pid}"),
        },
    };
    Party {
        group: Group::Process,
        name: comm.to_owned(),
        pid: Some(pid),
        pids: vec![pid],
        share_ratio,
        title,
    }
}

/// The kernel itself, or something in it that no process answers for.
pub fn kernel(what: &str, share_ratio: f64) -> Party {
    Party {
        group: Group::Kernel,
        name: what.to_owned(),
        share_ratio,
        title: what.to_owned(),
        ..Party::default()
    }
}

/// A machine at the other end.
pub fn peer(address: &str) -> Party {
    Party {
        group: Group::Peer,
        name: address.to_owned(),
        share_ratio: 1.0,
        title: address.to_owned(),
        ..Party::default()
    }
}

/// A process, its command name, and how much it contributes.
pub type Cause<'a> = (u32, &'a str, f64);

/// Who causes most: `causes` are processes with the amount that each contributes (bytes, seconds, connections). Amounts
/// that are not positive do not count. `None` if nobody contributes.
pub fn culprit(snapshot: &Snapshot, causes: &[Cause<'_>]) -> Option<Party> {
    let whole: f64 = causes.iter().map(|(_, _, amount)| amount.max(0.0)).sum();
    let top = causes.iter().max_by(|a, b| a.2.total_cmp(&b.2)).filter(|top| top.2 > 0.0)?;
    let own_share = top.2 / whole;
    if own_share >= OWN_SHARE {
        return Some(process(snapshot, top.0, top.1, own_share));
    }
    let mut groups: BTreeMap<(Group, String), Vec<Cause<'_>>> = BTreeMap::new();
    for cause in causes.iter().filter(|cause| cause.2 > 0.0) {
        let key = snapshot
            .processes
            .get(&cause.0)
            .map_or_else(|| (Group::Program, cause.1.to_owned()), |process| group_of(process));
        groups.entry(key).or_default().push(*cause);
    }
    let sum = |members: &[Cause<'_>]| members.iter().map(|(.., amount)| amount).sum::<f64>();
    let ((group, _), mut members) =
        groups.into_iter().max_by(|(_, a), (_, b)| sum(a).total_cmp(&sum(b)))?;
    members.sort_by(|a, b| b.2.total_cmp(&a.2));
    let share_ratio = sum(&members) / whole;
    let (pid, name, _) = *members.first()?;
    let one = process(snapshot, pid, name, share_ratio);
    if members.len() == 1 {
        return Some(one);
    }
    let name = name_of(snapshot, pid, group).unwrap_or(one.name);
    let title = format!("{} ({} processes)", titled(group, &name), members.len());
    let pids = members.iter().take(MAX_PIDS).map(|(pid, ..)| *pid).collect();
    Some(Party { group, name, pid: Some(pid), pids, share_ratio, title })
}

/// The group of a process, in a sentence.
pub fn group_title(snapshot: &Snapshot, pid: u32, group: Group) -> String {
    titled(group, &name_of(snapshot, pid, group).unwrap_or_default())
}

/// What a person calls the group that a process belongs to.
fn name_of(snapshot: &Snapshot, pid: u32, group: Group) -> Option<String> {
    let process = snapshot.processes.get(&pid)?;
    Some(match group {
        Group::Container => process.container_id.chars().take(12).collect(),
        Group::Pm2App => process.pm2.as_ref()?.app.clone(),
        Group::Unit => process.unit.clone(),
        _ => process.name.clone(),
    })
}

fn titled(group: Group, name: &str) -> String {
    match group {
        Group::Pm2App => format!("PM2 app {name}"),
        Group::Container => format!("container {name}"),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::identity::Pm2;

    fn host() -> Snapshot {
        let worker = |pid, worker| Process {
            pid,
            name: "node".into(),
            pm2: Some(Pm2 { app: "shop".into(), worker, home: "/h".into(), ..Pm2::default() }),
            ..Process::default()
        };
        let redis = Process {
            pid: 9,
            name: "redis-server".into(),
            unit: "redis.service".into(),
            ..Process::default()
        };
        let processes = [worker(1, 0), worker(2, 1), redis];
        Snapshot {
            processes: processes.into_iter().map(|p| (p.pid, Arc::new(p))).collect(),
            ..Snapshot::default()
        }
    }

    #[test]
    fn one_is_named_itself_and_several_by_their_group() {
        #[track_caller]
        fn check(causes: &[(u32, f64)], expect: Option<(Group, &str, Option<u32>, f64)>) {
            let causes: Vec<_> = causes.iter().map(|(pid, amount)| (*pid, "x", *amount)).collect();
            let found = culprit(&host(), &causes);
            let found = found.as_ref().map(|p| (p.group, p.name.as_str(), p.pid, p.share_ratio));
            assert_eq!(found, expect);
        }
        check(&[(1, 9.0), (9, 1.0)], Some((Group::Process, "node", Some(1), 0.9)));
        check(&[(1, 3.9), (2, 4.1), (9, 2.0)], Some((Group::Pm2App, "shop", Some(2), 0.8)));
        check(&[(1, 3.0), (2, 2.0), (9, -5.0)], Some((Group::Process, "node", Some(1), 0.6)));
        check(
            &[(1, 2.0), (9, 2.5), (77, 1.0)],
            Some((Group::Process, "redis-server", Some(9), 2.5 / 5.5)),
        );
        check(&[(1, 0.0)], None);
        check(&[], None);
    }

    #[test]
    fn the_title_says_who_it_is() {
        assert_eq!(process(&host(), 2, "", 1.0).title, "node 2 (PM2 app shop, worker 1)");
        assert_eq!(process(&host(), 9, "", 1.0).title, "redis-server 9 (redis.service)");
        assert_eq!(process(&host(), 5, "gone", 1.0).title, "gone 5");
    }
}
