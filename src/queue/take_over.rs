//! Messages that change hands between nodes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::entry::Entry;
use super::owner::{OwnerState, QueueMessage, send};
use super::{AdmissionTag, Queue};
use crate::clock::now_ms;
use crate::delivery::LetGo;
use crate::mail::MessageId;
use crate::maillog::{Event, Record, Status};
use crate::mirror::Handed;
use crate::spool::Found;

/// How long it is remembered what this node let go of.
const YIELDED_MAX: Duration = Duration::from_secs(600);

/// What is to be done with another node's messages.
pub(crate) struct Sorted {
    pub(crate) to_deliver: Vec<Entry>,
    /// Their decision was no.
    pub(crate) to_drop: Vec<MessageId>,
}

/// Sorts copies of a node that is down: what has no decision noted is decided by what the cluster remembers.
pub(crate) fn sort(found: &[Found], was_accepted: impl Fn(AdmissionTag) -> bool) -> Sorted {
    let mut sorted = Sorted { to_deliver: Vec::new(), to_drop: Vec::new() };
    for message in found {
        match Entry::recover(message) {
            Some(entry) if message.accepted || entry.admission.is_some_and(&was_accepted) => {
                sorted.to_deliver.push(entry);
            }
            Some(entry) => sorted.to_drop.push(entry.id),
            None => tracing::error!(id = %message.id, "the envelope of a mirrored message cannot be read; it is kept"),
        }
    }
    sorted
}

impl Queue {
    /// Delivers messages of another node, which are ours on disk by now; `why` is for the log.
    pub(crate) fn take_over(&self, entries: Vec<Entry>, why: &str) {
        for mut entry in entries {
            let detail = why.to_owned();
            let event =
                Event::Change { origin: entry.origin(), status: Status::Queued, by: "take-over".to_owned(), detail };
            self.inner.maillog.record(Record { at_ms: now_ms(), id: entry.id, event });
            self.inner.metrics.messages_taken_over.inc();
            // What the old owner waited for may be long over.
            entry.progress.next_attempt_ms = entry.progress.next_attempt_ms.min(now_ms());
            send(&self.inner.owner, QueueMessage::TakeOver(Box::new(entry)));
        }
    }

    /// Lets go of messages that others have taken over; returns when that is on disk. Nothing of them is begun to be sent
    /// from then on.
    pub(crate) async fn let_go(&self, handed: Handed) {
        self.undecided().retain(|id, _| !handed.contains_key(id));
        let (noted, mut all) = mpsc::channel(1);
        send(&self.inner.owner, QueueMessage::LetGo { handed, noted });
        // Ends with the last sender.
        while all.recv().await.is_some() {}
    }
}

impl OwnerState {
    /// Of a message that this node let go of before, an attempt may still be under way.
    pub(super) fn take_over(&mut self, entry: Entry) {
        self.yielded.ids.remove(&entry.id);
        match self.entries.get_mut(&entry.id) {
            Some(known) if known.let_go.is_set() => {
                // What comes back of that was perhaps never begun.
                (known.let_go, known.untried) = (LetGo::default(), true);
                known.progress.add(&entry.progress);
            }
            Some(_) | None => self.add(entry),
        }
    }

    pub(super) fn let_go(&mut self, handed: Handed, noted: &mpsc::Sender<()>) {
        self.yielded.add(handed.keys().copied());
        for (id, node) in handed {
            self.delivery.metrics.messages_yielded.inc();
            match self.entries.get_mut(&id) {
                Some(entry) if entry.under_way > 0 => entry.let_go.set(),
                Some(_) => drop(self.take_out(id)),
                None => {}
            }
            let noted = noted.clone();
            self.delivery.disks.let_go(id, node, Box::new(move || drop(noted)));
        }
    }
}

/// What this node let go of lately: a session that stood still for a while may still hand it in.
#[derive(Default)]
pub(super) struct Yielded {
    ids: BTreeSet<MessageId>,
    last: Option<Instant>,
}

impl Yielded {
    fn add(&mut self, ids: impl Iterator<Item = MessageId>) {
        self.ids.extend(ids);
        self.last = Some(Instant::now());
    }

    pub(super) fn contains(&self, id: MessageId) -> bool {
        self.ids.contains(&id)
    }

    pub(super) fn forget_old(&mut self) {
        if self.last.is_some_and(|last| last.elapsed() > YIELDED_MAX) {
            *self = Self::default();
        }
    }
}
