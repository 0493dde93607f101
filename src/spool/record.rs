//! One record of a segment: a checksummed header, then the payload.
//!
//! All checksums begin with the segment's random salt. A sender therefore cannot put something into a
//! message that a scan would take for a record after damage, and a recycled block is never taken for a new one.
//!
//! A record of another node's message has a bit more in its kind, and the number of that node before its metadata.

use crc32fast::Hasher;

use super::Whose;
use crate::mail::MessageId;

const MAGIC: [u8; 4] = *b"OGr1";
/// Magic, kind, id, length of metadata, length of body, checksum of the payload, checksum of the header.
pub(super) const HEADER_LENGTH: usize = 4 + 1 + 16 + 4 + 4 + 4 + 4;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// A message that waits for its decision.
    Held,
    /// A message that is to be delivered.
    Message,
    /// The decision on a held message was yes.
    Accepted,
    /// The whole state of a message's recipients; the newest counts.
    Progress,
    /// Nothing is left to do, or the decision was no.
    Done,
    /// Another node's message is ours from here on, and accepted.
    Adopted,
    /// Is that of another node from here on, and accepted: we mirror it.
    HandedOver,
}

/// Set in the kind of a record of another node's message.
const OF_ANOTHER: u8 = 0x10;
const OWNER_LENGTH: usize = 8;

/// What a record is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Name {
    pub(super) kind: Kind,
    pub(super) id: MessageId,
    pub(super) whose: Whose,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    kind: Kind,
    of_another: bool,
    pub(super) id: MessageId,
    pub(super) meta_length: u32,
    pub(super) body_length: u32,
    payload_checksum: u32,
}

/// A record in memory with its payload checked.
pub(super) struct Record<'a> {
    pub(super) header: Header,
    pub(super) name: Name,
    pub(super) meta: &'a [u8],
    pub(super) body: &'a [u8],
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Self::Held => 1,
            Self::Message => 2,
            Self::Accepted => 3,
            Self::Progress => 4,
            Self::Done => 5,
            Self::Adopted => 6,
            Self::HandedOver => 7,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        let all =
            [Self::Held, Self::Message, Self::Accepted, Self::Progress, Self::Done, Self::Adopted, Self::HandedOver];
        all.into_iter().find(|kind| kind.code() == code)
    }
}

impl Header {
    /// Of the whole record.
    pub(super) fn record_length(&self) -> u64 {
        HEADER_LENGTH as u64 + u64::from(self.meta_length) + u64::from(self.body_length)
    }

    pub(super) fn parse(bytes: &[u8], salt: u64) -> Option<Self> {
        let bytes: &[u8; HEADER_LENGTH] = bytes.get(..HEADER_LENGTH)?.try_into().ok()?;
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if bytes[..4] != MAGIC || word(33) != checksum(salt, &[&bytes[..33]]) {
            return None;
        }
        let id = MessageId::from_bytes(bytes[5..21].try_into().ok()?);
        let (kind, of_another) = (Kind::from_code(bytes[4] & !OF_ANOTHER)?, bytes[4] & OF_ANOTHER != 0);
        Some(Self { kind, of_another, id, meta_length: word(21), body_length: word(25), payload_checksum: word(29) })
    }
}

impl<'a> Record<'a> {
    /// The whole record at the beginning of `bytes`; `None` if it is not all there or not as it was written.
    pub(super) fn parse(bytes: &'a [u8], salt: u64) -> Option<Self> {
        let header = Header::parse(bytes, salt)?;
        let length = usize::try_from(header.record_length()).ok()?;
        let payload = bytes.get(HEADER_LENGTH..length)?;
        let (meta, body) = payload.split_at(usize::try_from(header.meta_length).ok()?);
        if checksum(salt, &[meta, body]) != header.payload_checksum {
            return None;
        }
        let (whose, meta) = if header.of_another {
            let (owner, meta) = meta.split_at_checked(OWNER_LENGTH)?;
            (Whose::Of(u64::from_le_bytes(owner.try_into().ok()?)), meta)
        } else {
            (Whose::Ours, meta)
        };
        let name = Name { kind: header.kind, id: header.id, whose };
        Some(Self { header, name, meta, body })
    }
}

