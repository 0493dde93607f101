//! Messages that change hands between nodes.

use std::collections::BTreeSet;

use super::entry::Entry;
use super::owner::{OwnerState, QueueMessage, send};
use super::{AdmissionTag, Queue};
use crate::clock::now_ms;
use crate::mail::MessageId;
use crate::maillog::{Event, Record, Status};
use crate::spool::Found;

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
    /// Delivers messages of another node, which are ours on disk by now.
    pub(crate) fn take_over(&self, entries: Vec<Entry>, from: u64) {
        for mut entry in entries {
            let detail = format!("node {from} is down");
            let event =
                Event::Change { origin: entry.origin(), status: Status::Queued, by: "take-over".to_owned(), detail };
            self.inner.maillog.record(Record { at_ms: now_ms(), id: entry.id, event });
            self.inner.metrics.messages_taken_over.inc();
            // What the old owner waited for may be long over.
            entry.progress.next_attempt_ms = entry.progress.next_attempt_ms.min(now_ms());
            send(&self.inner.owner, QueueMessage::Add(Box::new(entry)));
        }
    }

    /// Lets go of messages that others have taken over. What is just being sent is let go when that is over.
    pub(crate) fn let_go(&self, ids: BTreeSet<MessageId>) {
        let mut undecided = self.undecided();
        undecided.retain(|id, _| !ids.contains(id));
        drop(undecided);
        send(&self.inner.owner, QueueMessage::LetGo(ids));
    }
}

impl OwnerState {
    pub(super) fn let_go(&mut self, id: MessageId) {
        self.delivery.metrics.messages_yielded.inc();
        match self.entries.get_mut(&id) {
            Some(entry) if entry.under_way > 0 => entry.let_go = true,
            Some(_) => self.forget(id),
            None => self.delivery.disks.done(id, None),
        }
    }
}
