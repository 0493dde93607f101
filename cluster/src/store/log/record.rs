//! One record of a segment file.
//!
//! ```text
//! length u32 | crc u32 | lsn u64 | synced u64 | kind u8 | body        all little-endian
//! ```
//! `length` counts the whole record and is never 0, so that the zeros of an unused segment end the log. `crc` covers all
//! but itself. `lsn` numbers the records of all kinds without a gap. `synced` is the last lsn that was known to be on
//! disk when this record was written: a bad record that a later one calls synced was acknowledged and then damaged,
//! one that no later record calls synced is the torn tail of an interrupted write.

use openraft::{CommittedLeaderId, EntryPayload};

use crate::name::Timestamp;
use crate::raft::{Entry, LogId};
use crate::store::codec;
use crate::store::entry::Stamped;

pub(crate) const HEADER_BYTES: usize = 25;
/// A record holds one command or one batch; far above what the proposer lets through.
pub(crate) const RECORD_BYTES_MAX: usize = 128 * 1024 * 1024;

const HEAD: u8 = 1;
const BLANK: u8 = 2;
const COMMAND: u8 = 3;
const MEMBERSHIP: u8 = 4;
const TRUNCATE: u8 = 5;
const PURGE: u8 = 6;

/// What a record says.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Body {
    /// First in each segment: up to where the log was purged, so that older segments can go.
    Head(Option<LogId>),
    Entry(Entry),
    /// Entries from this index on are void.
    Truncate(u64),
    /// Entries up to this one are no longer part of the log.
    Purge(LogId),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) length: usize,
    pub(crate) lsn: u64,
    pub(crate) synced: u64,
}

/// Appends a record to `buffer` and returns its length.
pub(crate) fn write(buffer: &mut Vec<u8>, lsn: u64, synced: u64, body: &Body) -> u32 {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; 8]);
    buffer.extend_from_slice(&lsn.to_le_bytes());
    buffer.extend_from_slice(&synced.to_le_bytes());
    write_body(buffer, body);
    #[expect(clippy::expect_used, reason = "commands are bounded far below 4 GiB where they are proposed")]
    let length = u32::try_from(buffer.len() - start).expect("a record below 4 GiB");
    buffer[start..start + 4].copy_from_slice(&length.to_le_bytes());
    let crc = checksum(&buffer[start..]);
    buffer[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    length
}

fn write_body(buffer: &mut Vec<u8>, body: &Body) {
    match body {
        Body::Head(purged) => {
            buffer.push(HEAD);
            buffer.extend_from_slice(&codec::encode(purged));
        }
        Body::Truncate(since) => {
            buffer.push(TRUNCATE);
            buffer.extend_from_slice(&since.to_le_bytes());
        }
        Body::Purge(upto) => {
            buffer.push(PURGE);
            write_log_id(buffer, upto);
        }
        Body::Entry(entry) => write_entry(buffer, entry),
    }
}

fn write_entry(buffer: &mut Vec<u8>, entry: &Entry) {
    match &entry.payload {
        EntryPayload::Blank => {
            buffer.push(BLANK);
            write_log_id(buffer, &entry.log_id);
        }
        EntryPayload::Normal(stamped) => {
            buffer.push(COMMAND);
            write_log_id(buffer, &entry.log_id);
            buffer.extend_from_slice(&stamped.at().0.to_le_bytes());
            buffer.extend_from_slice(stamped.encoded());
        }
        EntryPayload::Membership(membership) => {
            buffer.push(MEMBERSHIP);
            write_log_id(buffer, &entry.log_id);
            buffer.extend_from_slice(&codec::encode(membership));
        }
    }
}

fn write_log_id(buffer: &mut Vec<u8>, id: &LogId) {
    for number in [id.index, id.leader_id.term, id.leader_id.node_id] {
        buffer.extend_from_slice(&number.to_le_bytes());
    }
}

fn checksum(record: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&record[..4]);
    hasher.update(&record[8..]);
    hasher.finalize()
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().copied().map(u64::from_le_bytes)
}

