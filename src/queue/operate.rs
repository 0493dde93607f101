//! What administrators do to queued messages.

use std::ops::Bound;

use tokio::sync::oneshot;

use super::entry::{Action, Reported};
use super::owner::{OwnerState, answer};
use super::{QueueEntry, QueueError};
use crate::clock::now_ms;
use crate::delivery::Answer;
use crate::mail::MessageId;
use crate::maillog::Status;

/// Told when it is done; of a removal when that is on disk.
pub(crate) type Done = oneshot::Sender<Result<(), QueueError>>;

/// What an operator may do to one message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    Retry,
    Freeze,
    Thaw,
    Remove { notify: bool },
}

impl OwnerState {
    pub(super) fn list(&self, after: Option<MessageId>, count: usize) -> Vec<QueueEntry> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.entries.range((from, Bound::Unbounded)).take(count).map(|(_, entry)| entry.show()).collect()
    }

    pub(super) async fn operate(&mut self, id: MessageId, operation: Operation, reply: Done) {
        let Some(entry) = self.entries.get_mut(&id) else { return answer(reply, Err(QueueError::Unknown(id))) };
        if entry.under_way > 0 {
            return answer(reply, Err(QueueError::Busy(id)));
        }
        match operation {
            Operation::Retry if entry.progress.frozen => return answer(reply, Err(QueueError::Frozen(id))),
            Operation::Retry if !self.started => return answer(reply, Err(QueueError::Busy(id))),
            Operation::Retry => {
                self.due.remove(&(entry.progress.next_attempt_ms, id));
                self.attempt(id, true).await;
            }
            Operation::Freeze => self.set_frozen(id, true, "frozen by an administrator"),
            Operation::Thaw if !entry.progress.frozen => {}
            Operation::Thaw => {
                entry.progress.next_attempt_ms = now_ms();
                self.set_frozen(id, false, "thawed by an administrator");
            }
            Operation::Remove { notify } => {
                entry.removal = Some(reply);
                return self.remove(id, notify);
            }
        }
        answer(reply, Ok(()));
    }

    pub(super) fn set_frozen(&mut self, id: MessageId, frozen: bool, why: &str) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let was = std::mem::replace(&mut entry.progress.frozen, frozen);
        let place = (entry.progress.next_attempt_ms, id);
        if frozen {
            self.due.remove(&place);
        } else {
            self.due.insert(place);
        }
        match (was, frozen) {
            (false, true) => self.delivery.metrics.queue_frozen.inc(),
            (true, false) => self.delivery.metrics.queue_frozen.dec(),
            (true, true) | (false, false) => return self.note_progress(id),
        };
        self.note_progress(id);
        self.change(id, if frozen { Status::Frozen } else { Status::Queued }, "queue", why);
    }

    pub(super) fn remove(&mut self, id: MessageId, notify: bool) {
        self.change(id, Status::Removed, "admin", if notify { "the sender is told" } else { "" });
        let Some(entry) = self.entries.get_mut(&id) else { return };
        self.due.remove(&(entry.progress.next_attempt_ms, id));
        let answer = Answer::local("", "5.7.1", "the message was removed from the queue by an administrator");
        let pending = entry.pending().into_iter();
        let reported =
            pending.map(|recipient| Reported { recipient, action: Action::Failed, answer: answer.clone() }).collect();
        if notify {
            self.tell_sender(id, reported, now_ms());
        } else {
            self.forget(id);
        }
    }
}
