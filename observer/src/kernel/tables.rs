//! Typed views of the maps.

use std::{collections::BTreeMap, io::Read as _};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, MapData, PerCpuArray, StackTraceMap},
    programs::Iter,
};
use observer_abi::{
    COUNTERS, Counter, KINDS, Kind,
    alloc::{FaultSite, Faults},
    oom::Reclaimer,
    reply::{Ends, Reply},
    sched::{WATCH_SLOTS, WATCHED, Watch},
    tcp::Owned,
};
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// An ABI type as aya wants map keys and values.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct Wire<T>(pub T);

// SAFETY: `FromBytes` means that every bit pattern is a value; `Copy + 'static` that it holds nothing to drop or borrow.
unsafe impl<T: FromBytes + Copy + 'static> Pod for Wire<T> {}

/// The maps that the agent reads and writes.
pub struct Tables {
    counters: PerCpuArray<MapData, u64>,
    watch: Watching,
    ports: Array<MapData, u64>,
    peers: HashMap<MapData, [u8; 16], u32>,
    ledger: HashMap<MapData, u64, Wire<Owned>>,
    reclaimers: HashMap<MapData, u32, Wire<Reclaimer>>,
    faults: HashMap<MapData, Wire<FaultSite>, Wire<Faults>>,
    stacks: StackTraceMap<MapData>,
    /// Of the full object.
    replies: Option<Replies>,
}

/// Ends of replies, and the ports that they are looked for at.
struct Replies {
    ports: Array<MapData, u64>,
    by_ends: HashMap<MapData, Wire<Ends>, Wire<Reply>>,
}

/// How the programs know which threads are watched.
enum Watching {
    /// State of each, which they also write.
    State(Array<MapData, Wire<Watch>>),
    /// Only that they are.
    Key(HashMap<MapData, u32, u32>),
}

/// Sums over all CPUs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counters([u64; COUNTERS as usize]);

impl Counters {
    /// One counter.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    /// Takes a count that another source than the programs has.
    pub fn set(&mut self, counter: Counter, count: u64) {
        self.0[counter as usize] = count;
    }

    /// Ring records lost, by kind.
    pub fn ring_losses(&self) -> [(Kind, u64); KINDS] {
        Kind::ALL.map(|kind| (kind, self.0[Counter::RingLost as usize + kind as usize]))
    }
}

#[cfg(test)]
impl<const N: usize> From<[(Counter, u64); N]> for Counters {
    fn from(values: [(Counter, u64); N]) -> Self {
        let mut counters = Self::default();
        values.iter().for_each(|(counter, value)| counters.0[*counter as usize] = *value);
        counters
    }
}

