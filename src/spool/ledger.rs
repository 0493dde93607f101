//! What the spool knows of its segments: the messages that are alive, where they stand, what is only waste.
//!
//! Pure bookkeeping, fed by the start-up scan and by the writer with the same records in the same order.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Whose;
use super::record::{Kind, Name};
use super::segment::Location;
use crate::mail::MessageId;

/// A message that is not done.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) location: Location,
    pub(super) accepted: bool,
    pub(super) whose: Whose,
    pub(super) meta: Box<[u8]>,
    pub(super) progress: Option<Box<[u8]>>,
    /// Chunks that the index holds of it; 0 = it has never been there.
    pub(super) chunks: u16,
}

#[derive(Debug, Default)]
struct Segment {
    size: u64,
    live: HashSet<MessageId>,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    live: HashMap<MessageId, Live>,
    segments: BTreeMap<u64, Segment>,
    live_bytes: u64,
    /// Changed since the last commit of the index.
    dirty: HashSet<MessageId>,
    /// Gone since then, with their chunks.
    gone: Vec<(MessageId, u16)>,
}

impl Ledger {
    /// Takes note of a record at `location`. `payload` is the metadata of a message, the progress, or the node that it is
    /// handed over to. False = it is about a message that belongs to somebody else, and changes nothing.
    pub(super) fn apply(&mut self, name: Name, location: Location, payload: &[u8]) -> bool {
        let Name { kind, id, whose } = name;
        if self.live.get(&id).is_some_and(|live| live.whose != whose) {
            return false;
        }
        match kind {
            Kind::Held | Kind::Message => self.place(name, location, payload),
            Kind::Accepted => self.change(id, |live| live.accepted = true),
            Kind::Progress => self.change(id, |live| live.progress = Some(payload.into())),
            Kind::Done => self.remove(id),
            Kind::Adopted => self.change(id, |live| (live.whose, live.accepted) = (Whose::Ours, true)),
            Kind::HandedOver => {
                let Some(node) = payload.try_into().ok().map(u64::from_le_bytes) else { return false };
                self.change(id, |live| (live.whose, live.accepted) = (Whose::Of(node), true));
            }
        }
        true
    }

    /// A message is new, or was copied forward: then it keeps its state.
    fn place(&mut self, Name { kind, id, whose }: Name, location: Location, meta: &[u8]) {
        let accepted = kind == Kind::Message;
        let old = self.take_out(id);
        let live = match old {
            Some(old) => Live { location, accepted: accepted || old.accepted, ..old },
            None => Live { location, accepted, whose, meta: meta.into(), progress: None, chunks: 0 },
        };
        self.insert(id, live);
        self.dirty.insert(id);
    }

    /// Puts in what the index held.
    pub(super) fn insert(&mut self, id: MessageId, live: Live) {
        self.live_bytes += live.location.record_length();
        self.segments.entry(live.location.segment).or_default().live.insert(id);
        self.live.insert(id, live);
    }

    fn take_out(&mut self, id: MessageId) -> Option<Live> {
        let live = self.live.remove(&id)?;
        self.live_bytes -= live.location.record_length();
        if let Some(segment) = self.segments.get_mut(&live.location.segment) {
            segment.live.remove(&id);
        }
        Some(live)
    }

    fn change(&mut self, id: MessageId, change: impl FnOnce(&mut Live)) {
        if let Some(live) = self.live.get_mut(&id) {
            change(live);
            self.dirty.insert(id);
        }
    }

    pub(super) fn remove(&mut self, id: MessageId) {
        let removed = self.take_out(id);
        self.dirty.remove(&id);
        self.gone.extend(removed.filter(|live| live.chunks > 0).map(|live| (id, live.chunks)));
    }

    pub(super) fn set_size(&mut self, segment: u64, size: u64) {
        self.segments.entry(segment).or_default().size = size;
    }

    pub(super) fn forget_segment(&mut self, segment: u64) {
        self.segments.remove(&segment);
    }

    pub(super) fn get(&self, id: MessageId) -> Option<&Live> {
        self.live.get(&id)
    }

    pub(super) fn messages(&self) -> impl Iterator<Item = (MessageId, &Live)> {
        self.live.iter().map(|(&id, live)| (id, live))
    }

    pub(super) fn oldest(&self) -> Option<u64> {
        self.segments.keys().next().copied()
    }

    pub(super) fn is_dead(&self, segment: u64) -> bool {
        self.segments.get(&segment).is_none_or(|segment| segment.live.is_empty())
    }

