//! Where `top` gets its snapshots: a running agent, or one of its own in this process.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use anyhow::Context;

use crate::{
    control::{self, Client},
    snapshot::Snapshot,
};

/// Waits for the next tick, about a second, and gives its snapshot.
pub type Own = Box<dyn FnMut() -> anyhow::Result<Arc<Snapshot>> + Send>;

/// Pause before a source that failed is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// Where snapshots come from.
pub enum Source {
    /// A running agent ([`control::connect`], or [`control::connect_once`] for [`super::once`]).
    Agent(Client),
    /// Probes in this process.
    Own(Own),
}

/// A snapshot, or why there is none at the moment.
pub(super) type Update = Result<Arc<Snapshot>, String>;

impl Source {
    /// One snapshot. An agent just started has no rates in its first, so of an own one the second is taken.
    pub(super) fn one(self) -> anyhow::Result<Arc<Snapshot>> {
        match self {
            Self::Agent(mut client) => Ok(Arc::new(client.next()?)),
            Self::Own(mut next) => next().and_then(|_first| next()),
        }
    }

    /// Asks the source for ever on its own thread, which ends with the receiver. One snapshot waits at most.
    pub(super) fn spawn(self) -> anyhow::Result<Receiver<Update>> {
        let (sender, receiver) = sync_channel(1);
        let work = move || match self {
            Self::Agent(client) => follow(client, &sender),
            Self::Own(mut next) => {
                while send(&sender, next().map_err(|error| format!("{error:#}"))) {}
            }
        };
        thread::Builder::new()
            .name("top-source".to_owned())
            .spawn(work)
            .context("cannot start a thread")?;
        Ok(receiver)
    }
}

/// Reads the agent's snapshots; if it ends, waits for the next agent.
fn follow(client: Client, sender: &SyncSender<Update>) {
    let path = client.path().to_owned();
    let mut client = Some(client);
    loop {
        let next = match &mut client {
            Some(client) => client.next(),
            None => control::connect(&path).and_then(|mut new| {
                let first = new.next();
                client = Some(new);
                first
            }),
        };
        if next.is_err() {
            client = None;
        }
        if !send(sender, next.map(Arc::new).map_err(|error| error.to_string())) {
            return;
        }
    }
}

/// Whether anyone still listens.
fn send(sender: &SyncSender<Update>, update: Update) -> bool {
    let failed = update.is_err();
    let heard = sender.send(update).is_ok();
    if heard && failed {
        thread::sleep(RETRY);
    }
    heard
}
