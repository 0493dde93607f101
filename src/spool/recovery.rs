//! What a start finds: the index, then the segments behind its position.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;

use super::damage::Damage;
use super::index::{Index, Position};
use super::ledger::Ledger;
use super::record::{self, Kind, Name};
use super::segment::{self, FILE_HEADER_LENGTH, Location};
use crate::mail::MessageId;

pub(super) struct Recovered {
    pub(super) ledger: Ledger,
    pub(super) index: Index,
    pub(super) committed: Option<Position>,
    pub(super) next_segment: u64,
    /// Something was there that cannot be read: messages may be missing without a trace.
    pub(super) damage: Option<Damage>,
}

/// Reads everything under `directory`. Blocks.
pub(super) fn recover(directory: &Path) -> io::Result<Recovered> {
    let index_path = directory.join("index");
    let (mut index, mut loaded) = Index::open(&index_path)?;
    let mut segments = segment::list(directory)?;
    let mut damage = Damage::read(directory)?;
    if let Some(found) = &loaded
        && !fits(directory, found.position)
    {
        tracing::warn!(path = %index_path.display(), "the queue's index does not fit its segments and is made anew");
        drop(index);
        index = Index::rebuild(&index_path)?;
        loaded = None;
        damage = Some(Damage::all());
    }
    let committed = loaded.as_ref().map(|found| found.position);
    let mut ledger = Ledger::default();
    for (id, live) in loaded.into_iter().flat_map(|found| found.messages) {
        ledger.insert(id, live);
    }
    let last = segments.last().copied().max(committed.map(|position| position.segment));
    let mut unreadable = Vec::new();
    for &number in &segments {
        let is_newest = segments.last() == Some(&number);
        let Reading { readable, missing } = read_segment(directory, number, committed, &mut ledger, is_newest)?;
        damage = missing.map(|missing| missing.join(damage)).or(damage);
        if !readable {
            unreadable.push(number);
        }
    }
    segments.retain(|number| !unreadable.contains(number));
    if drop_lost(&segments, &mut ledger) > 0 {
        damage = Some(Damage::all());
    }
    Ok(Recovered { ledger, index, committed, next_segment: last.map_or(1, |last| last + 1), damage })
}

/// The position's segment is there and as long as the index believes.
fn fits(directory: &Path, position: Position) -> bool {
    std::fs::metadata(segment::path(directory, position.segment)).is_ok_and(|file| file.len() >= position.offset)
}

/// What came of reading a segment.
struct Reading {
    /// Otherwise it is kept aside, unless it holds nothing but the header.
    readable: bool,
    /// What was written there and cannot be read.
    missing: Option<Damage>,
}

fn read_segment(
    directory: &Path,
    number: u64,
    committed: Option<Position>,
    ledger: &mut Ledger,
    is_newest: bool,
) -> io::Result<Reading> {
    let path = segment::path(directory, number);
    let metadata = std::fs::metadata(&path)?;
    let last_write = metadata.modified()?;
    ledger.set_size(number, metadata.len());
    let from = match committed {
        Some(position) if position.segment > number => return Ok(Reading { readable: true, missing: None }),
        Some(position) if position.segment == number => usize::try_from(position.offset).map_err(io::Error::other)?,
        Some(_) | None => FILE_HEADER_LENGTH,
    };
    let bytes = segment::read(directory, number)?;
    let Some(salt) = segment::salt(&bytes) else {
        if bytes.len() > FILE_HEADER_LENGTH {
            let aside = segment::keep_aside(directory, number)?;
            tracing::error!(kept = %aside.display(), "a spool segment has no readable header and is passed over");
        }
        return Ok(Reading { readable: false, missing: (bytes.len() > FILE_HEADER_LENGTH).then(Damage::all) });
    };
    let scan = record::scan(&bytes, from, salt, |offset, record| note(ledger, number, offset, &record));
    for range in &scan.damaged {
        tracing::error!(path = %path.display(), from = range.start, to = range.end, "damaged records are lost");
    }
    if !scan.damaged.is_empty() {
        segment::keep_aside(directory, number)?;
    }
    if scan.end < bytes.len() {
        tracing::warn!(path = %path.display(), bytes = bytes.len() - scan.end, "a torn end is cut off");
        let file = OpenOptions::new().write(true).open(&path)?;
        file.set_len(scan.end as u64)?;
        file.sync_data()?;
        ledger.set_size(number, scan.end as u64);
    }
    // Where the newest one is torn, a crash has cut off what was never synced; or a record that was is no record any more.
    let missing = match (scan.damaged.is_empty(), scan.end == bytes.len()) {
        (true, true) => None,
        (true, false) if is_newest => Some(Damage::behind(last_write)),
        _ => Some(Damage::all()),
    };
    Ok(Reading { readable: true, missing })
}

fn note(ledger: &mut Ledger, segment: u64, offset: usize, record: &record::Record<'_>) {
    let record::Header { meta_length, body_length, .. } = record.header;
    let location = Location { segment, offset: offset as u64, meta_length, body_length };
    ledger.apply(record.name, location, record.meta);
    let Name { kind, .. } = record.name;
    debug_assert!(record.body.is_empty() || matches!(kind, Kind::Held | Kind::Message));
}

/// Messages whose segment is gone: somebody took files away. Returns how many.
fn drop_lost(segments: &[u64], ledger: &mut Ledger) -> usize {
    let lost: Vec<MessageId> = ledger
        .messages()
        .filter(|(_, live)| segments.binary_search(&live.location.segment).is_err())
        .map(|(id, _)| id)
        .collect();
    for id in &lost {
        tracing::error!(%id, "the segment of a queued message is gone: the message is lost here");
        ledger.remove(*id);
    }
    lost.len()
}