/// The header at the start of `bytes`, or `None` where no whole record with a right checksum begins.
pub(crate) fn header(bytes: &[u8]) -> Option<Header> {
    let header = peek(bytes)?;
    let record = &bytes[..header.length];
    let crc = u32::from_le_bytes(*record[4..].first_chunk()?);
    (crc == checksum(record)).then_some(header)
}

/// What could be a header, before its checksum is looked at.
pub(crate) fn peek(bytes: &[u8]) -> Option<Header> {
    let length = usize::try_from(u32::from_le_bytes(*bytes.first_chunk()?)).ok()?;
    let (lsn, synced) = (number(bytes, 8)?, number(bytes, 16)?);
    let plausible = (HEADER_BYTES..=RECORD_BYTES_MAX.min(bytes.len())).contains(&length) && synced < lsn;
    plausible.then_some(Header { length, lsn, synced })
}

/// The body of a record whose [`header`] was right; `None` where it says nothing that we know.
pub(crate) fn body(record: &[u8]) -> Option<Body> {
    let (kind, body) = record.get(HEADER_BYTES - 1..)?.split_first()?;
    match *kind {
        HEAD => codec::decode("log head", body).ok().map(Body::Head),
        TRUNCATE => number(body, 0).map(Body::Truncate),
        PURGE => log_id(body).map(Body::Purge),
        BLANK => Some(Body::Entry(Entry { log_id: log_id(body)?, payload: EntryPayload::Blank })),
        COMMAND => {
            let stamped = Stamped::from_encoded(Timestamp(number(body, 24)?), body.get(32..)?.to_vec());
            Some(Body::Entry(Entry { log_id: log_id(body)?, payload: EntryPayload::Normal(stamped) }))
        }
        MEMBERSHIP => {
            let membership = codec::decode("membership", body.get(24..)?).ok()?;
            Some(Body::Entry(Entry { log_id: log_id(body)?, payload: EntryPayload::Membership(membership) }))
        }
        _ => None,
    }
}

fn log_id(body: &[u8]) -> Option<LogId> {
    let (index, term, node) = (number(body, 0)?, number(body, 8)?, number(body, 16)?);
    Some(LogId::new(CommittedLeaderId::new(term, node), index))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::collections::BTreeSet;

    use super::*;
    use crate::command::Command;

    fn bodies() -> Vec<Body> {
        let id = LogId::new(CommittedLeaderId::new(2, 1), 9);
        let stamped = Stamped::new(Timestamp(77), Command::Tick, codec::encode(&Command::Tick));
        let membership = openraft::Membership::new(vec![BTreeSet::from([1u64])], None);
        vec![
            Body::Head(None),
            Body::Head(Some(id)),
            Body::Truncate(4),
            Body::Purge(id),
            Body::Entry(Entry { log_id: id, payload: EntryPayload::Blank }),
            Body::Entry(Entry { log_id: id, payload: EntryPayload::Normal(stamped) }),
            Body::Entry(Entry { log_id: id, payload: EntryPayload::Membership(membership) }),
        ]
    }

    #[test]
    fn every_body_comes_back() {
        for expected in bodies() {
            let mut buffer = Vec::new();
            let length = write(&mut buffer, 12, 11, &expected);
            let header = header(&buffer).unwrap();
            assert_eq!((header.length, header.lsn, header.synced), (buffer.len(), 12, 11));
            assert_eq!(usize::try_from(length).unwrap(), buffer.len());
            assert_eq!(body(&buffer).unwrap(), expected);
        }
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_seen() {
        let mut buffer = Vec::new();
        write(&mut buffer, 12, 11, &bodies()[5]);
        for bit in 0..buffer.len() * 8 {
            let mut broken = buffer.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(header(&broken), None, "bit {bit}");
        }
        for cut in 0..buffer.len() {
            assert_eq!(header(&buffer[..cut]), None, "cut at {cut}");
        }
        assert_eq!(header(&[0; 64]), None);
    }
}
