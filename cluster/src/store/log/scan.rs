//! Reads the log back at start-up, and tells a torn tail from damage.

use std::path::Path;
use std::sync::Arc;

use crate::store::OpenError;
use crate::store::durable;
use crate::store::log::index::{Index, Place};
use crate::store::log::record::{self, Body, HEADER_BYTES, Header};
use crate::store::log::segment::Segment;

/// The log as it was found, and where the next record goes.
#[derive(Debug)]
pub(crate) struct Scanned {
    pub(crate) index: Index,
    /// Every segment, oldest first; the last one is written next.
    pub(crate) segments: Vec<Arc<Segment>>,
    pub(crate) offset: u64,
    pub(crate) next_lsn: u64,
}

/// Opens every segment, cuts a torn tail off, and refuses a log that lost records which had been synced.
pub(crate) fn scan(directory: &Path) -> Result<Scanned, OpenError> {
    let names = Segment::list(directory).map_err(OpenError::io(directory))?;
    let mut scan = Scanned {
        index: Index::default(),
        segments: Vec::new(),
        offset: 0,
        next_lsn: names.first().copied().unwrap_or(1),
    };
    for (position, first_lsn) in names.iter().enumerate() {
        let segment = Arc::new(Segment::open(directory, *first_lsn).map_err(OpenError::io(directory))?);
        let bytes = segment.read_all().map_err(OpenError::io(&segment.path))?;
        if *first_lsn != scan.next_lsn || !begins(&bytes, *first_lsn) {
            tear_at(&scan, &bytes, 0, directory, &names[position..])?;
            break;
        }
        scan.segments.push(Arc::clone(&segment));
        scan.offset = scan.read_segment(&segment, &bytes)?;
        let next = names.get(position + 1);
        if next.is_none_or(|next| *next != scan.next_lsn) {
            let rest = &bytes[usize::try_from(scan.offset).unwrap_or(usize::MAX).min(bytes.len())..];
            if rest.iter().any(|byte| *byte != 0) || next.is_some() {
                let from = bytes.len() - rest.len();
                tear_at(&scan, &bytes, from, directory, &names[position + 1..])?;
                segment.clear_from(scan.offset).map_err(OpenError::io(&segment.path))?;
            }
            break;
        }
    }
    if let Some(last) = scan.segments.last() {
        // What a killed process wrote may still be in the page cache only; from here on it counts as part of the log.
        last.sync().map_err(OpenError::io(&last.path))?;
    }
    scan.check_start(directory)?;
    Ok(scan)
}

fn begins(bytes: &[u8], first_lsn: u64) -> bool {
    record::header(bytes).is_some_and(|header| header.lsn == first_lsn)
}

/// No good record with the next lsn is at `from`: damage if a later record says that it was synced, else a torn tail,
/// whose segments are removed.
fn tear_at(scan: &Scanned, bytes: &[u8], from: usize, directory: &Path, later: &[u64]) -> Result<(), OpenError> {
    let lost = scan.next_lsn;
    let path = scan.segments.last().map_or(directory, |segment| &segment.path);
    let damaged = || OpenError::damaged(path, format!("log record {lost} cannot be read, but records behind it can"));
    if calls_synced(&bytes[from..], lost) {
        return Err(damaged());
    }
    for first_lsn in later {
        let segment = Segment::open(directory, *first_lsn).map_err(OpenError::io(directory))?;
        if calls_synced(&segment.read_all().map_err(OpenError::io(&segment.path))?, lost) {
            return Err(damaged());
        }
    }
    for first_lsn in later.iter().rev() {
        let segment = Segment::open(directory, *first_lsn).map_err(OpenError::io(directory))?;
        std::fs::remove_file(&segment.path).map_err(OpenError::io(&segment.path))?;
    }
    tracing::warn!("cut the torn tail of the log in {} before record {lost}", directory.display());
    durable::sync_directory(directory).map_err(OpenError::io(directory))
}

/// Whether a whole record anywhere in `bytes` was written when `lost` was already on disk.
fn calls_synced(bytes: &[u8], lost: u64) -> bool {
    let mut at = 0;
    while at + HEADER_BYTES <= bytes.len() {
        // Most of an unused segment is zeros: step over them quickly.
        let Some(skip) = bytes[at..].iter().position(|byte| *byte != 0) else { return false };
        at += skip.saturating_sub(3);
        for candidate in at..=(at + 3).min(bytes.len()) {
            let tail = &bytes[candidate..];
            let claims = |header: Header| header.lsn > lost && header.synced >= lost;
            if record::peek(tail).is_some_and(claims) && record::header(tail).is_some() {
                return true;
            }
        }
        at += 4;
    }
    false
}

impl Scanned {
    /// Takes in the records of one segment and returns the offset behind the last good one.
    fn read_segment(&mut self, segment: &Arc<Segment>, bytes: &[u8]) -> Result<u64, OpenError> {
        let mut at = 0;
        while let Some(header) = record::header(&bytes[at..]).filter(|header| header.lsn == self.next_lsn) {
            let offset = at as u64;
            let record = &bytes[at..at + header.length];
            let body = record::body(record).ok_or_else(|| {
                OpenError::damaged(&segment.path, format!("log record {} is of an unknown kind", header.lsn))
            })?;
            #[expect(clippy::cast_possible_truncation, reason = "a record's length is a u32 on disk")]
            let place = Place { segment: Arc::clone(segment), offset, length: header.length as u32 };
            self.take(body, place)?;
            self.next_lsn += 1;
            at += header.length;
        }
        Ok(at as u64)
    }

    fn take(&mut self, body: Body, place: Place) -> Result<(), OpenError> {
        match body {
            Body::Head(Some(purged)) | Body::Purge(purged) => self.index.purge(purged),
            Body::Head(None) => {}
            Body::Truncate(since) => self.index.truncate(since),
            Body::Entry(entry) => {
                let (index, path) = (entry.log_id.index, place.segment.path.clone());
                let dead = self.index.purged.is_some_and(|purged| purged.index >= index);
                let follows = self.index.next().is_none_or(|next| next == index);
                let taken = dead || (follows && self.index.push(entry, Some(place)));
                if !taken {
                    return Err(OpenError::damaged(&path, format!("entry {index} does not follow its predecessor")));
                }
            }
        }
        Ok(())
    }

    /// The first entry must be the one behind the purged ones, or the first of all.
    fn check_start(&self, directory: &Path) -> Result<(), OpenError> {
        let expected = self.index.purged.map_or(0, |purged| purged.index + 1);
        if self.index.len() > 0 && self.index.first() > expected {
            let what = format!("the log begins at entry {}, but entry {expected} is needed", self.index.first());
            return Err(OpenError::damaged(directory, what));
        }
        Ok(())
    }
}
