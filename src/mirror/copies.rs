//! Where the second copy of each of our messages is. Pure bookkeeping.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;

use bytes::Bytes;

use super::letter::{Mark, What};
use crate::mail::MessageId;
use crate::spool::Then;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// On its way to a mirror.
    Sending,
    /// On the disk of this node.
    At(u64),
    Nowhere,
}

struct Copy {
    place: Place,
    accepted: bool,
    /// When it came to its place, counted in [`Copies::clock`].
    since: u64,
    /// To be called when its mirror knows that it is accepted, or when it is done.
    waiting: Vec<Then>,
    /// What came of its recipients while it was on its way to a mirror.
    untold: Option<Bytes>,
}

#[derive(Default)]
pub(super) struct Copies {
    table: HashMap<MessageId, Copy>,
    /// Those that are nowhere.
    homeless: BTreeSet<MessageId>,
    clock: u64,
    /// The last homeless one that was sent: those behind it have their turn before it is tried again.
    cursor: Option<MessageId>,
}

impl Copy {
    fn new(place: Place, accepted: bool) -> Self {
        Self { place, accepted, since: 0, waiting: Vec::new(), untold: None }
    }
}

impl Copies {
    /// A message of ours whose copy is not known.
    pub(super) fn find(&mut self, id: MessageId, accepted: bool) {
        self.table.insert(id, Copy::new(Place::Nowhere, accepted));
        self.homeless.insert(id);
    }

    /// A new message on its way to a mirror.
    pub(super) fn send(&mut self, id: MessageId, accepted: bool) {
        self.table.insert(id, Copy::new(Place::Sending, accepted));
    }

    /// Up to `count` messages without a copy, which from now on are on their way to a mirror. None = all have had a turn.
    pub(super) fn send_homeless(&mut self, count: usize) -> Vec<MessageId> {
        let behind = self.cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let ids: Vec<MessageId> = self.homeless.range((behind, Bound::Unbounded)).take(count).copied().collect();
        for id in &ids {
            self.homeless.remove(id);
            if let Some(copy) = self.table.get_mut(id) {
                // What it says by now is read with the message.
                (copy.place, copy.untold) = (Place::Sending, None);
            }
        }
        if count > 0 {
            self.cursor = ids.last().copied();
        }
        ids
    }

    /// What came of the recipients. The node that has to hear it.
    pub(super) fn progress(&mut self, id: MessageId, state: &Bytes) -> Option<u64> {
        let copy = self.table.get_mut(&id)?;
        match copy.place {
            Place::At(node) => return Some(node),
            Place::Sending => copy.untold = Some(state.clone()),
            // It is read when the copy is made.
            Place::Nowhere => {}
        }
        None
    }

    pub(super) fn homeless(&self) -> usize {
        self.homeless.len()
    }

    /// The message is on the node's disk, which believes it `accepted` or not. What the node has to hear at once, and what
    /// has waited for that.
    pub(super) fn placed(&mut self, id: MessageId, node: u64, accepted: bool) -> (Vec<Mark>, Vec<Then>) {
        self.clock += 1;
        let mark = |what| Mark { id: id.into(), what };
        let Some(copy) = self.table.get_mut(&id) else { return (vec![mark(What::Done)], Vec::new()) };
        (copy.place, copy.since) = (Place::At(node), self.clock);
        let mut marks: Vec<Mark> = copy.untold.take().map(What::Progress).map(mark).into_iter().collect();
        if copy.accepted && !accepted {
            marks.push(mark(What::Accepted));
        }
        let waited = if copy.accepted && accepted { std::mem::take(&mut copy.waiting) } else { Vec::new() };
        (marks, waited)
    }

    /// No mirror took it.
    pub(super) fn not_placed(&mut self, id: MessageId) {
        if let Some(copy) = self.table.get_mut(&id) {
            copy.place = Place::Nowhere;
            self.homeless.insert(id);
        }
    }

    pub(super) fn accepted(&self) -> Vec<MessageId> {
        self.table.iter().filter(|(_, copy)| copy.accepted).map(|(id, _)| *id).collect()
    }