impl Tables {
    /// Takes the maps out of a loaded object.
    ///
    /// # Errors
    /// If the object lacks a map, which means that it is not the one this agent was built with.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let has_state = ebpf.map("WATCH").is_some();
        let has_replies = ebpf.map("REPLIES").is_some();
        let mut map = |name: &'static str| {
            ebpf.take_map(name).with_context(|| format!("the BPF object has no map {name}"))
        };
        let watch = if has_state {
            Watching::State(map("WATCH")?.try_into()?)
        } else {
            Watching::Key(map("WATCHED")?.try_into()?)
        };
        let mut replies = None;
        if has_replies {
            let (ports, by_ends) = (map("REPLY_PORTS")?, map("REPLIES")?);
            replies = Some(Replies { ports: ports.try_into()?, by_ends: by_ends.try_into()? });
        }
        Ok(Self {
            counters: map("COUNTERS_MAP")?.try_into()?,
            watch,
            ports: map("PORTS")?.try_into()?,
            peers: map("PEERS")?.try_into()?,
            ledger: map("LEDGER")?.try_into()?,
            reclaimers: map("RECLAIMERS")?.try_into()?,
            faults: map("FAULTS")?.try_into()?,
            stacks: map("STACKS")?.try_into()?,
            replies,
        })
    }

    /// Reads all counters.
    pub fn counters(&self) -> Counters {
        let mut sums = Counters::default();
        for (index, sum) in (0..COUNTERS).zip(&mut sums.0) {
            // An index within bounds cannot fail; a failure would leave a zero, which the reader sees stand still.
            if let Ok(values) = self.counters.get(&index, 0) {
                *sum = values.iter().sum();
            }
        }
        sums
    }

    /// Starts to watch a thread. False if its slot is taken by another one, or the table is full.
    pub fn watch(&mut self, tid: u32) -> bool {
        match &mut self.watch {
            Watching::Key(keys) => keys.insert(tid, 0, 0).is_ok(),
            Watching::State(slots) => {
                let slot = tid & (WATCH_SLOTS - 1);
                let taken = slots
                    .get(&slot, 0)
                    .is_ok_and(|Wire(entry)| entry.key != 0 && entry.key != tid | WATCHED);
                let entry = Watch { key: tid | WATCHED, ..Watch::default() };
                !taken && slots.set(slot, Wire(entry), 0).is_ok()
            }
        }
    }

    /// Stops to watch a thread.
    pub fn unwatch(&mut self, tid: u32) {
        let is_ours = self.watched(tid).is_some();
        match &mut self.watch {
            // Only fails if it is not there.
            Watching::Key(keys) => drop(keys.remove(&tid)),
            // Within bounds: cannot fail.
            Watching::State(slots) if is_ours => {
                drop(slots.set(tid & (WATCH_SLOTS - 1), Wire(Watch::default()), 0));
            }
            Watching::State(_) => {}
        }
    }

    /// State of a watched thread, empty where the programs keep none.
    pub fn watched(&self, tid: u32) -> Option<Watch> {
        match &self.watch {
            Watching::Key(keys) => keys.get(&tid, 0).ok().map(|_| Watch::default()),
            Watching::State(slots) => {
                let Wire(entry) = slots.get(&(tid & (WATCH_SLOTS - 1)), 0).ok()?;
                (entry.key == tid | WATCHED).then_some(entry)
            }
        }
    }

    /// Sets the ports whose connections are entered in the ledger.
    pub fn set_ports(&mut self, ports: &[u16]) -> Result<()> {
        for (word, bits) in port_words(ports) {
            self.ports.set(word, bits, 0).context("cannot write the port table")?;
        }
        Ok(())
    }

    /// Has the ends of replies looked for at these ports, and no more at those `before`.
    pub fn set_reply_ports(&mut self, before: &[u16], ports: &[u16]) -> Result<()> {
        let Some(replies) = &mut self.replies else { return Ok(()) };
        let now = port_words(ports);
        let gone = port_words(before).into_keys().filter(|word| !now.contains_key(word));
        let gone: Vec<(u32, u64)> = gone.map(|word| (word, 0)).collect();
        for (word, bits) in gone.into_iter().chain(now) {
            replies.ports.set(word, bits, 0).context("cannot write the table of replies' ports")?;
        }
        Ok(())
    }

    /// The last that is known of the replies on a connection of a client.
    pub fn reply(&self, ends: Ends) -> Option<Reply> {
        self.replies.as_ref()?.by_ends.get(&Wire(ends), 0).ok().map(|Wire(reply)| reply)
    }

    /// Forgets all replies: what was known is not to be told of what came by unseen.
    pub fn forget_replies(&mut self) {
        let Some(Replies { by_ends, .. }) = &mut self.replies else { return };
        let ends: Vec<Wire<Ends>> = by_ends.keys().filter_map(Result::ok).collect();
        // Only fails if it is gone already.
        ends.iter().for_each(|ends| drop(by_ends.remove(ends)));
    }

    /// Has connections to this address entered in the ledger, whatever their port. False if the table is full.
    pub fn add_peer(&mut self, address: [u8; 16]) -> bool {
        self.peers.insert(address, 0, 0).is_ok()
    }

    /// Every entry of the ledger, by the address of its socket: two system calls each.
    pub fn ledger(&self) -> impl Iterator<Item = (u64, Owned)> + '_ {
        self.ledger.iter().filter_map(|entry| entry.ok().map(|(key, Wire(owned))| (key, owned)))
    }

    /// Removes an entry, if it is still of the connection that was born then.
    pub fn strike(&mut self, key: u64, birth_ktime_ns: u64) -> bool {
        let same = |Wire(owned): Wire<Owned>| owned.birth_ktime_ns == birth_ktime_ns;
        self.ledger.get(&key, 0).is_ok_and(same) && self.ledger.remove(&key).is_ok()
    }

    /// Sums of reclaim by process id.
    pub fn reclaimers(&self) -> impl Iterator<Item = (u32, Reclaimer)> + '_ {
        self.reclaimers.iter().filter_map(|entry| entry.ok().map(|(tgid, Wire(sum))| (tgid, sum)))
    }

    /// Takes all sampled faults and clears the table.
    pub fn take_faults(&mut self) -> Vec<(FaultSite, Faults)> {
        let faults: Vec<_> = self
            .faults
            .iter()
            .filter_map(Result::ok)
            .map(|(Wire(site), Wire(faults))| (site, faults))
            .collect();
        for (site, _) in &faults {
            drop(self.faults.remove(&Wire(*site)));
        }
        faults
    }

    /// User addresses of a stack, innermost first.
    pub fn stack(&self, id: u32) -> Vec<u64> {
        self.stacks.get(&id, 0).map_or_else(
            |_gone| Vec::new(),
            |trace| trace.frames().iter().map(|frame| frame.ip).collect(),
        )
    }

    /// Forgets a stack.
    pub fn forget_stack(&mut self, id: u32) {
        drop(self.stacks.remove(&id));
    }
}

/// Words of a bitmap of ports, by index.
fn port_words(ports: &[u16]) -> BTreeMap<u32, u64> {
    let mut words: BTreeMap<u32, u64> = BTreeMap::new();
    for port in ports {
        *words.entry(u32::from(port >> 6)).or_default() |= 1 << (port & 63);
    }
    words
}

/// Runs an iterator once and decodes its rows, which take the place of those before. `buffer` is scratch space.
///
/// # Errors
/// If the kernel refuses the iterator or its output ends within a row; the rows are then those before.
pub fn read_rows<T: FromBytes + KnownLayout + Immutable + Copy>(
    program: &mut Iter,
    buffer: &mut Vec<u8>,
    rows: &mut Vec<T>,
) -> Result<()> {
    let link = program.attach()?;
    let mut file = program.take_link(link)?.into_file()?;
    buffer.clear();
    file.read_to_end(buffer)?;
    if buffer.is_empty() {
        rows.clear();
        return Ok(());
    }
    let (decoded, rest) = <[T]>::ref_from_prefix_with_elems(buffer, buffer.len() / size_of::<T>())
        .map_err(|error| anyhow::anyhow!("iterator output cannot be decoded: {error}"))?;
    anyhow::ensure!(rest.is_empty(), "iterator output ends with {} bytes of a row", rest.len());
    rows.clear();
    rows.extend_from_slice(decoded);
    Ok(())
}
