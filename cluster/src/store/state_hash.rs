//! The hash of the state right behind chosen log entries, by which nodes are compared.
//!
//! The checkpoint sums its records' hashes as it goes; what is missing is that all nodes look at the same entry. Behind a
//! [`Command::StateHash`] the changed records are set aside in the state they have there; the keeper writes them as a
//! checkpoint of their own, whose sum is the hash. Of two that come before that the later one counts. Where a checkpoint is
//! being taken at that moment this node passes the entry over: the leader sees that and asks again.
//!
//! [`Command::StateHash`]: crate::command::Command::StateHash

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::raft::{LogId, Membership};
use crate::store::machine::Change;

/// Hashes that are remembered and told: others may be behind.
const REMEMBERED_MAX: usize = 8;

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct StateHash {
    pub index: u64,
    pub records: u64,
    pub sum: u64,
}

/// The newest hashes of a node, newest last. Cheap to clone.
#[derive(Clone, Default)]
pub struct StateHashes {
    newest: Arc<Mutex<VecDeque<StateHash>>>,
}

impl StateHashes {
    pub fn note(&self, hash: StateHash) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest.push_back(hash);
        if newest.len() > REMEMBERED_MAX {
            newest.pop_front();
        }
    }

    pub fn all(&self) -> Vec<StateHash> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}

/// What changed up to an entry, as it was there.
pub struct SetAside {
    pub changes: Vec<Change>,
    pub applied: Option<LogId>,
    pub membership: Membership,
}

impl SetAside {
    /// With what was set aside before and is not written yet.
    fn behind(self, old: Self) -> Self {
        let changes: BTreeMap<_, _> = old.changes.into_iter().chain(self.changes).collect();
        Self { changes: changes.into_iter().collect(), ..self }
    }
}

/// Between who applies and who writes checkpoints.
#[derive(Default)]
pub(super) struct Handover {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// A checkpoint is being taken: what is set aside now would be out of order.
    capturing: bool,
    waiting: Option<SetAside>,
}

impl Handover {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Only while entries stand still.
    pub(super) fn put(&self, set_aside: impl FnOnce() -> SetAside) {
        let mut inner = self.lock();
        if inner.capturing {
            return;
        }
        let new = set_aside();
        inner.waiting = Some(match inner.waiting.take() {
            Some(old) => new.behind(old),
            None => new,
        });
    }

    /// A checkpoint begins; what was set aside before comes first.
    pub(super) fn begin(&self) -> Option<SetAside> {
        let mut inner = self.lock();
        inner.capturing = true;
        inner.waiting.take()
    }

    pub(super) fn end(&self) {
        self.lock().capturing = false;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use openraft::CommittedLeaderId;

    use super::*;
    use crate::state::Key;

    fn set_aside(index: u64, changes: &[(u64, &str)]) -> SetAside {
        let changes = changes.iter().map(|(node, record)| (Key::Node(*node), Some(record.as_bytes().to_vec())));
        let applied = Some(LogId::new(CommittedLeaderId::new(1, 1), index));
        SetAside { changes: changes.collect(), applied, membership: Membership::default() }
    }

    #[test]
    fn of_two_before_a_checkpoint_the_later_counts_and_during_one_none_does() {
        let handover = Handover::default();
        handover.put(|| set_aside(3, &[(1, "old"), (2, "kept")]));
        handover.put(|| set_aside(5, &[(1, "new"), (3, "added")]));
        let both = handover.begin().unwrap();
        assert_eq!(both.applied.unwrap().index, 5);
        assert_eq!(both.changes, set_aside(5, &[(1, "new"), (2, "kept"), (3, "added")]).changes);
        handover.put(|| set_aside(6, &[]));
        handover.end();
        assert!(handover.begin().is_none());
    }
}