/// Appends all of a record but its body to `buffer`; returns the lengths of its metadata and its body. Lengths above
/// 4 GiB are refused with `None`.
pub(super) fn write_head(buffer: &mut Vec<u8>, salt: u64, name: Name, meta: &[u8], body: &[u8]) -> Option<(u32, u32)> {
    let (owner, mark) = match name.whose {
        Whose::Ours => (None, 0),
        Whose::Of(node) => (Some(node.to_le_bytes()), OF_ANOTHER),
    };
    let owner = owner.as_ref().map_or(&[][..], |owner| &owner[..]);
    let (meta_length, body_length) = (u32::try_from(owner.len() + meta.len()).ok()?, u32::try_from(body.len()).ok()?);
    let start = buffer.len();
    buffer.extend_from_slice(&MAGIC);
    buffer.push(name.kind.code() | mark);
    buffer.extend_from_slice(&name.id.to_bytes());
    buffer.extend_from_slice(&meta_length.to_le_bytes());
    buffer.extend_from_slice(&body_length.to_le_bytes());
    buffer.extend_from_slice(&checksum(salt, &[owner, meta, body]).to_le_bytes());
    let header = checksum(salt, &[&buffer[start..]]);
    buffer.extend_from_slice(&header.to_le_bytes());
    buffer.extend_from_slice(owner);
    buffer.extend_from_slice(meta);
    Some((meta_length, body_length))
}

fn checksum(salt: u64, parts: &[&[u8]]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(&salt.to_le_bytes());
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}

/// What a scan found out about the bytes of a segment.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Scan {
    /// End of the last good record.
    pub(super) end: usize,
    /// Bytes that are no records, with good records behind them.
    pub(super) damaged: Vec<std::ops::Range<usize>>,
}

/// Calls `each` with every good record and its offset. Damage costs only the records that it lies in.
pub(super) fn scan(bytes: &[u8], from: usize, salt: u64, mut each: impl FnMut(usize, Record<'_>)) -> Scan {
    let mut found = Scan { end: from, damaged: Vec::new() };
    let mut at = from;
    while let Some((start, record)) = next_record(bytes, at, salt) {
        if start != at {
            found.damaged.push(at..start);
        }
        let length = usize::try_from(record.header.record_length()).unwrap_or(usize::MAX);
        each(start, record);
        at = start + length;
        found.end = at;
    }
    found
}

fn next_record(bytes: &[u8], from: usize, salt: u64) -> Option<(usize, Record<'_>)> {
    let mut at = from;
    loop {
        let window = bytes.get(at..)?;
        if window.starts_with(&MAGIC)
            && let Some(record) = Record::parse(window, salt)
        {
            return Some((at, record));
        }
        at += 1 + window.get(1..)?.iter().position(|&byte| byte == MAGIC[0])?;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn three() -> (Vec<u8>, Vec<usize>) {
        let mut bytes = Vec::new();
        let mut starts = Vec::new();
        for body in [&b"first OGr1 body"[..], b"", b"third"] {
            starts.push(bytes.len());
            let whose = if body.is_empty() { Whose::Of(258) } else { Whose::Ours };
            let name = Name { kind: Kind::Message, id: MessageId::generate(), whose };
            write_head(&mut bytes, 7, name, b"meta", body).unwrap();
            bytes.extend_from_slice(body);
        }
        (bytes, starts)
    }

    fn starts(bytes: &[u8]) -> (Vec<usize>, Scan) {
        let mut found = Vec::new();
        let scan = scan(bytes, 0, 7, |at, record| {
            assert_eq!(record.name.whose == Whose::Of(258), record.body.is_empty());
            assert_eq!(record.meta, b"meta");
            found.push(at);
        });
        (found, scan)
    }

    #[test]
    fn every_flipped_bit_costs_its_record_alone() {
        let (good, at) = three();
        assert_eq!(starts(&good), (at.clone(), Scan { end: good.len(), damaged: vec![] }));
        for position in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[position / 8] ^= 1 << (position % 8);
            let hit = at.iter().rposition(|&start| start <= position / 8).unwrap();
            let (found, scan) = starts(&bytes);
            let expected: Vec<_> = at.iter().copied().filter(|&start| start != at[hit]).collect();
            assert_eq!(found, expected, "bit {position}");
            assert_eq!(scan.damaged.len(), usize::from(hit < 2), "bit {position}");
        }
    }

    #[test]
    fn a_cut_tail_loses_only_what_is_cut() {
        let (good, at) = three();
        for length in 0..good.len() {
            let (found, scan) = starts(&good[..length]);
            let whole = at.iter().skip(1).chain([&good.len()]).filter(|&&end| end <= length).count();
            assert_eq!((found.len(), scan.damaged.len()), (whole, 0), "cut at {length}");
        }
    }

    #[test]
    fn another_salt_makes_it_no_record() {
        let (good, _) = three();
        assert!(Record::parse(&good, 8).is_none());
    }
}