    pub(super) fn any_live(&self, segment: u64) -> Option<MessageId> {
        self.segments.get(&segment)?.live.iter().next().copied()
    }

    /// Whether waste outweighs what is alive so far that copying the oldest segment forward pays.
    pub(super) fn is_wasteful(&self, segment_max_bytes: u64) -> bool {
        let total: u64 = self.segments.values().map(|segment| segment.size).sum();
        total > 2 * self.live_bytes + 4 * segment_max_bytes
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty() || !self.gone.is_empty()
    }

    /// Everything changed since the last call: live messages, and (id, chunks) of those that are gone.
    pub(super) fn take_changes(&mut self, mut encode: impl FnMut(MessageId, &mut Live)) -> Vec<(MessageId, u16)> {
        for id in std::mem::take(&mut self.dirty) {
            if let Some(live) = self.live.get_mut(&id) {
                encode(id, live);
            }
        }
        std::mem::take(&mut self.gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(kind: Kind, id: MessageId) -> Name {
        Name { kind, id, whose: Whose::Ours }
    }

    fn at(segment: u64) -> Location {
        Location { segment, offset: 32, meta_length: 1, body_length: 10 }
    }

    #[test]
    fn a_copy_forward_keeps_the_state_and_frees_the_segment() {
        let (mut ledger, id) = (Ledger::default(), MessageId::generate());
        ledger.apply(ours(Kind::Held, id), at(1), b"m");
        ledger.apply(ours(Kind::Accepted, id), at(1), b"");
        ledger.apply(ours(Kind::Progress, id), at(1), b"p");
        ledger.apply(ours(Kind::Held, id), at(2), b"m");
        let live = ledger.get(id).map(|live| (live.accepted, live.progress.as_deref() == Some(b"p"), live.location));
        assert_eq!(live, Some((true, true, at(2))));
        assert!(ledger.is_dead(1) && !ledger.is_dead(2));
        ledger.apply(ours(Kind::Done, id), at(2), b"");
        assert!(ledger.get(id).is_none() && ledger.is_dead(2));
        assert_eq!(ledger.live_bytes, 0);
    }

    #[test]
    fn what_never_was_in_the_index_needs_no_removal_from_it() {
        let (mut ledger, id, kept) = (Ledger::default(), MessageId::generate(), MessageId::generate());
        ledger.apply(ours(Kind::Message, id), at(1), b"m");
        ledger.apply(ours(Kind::Message, kept), at(1), b"m");
        ledger.apply(ours(Kind::Done, id), at(1), b"");
        let mut encoded = Vec::new();
        let gone = ledger.take_changes(|id, live| {
            live.chunks = 1;
            encoded.push(id);
        });
        assert_eq!((encoded, gone), (vec![kept], vec![]));
        ledger.apply(ours(Kind::Done, kept), at(1), b"");
        assert_eq!(ledger.take_changes(|_, _| ()), vec![(kept, 1)]);
    }

    #[test]
    fn a_message_is_its_new_owners_whatever_the_old_one_says() {
        let (mut ledger, id) = (Ledger::default(), MessageId::generate());
        let of = |kind, node| Name { kind, id, whose: Whose::Of(node) };
        assert!(ledger.apply(of(Kind::Held, 2), at(1), b"m"));
        assert!(!ledger.apply(of(Kind::Accepted, 3), at(1), b""));
        assert!(!ledger.apply(ours(Kind::Done, id), at(1), b""));
        assert!(!ledger.apply(ours(Kind::Held, id), at(2), b"x"));
        assert!(ledger.apply(of(Kind::Adopted, 2), at(1), b""));
        assert!(!ledger.apply(of(Kind::Done, 2), at(1), b""));
        let live = ledger.get(id).map(|live| (live.whose, live.accepted, live.location, &*live.meta == b"m"));
        assert_eq!(live, Some((Whose::Ours, true, at(1), true)));
        assert!(ledger.apply(ours(Kind::HandedOver, id), at(1), &3_u64.to_le_bytes()));
        assert!(!ledger.apply(ours(Kind::Done, id), at(1), b"") && !ledger.apply(of(Kind::Done, 2), at(1), b""));
        assert_eq!(ledger.get(id).map(|live| (live.whose, live.accepted)), Some((Whose::Of(3), true)));
        assert!(ledger.apply(of(Kind::Done, 3), at(1), b"") && ledger.get(id).is_none());
    }
}
