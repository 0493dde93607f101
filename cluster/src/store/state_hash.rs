//! The hash of the state right behind chosen log entries, by which nodes are compared.
//!
//! The checkpoint sums its records' hashes as it goes; what is missing is that all nodes look at the same entry. Behind a
//! [`Command::StateHash`] the changed records are set aside in the state they have there; the keeper writes them as a
//! checkpoint of their own, whose sum is the hash. Where a checkpoint is being taken at that moment this node passes the
//! entry over: there will be another.
//!
//! [`Command::StateHash`]: crate::command::Command::StateHash

use std::collections::VecDeque;
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
        if !inner.capturing && inner.waiting.is_none() {
            inner.waiting = Some(set_aside());
        }
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