    /// The message is accepted. The node that has to hear it; without one `then` waits for the next. `then` comes back where
    /// the message is not ours (any more): nobody has to know.
    pub(super) fn accept(&mut self, id: MessageId, then: Option<Then>) -> (Option<u64>, Option<Then>) {
        let Some(copy) = self.table.get_mut(&id) else { return (None, then) };
        copy.accepted = true;
        copy.waiting.extend(then);
        (self.mirror(id), None)
    }

    /// Nobody else needs to know that it is accepted: what has waited for that.
    pub(super) fn release(&mut self, id: MessageId) -> Vec<Then> {
        match self.table.get_mut(&id) {
            Some(copy) if copy.accepted => std::mem::take(&mut copy.waiting),
            Some(_) | None => Vec::new(),
        }
    }

    /// The node has noted that it is accepted: what has waited for that.
    pub(super) fn confirmed(&mut self, id: MessageId, node: u64) -> Vec<Then> {
        match self.table.get_mut(&id) {
            Some(copy) if copy.place == Place::At(node) => std::mem::take(&mut copy.waiting),
            Some(_) | None => Vec::new(),
        }
    }

    pub(super) fn knows(&self, id: MessageId) -> bool {
        self.table.contains_key(&id)
    }

    pub(super) fn mirror(&self, id: MessageId) -> Option<u64> {
        match self.table.get(&id)?.place {
            Place::At(node) => Some(node),
            Place::Sending | Place::Nowhere => None,
        }
    }

    /// The message is ours no more. The node that has to hear it, and what has waited.
    pub(super) fn done(&mut self, id: MessageId) -> (Option<u64>, Vec<Then>) {
        let mirror = self.mirror(id);
        self.homeless.remove(&id);
        (mirror, self.table.remove(&id).map(|copy| copy.waiting).unwrap_or_default())
    }

    /// The node's copies are lost.
    pub(super) fn lose(&mut self, node: u64) {
        for (id, copy) in &mut self.table {
            if copy.place == Place::At(node) {
                copy.place = Place::Nowhere;
                self.homeless.insert(*id);
            }
        }
    }

    pub(super) fn clock(&self) -> u64 {
        self.clock
    }

