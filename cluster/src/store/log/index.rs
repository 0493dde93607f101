//! Where each entry of the log is, and the newest entries themselves.

use std::collections::VecDeque;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use openraft::{CommittedLeaderId, EntryPayload};

use crate::raft::{Entry, LogId};
use crate::store::log::record::{self, Body};
use crate::store::log::segment::Segment;

/// Bytes of the newest entries that are kept in memory for the state machine (and, later, for followers).
const CACHE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A record's place on disk.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) segment: Arc<Segment>,
    pub(crate) offset: u64,
    pub(crate) length: u32,
}

#[derive(Debug)]
struct Slot {
    leader: CommittedLeaderId<u64>,
    /// `None` until the writer has written it.
    place: Option<Place>,
    cached: Option<Entry>,
}

/// The entries between `purged` and the end, without a gap.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pub(crate) purged: Option<LogId>,
    first: u64,
    slots: VecDeque<Slot>,
    /// Slots before this position are not cached.
    cached_from: usize,
    cached_bytes: usize,
    /// Bytes on disk of the entries.
    bytes: u64,
}

/// openraft's own suite appends behind small gaps. Nothing is made up for them: openraft refuses to read across a gap, and
/// a start-up refuses a log that has one.
const GAP_MAX: u64 = 16;

/// An entry that is at hand, or the place to read it from.
pub(crate) enum Found {
    Here(Entry),
    There(Place),
}

fn weight(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(stamped) => stamped.encoded().len() + 64,
        EntryPayload::Blank | EntryPayload::Membership(_) => 64,
    }
}

impl Index {
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn last(&self) -> Option<LogId> {
        match self.slots.back() {
            Some(slot) => Some(LogId::new(slot.leader, self.first + self.slots.len() as u64 - 1)),
            None => self.purged,
        }
    }

    /// The index that the next entry should have; `None` where any will do.
    pub(crate) fn next(&self) -> Option<u64> {
        (!self.slots.is_empty()).then(|| self.first + self.slots.len() as u64)
    }

    /// Adds the next entry; false where its index does not follow.
    #[must_use]
    pub(crate) fn push(&mut self, entry: Entry, place: Option<Place>) -> bool {
        let index = entry.log_id.index;
        let next = self.next().unwrap_or(index);
        if index < next || index - next > GAP_MAX {
            return false;
        }
        if self.slots.is_empty() {
            self.first = index;
        }
        for _ in next..index {
            self.slots.push_back(Slot { leader: CommittedLeaderId::default(), place: None, cached: None });
        }
        let leader = entry.log_id.leader_id;
        let written = place.is_some();
        self.bytes += place.as_ref().map_or(0, |place| u64::from(place.length));
        self.cached_bytes += if written { 0 } else { weight(&entry) };
        self.slots.push_back(Slot { leader, place, cached: (!written).then_some(entry) });
        if written {
            self.cached_from = self.slots.len();
        }
        true
    }

    /// Notes where the writer put an entry, and lets go of the oldest cached ones.
    pub(crate) fn set_place(&mut self, index: u64, place: Place) {
        if let Some(slot) = self.position(index).and_then(|position| self.slots.get_mut(position)) {
            self.bytes += u64::from(place.length);
            slot.place = Some(place);
        }
        while self.cached_bytes > CACHE_BYTES_MAX && self.cached_from < self.slots.len() {
            let slot = &mut self.slots[self.cached_from];
            if slot.place.is_none() && slot.cached.is_some() {
                break;
            }
            self.cached_bytes -= slot.cached.take().as_ref().map_or(0, weight);
            self.cached_from += 1;
        }
    }

    fn position(&self, index: u64) -> Option<usize> {
        usize::try_from(index.checked_sub(self.first)?).ok().filter(|position| *position < self.slots.len())
    }

    /// The entries in `range` that there are.
    pub(crate) fn find(&self, range: impl RangeBounds<u64>) -> Vec<Found> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        let skip = usize::try_from(start.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let take = usize::try_from(end.saturating_sub(start.max(self.first))).unwrap_or(usize::MAX);
        let found = |slot: &Slot| match (&slot.cached, &slot.place) {
            (Some(entry), _) => Some(Found::Here(entry.clone())),
            (None, Some(place)) => Some(Found::There(place.clone())),
            (None, None) => None,
        };
        self.slots.iter().skip(skip).take(take).filter_map(found).collect()
    }

    /// Forgets the entries from `since` on.
    pub(crate) fn truncate(&mut self, since: u64) {
        let keep = usize::try_from(since.saturating_sub(self.first)).unwrap_or(usize::MAX).min(self.slots.len());
        for slot in self.slots.drain(keep..) {
            self.cached_bytes -= slot.cached.as_ref().map_or(0, weight);
            self.bytes -= slot.place.as_ref().map_or(0, |place| u64::from(place.length));
        }
        self.cached_from = self.cached_from.min(self.slots.len());
    }

    /// Forgets the entries up to `upto`, which may lie behind the last one.
    pub(crate) fn purge(&mut self, upto: LogId) {
        if self.purged.is_some_and(|purged| purged.index >= upto.index) {
            return;
        }
        let drop = usize::try_from((upto.index + 1).saturating_sub(self.first)).unwrap_or(usize::MAX);
        let drop = drop.min(self.slots.len());
        for slot in self.slots.drain(..drop) {
            self.cached_bytes -= slot.cached.as_ref().map_or(0, weight);
            self.bytes -= slot.place.as_ref().map_or(0, |place| u64::from(place.length));
        }
        self.cached_from = self.cached_from.saturating_sub(drop);
        self.first = upto.index + 1;
        self.purged = Some(upto);
    }

    /// The segment of the oldest entry that is still needed and on disk.
    pub(crate) fn oldest_segment(&self) -> Option<u64> {
        self.slots.iter().find_map(|slot| slot.place.as_ref()).map(|place| place.segment.first_lsn)
    }
}

impl Place {
    /// Reads the entry back from disk.
    pub(crate) fn read(&self) -> io::Result<Entry> {
        let bytes = self.segment.read(self.offset, self.length)?;
        let wrong = || {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("bad record at {} of {}", self.offset, self.segment.path.display()),
            )
        };
        record::header(&bytes).ok_or_else(wrong)?;
        match record::body(&bytes).ok_or_else(wrong)? {
            Body::Entry(entry) => Ok(entry),
            Body::Head(_) | Body::Truncate(_) | Body::Purge(_) => Err(wrong()),
        }
    }
}
