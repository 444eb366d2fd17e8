//! What DNS answers seen on the host tell of its peers: names for addresses, and which of them are databases.
//!
//! Pure: packets come as bytes, time as an argument.

mod endpoints;
mod names;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

pub use self::{
    endpoints::is_database_name,
    names::{HISTORY_NS, MAX_NAMES, Names},
};

/// Records read of an answer; those behind are not seen.
pub const MAX_RECORDS: usize = 64;

/// Octets of a name (RFC 1035, 3.1).
const MAX_NAME: usize = 255;

/// Octets of the header (RFC 1035, 4.1.1).
const HEADER: usize = 12;

/// One address in an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The name that was asked for, in small letters, without the last dot.
    pub name: Arc<str>,
    /// An address of it.
    pub address: IpAddr,
    /// How long it may be used: the least along the chain of aliases.
    pub ttl_seconds: u32,
    /// The database system, if the name or one of its aliases is of a database service; see [`is_database_name`].
    pub database: Option<&'static str>,
}

/// Reads the payload of a UDP packet from a name server (RFC 1035, 4.1). Of anything else, and of answers without addresses,
/// there is nothing; of a packet that was cut, what is whole.
pub fn parse_answer(packet: &[u8]) -> Vec<Answer> {
    parse(packet).unwrap_or_default()
}

fn parse(packet: &[u8]) -> Option<Vec<Answer>> {
    let mut reader = Reader { packet, at: 2 };
    let flags = reader.u16()?;
    let [questions, answers] = [reader.u16()?, reader.u16()?];
    // A response (QR) to a standard query (OPCODE 0) without error (RCODE 0).
    if flags & 0xF80F != 0x8000 || questions == 0 {
        return None;
    }
    reader.at = HEADER;
    let asked = reader.name()?;
    reader.skip(4)?;
    for _ in 1..questions {
        reader.name()?;
        reader.skip(4)?;
    }
    let mut aliases = Vec::new();
    let mut addresses = Vec::new();
    for _ in 0..usize::from(answers).min(MAX_RECORDS) {
        let Some(record) = reader.record() else { break };
        match record.data {
            Data::Alias(target) => aliases.push((record.owner, target, record.ttl_seconds)),
            Data::Address(address) => addresses.push((record.owner, address, record.ttl_seconds)),
            Data::Other => {}
        }
    }
    let chain = chain(asked, &aliases);
    let database = chain.iter().find_map(|(name, _)| is_database_name(name));
    let name: Arc<str> = chain.first()?.0.as_str().into();
    let answer = |(owner, address, ttl_seconds): (String, IpAddr, u32)| {
        let (_, least) = chain.iter().find(|(name, _)| *name == owner)?;
        Some(Answer { name: name.clone(), address, ttl_seconds: ttl_seconds.min(*least), database })
    };
    Some(addresses.into_iter().filter_map(answer).collect())
}

/// The name asked for and those that it stands for, each with the least time to live up to it. Each alias is followed once, so
/// a loop ends.
fn chain(asked: String, aliases: &[(String, String, u32)]) -> Vec<(String, u32)> {
    let mut chain = vec![(asked, u32::MAX)];
    for _ in aliases {
        let (last, least) = &chain[chain.len() - 1];
        let Some((_, target, ttl)) = aliases.iter().find(|(owner, ..)| owner == last) else {
            break;
        };
        if chain.iter().any(|(name, _)| name == target) {
            break;
        }
        let next = (target.clone(), (*ttl).min(*least));
        chain.push(next);
    }
    chain
}

struct Record {
    owner: String,
    ttl_seconds: u32,
    data: Data,
}

enum Data {
    Alias(String),
    Address(IpAddr),
    Other,
}

struct Reader<'a> {
    packet: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let bytes = self.packet.get(self.at..)?.get(..count)?;
        self.at += count;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.bytes(count).map(|_| ())
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn record(&mut self) -> Option<Record> {
        const IN: u16 = 1;
        const A: u16 = 1;
        const CNAME: u16 = 5;
        const AAAA: u16 = 28;
        let owner = self.name()?;
        let (kind, class) = (self.u16()?, self.u16()?);
        let ttl_seconds = u32::from_be_bytes(self.array()?);
        let length = usize::from(self.u16()?);
        let start = self.at;
        self.skip(length)?;
        let mut data = Reader { packet: &self.packet[..self.at], at: start };
        let data = match (class, kind, length) {
            (IN, A, 4) => Data::Address(Ipv4Addr::from(data.array::<4>()?).into()),
            (IN, AAAA, 16) => Data::Address(Ipv6Addr::from(data.array::<16>()?).into()),
            (IN, CNAME, _) => Data::Alias(data.name()?),
            _ => Data::Other,
        };
        // RFC 2181, 8: the most significant bit makes it 0.
        let ttl_seconds = if ttl_seconds > i32::MAX as u32 { 0 } else { ttl_seconds };
        Some(Record { owner, ttl_seconds, data })
    }

    /// A name (RFC 1035, 4.1.4). Compression pointers must lead to before the place where they were found, so they end.
    fn name(&mut self) -> Option<String> {
        let mut name = String::new();
        let mut start = self.at;
        let mut behind = None;
        loop {
            let length = usize::from(self.bytes(1)?[0]);
            match length {
                0 => break,
                1..0x40 => {
                    let separator = usize::from(!name.is_empty());
                    if name.len() + separator + length > MAX_NAME {
                        return None;
                    }
                    name.extend((separator == 1).then_some('.'));
                    name.extend(self.bytes(length)?.iter().map(|&byte| letter(byte)));
                }
                0xC0.. => {
                    let target = ((length & 0x3F) << 8) | usize::from(self.bytes(1)?[0]);
                    behind.get_or_insert(self.at);
                    if target >= start {
                        return None;
                    }
                    (start, self.at) = (target, target);
                }
                _ => return None,
            }
        }
        self.at = behind.unwrap_or(self.at);
        Some(name)
    }
}

/// Names are compared without regard to case. A dot inside a label must not look like one between labels, nor may anything
/// get to a terminal.
fn letter(byte: u8) -> char {
    match byte {
        b'.' => '?',
        b'!'..=b'~' => char::from(byte.to_ascii_lowercase()),
        _ => '?',
    }
}

#[cfg(test)]
mod tests;