    /// Compares with what the node really keeps: `listed`, asked for when the clock stood at `asked`. What the node has to
    /// hear: what it need not keep, and what of ours it does not know to be accepted.
    /// What is `lost` here is not.
    pub(super) fn reconcile(
        &mut self,
        node: u64,
        listed: &HashMap<MessageId, bool>,
        asked: u64,
        lost: &BTreeSet<MessageId>,
    ) -> Vec<Mark> {
        for (id, copy) in &mut self.table {
            if copy.place == Place::At(node) && copy.since <= asked && !listed.contains_key(id) {
                copy.place = Place::Nowhere;
                self.homeless.insert(*id);
            }
        }
        let mut marks = Vec::new();
        for (&id, &accepted) in listed.iter().filter(|(id, _)| !lost.contains(id)) {
            let what = match self.table.get_mut(&id) {
                None => Some(What::Done),
                Some(copy) => match copy.place {
                    Place::Sending => None,
                    Place::At(other) if other != node => Some(What::Done),
                    Place::At(_) | Place::Nowhere => {
                        copy.place = Place::At(node);
                        self.homeless.remove(&id);
                        (copy.accepted && (!accepted || !copy.waiting.is_empty())).then_some(What::Accepted)
                    }
                },
            };
            marks.extend(what.map(|what| Mark { id: id.into(), what }));
        }
        marks
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    struct Calls(Arc<AtomicUsize>);

    impl Calls {
        fn then(&self) -> Option<Then> {
            let calls = Arc::clone(&self.0);
            Some(Box::new(move || {
                calls.fetch_add(1, Ordering::Relaxed);
            }))
        }

        fn made(&self, thens: Vec<Then>) -> usize {
            thens.into_iter().for_each(|then| then());
            self.0.load(Ordering::Relaxed)
        }
    }

    fn mark(id: MessageId, what: What) -> Mark {
        Mark { id: id.into(), what }
    }

    #[test]
    fn whoever_waits_hears_of_it_when_the_mirror_knows() {
        let (mut copies, calls, id) = (Copies::default(), Calls(Arc::default()), MessageId::generate());
        copies.send(id, false);
        assert_eq!(copies.accept(id, calls.then()).0, None);
        let (told, thens) = copies.placed(id, 2, false);
        assert_eq!((told, calls.made(thens)), (vec![mark(id, What::Accepted)], 0));
        assert_eq!(calls.made(copies.confirmed(id, 3)), 0);
        assert_eq!(calls.made(copies.confirmed(id, 2)), 1);
        assert_eq!(copies.done(id).0, Some(2));
        assert_eq!(copies.placed(id, 3, true).0, [mark(id, What::Done)], "a late copy of what is done");
    }

    #[test]
    fn a_lost_copy_is_made_again_and_answers_then() {
        let (mut copies, calls, id) = (Copies::default(), Calls(Arc::default()), MessageId::generate());
        copies.send(id, false);
        copies.placed(id, 2, false);
        assert_eq!(copies.accept(id, calls.then()).0, Some(2));
        let (told, back) = copies.accept(MessageId::generate(), calls.then());
        assert!(told.is_none() && back.is_some(), "a message that is not ours");
        copies.lose(2);
        assert_eq!(copies.homeless(), 1);
        assert_eq!(calls.made(copies.confirmed(id, 2)), 0, "from a node that keeps it no more");
        assert_eq!(copies.send_homeless(9), [id]);
        assert_eq!((copies.homeless(), copies.mirror(id)), (0, None));
        copies.not_placed(id);
        assert_eq!(copies.send_homeless(9), [], "it has had its turn");
        assert_eq!(copies.send_homeless(9), [id]);
        let state = Bytes::from_static(b"one was delivered meanwhile");
        assert_eq!(copies.progress(id, &Bytes::from_static(b"older")), None);
        copies.not_placed(id);
        assert!(copies.send_homeless(9).is_empty() && copies.send_homeless(9) == [id]);
        assert_eq!(copies.placed(id, 3, true).0, [], "what is on disk by now goes with the message");
        copies.lose(3);
        assert!(copies.send_homeless(9).is_empty() && copies.send_homeless(9) == [id]);
        assert_eq!(copies.progress(id, &state), None);
        let (told, thens) = copies.placed(id, 3, true);
        assert_eq!((told, calls.made(thens)), (vec![mark(id, What::Progress(state.clone()))], 0));
        assert_eq!(copies.progress(id, &state), Some(3));
    }

    #[test]
    fn what_finds_no_place_does_not_hold_up_what_is_behind_it() {
        let mut copies = Copies::default();
        let mut ids: Vec<_> = (0..3).map(|_| MessageId::generate()).collect();
        ids.sort_unstable();
        ids.iter().for_each(|id| copies.find(*id, true));
        assert_eq!(copies.send_homeless(1), ids[..1]);
        copies.not_placed(ids[0]);
        assert_eq!(copies.send_homeless(0), []);
        assert_eq!(copies.send_homeless(9), ids[1..]);
        assert_eq!((copies.send_homeless(9), copies.send_homeless(9)), (vec![], ids[..1].to_vec()));
    }

    #[test]
    fn what_a_node_keeps_is_compared_with_what_it_should() {
        let mut copies = Copies::default();
        let ids: Vec<_> = (0..7).map(|_| MessageId::generate()).collect();
        let [kept, strayed, missing, sending, found, gone, lost] = ids[..] else { unreachable!() };
        for (id, node) in [(kept, 2), (strayed, 3), (missing, 2)] {
            copies.send(id, false);
            copies.placed(id, node, false);
        }
        copies.send(sending, false);
        copies.find(found, true);
        let asked = copies.clock();
        let late = MessageId::generate();
        copies.send(late, false);
        copies.placed(late, 2, false);
        let listed = [kept, strayed, sending, found, gone, lost].into_iter().map(|id| (id, false)).collect();
        let mut marks = copies.reconcile(2, &listed, asked, &BTreeSet::from([lost]));
        let by_id = |mark: &Mark| MessageId::from(mark.id);
        marks.sort_by_key(by_id);
        let mut expected = [mark(strayed, What::Done), mark(found, What::Accepted), mark(gone, What::Done)];
        expected.sort_by_key(by_id);
        assert_eq!(marks, expected);
        assert_eq!(copies.send_homeless(9), [missing]);
        let places = [kept, strayed, found, late].map(|id| copies.mirror(id));
        assert_eq!(places, [Some(2), Some(3), Some(2), Some(2)]);
    }
}
