//! When the log may forget on the disk what openraft has had purged.
//!
//! openraft has the log purged as soon as it has *begun* to install a snapshot. Until that is done the entries are all that
//! a start could go on from, so the writer waits with them, and with everything that comes behind.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::store::Failure;

const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Cheap to clone.
#[derive(Clone, Default, Debug)]
pub struct Purges {
    deferred: Arc<(Mutex<bool>, Condvar)>,
}

impl Purges {
    /// Until [`Purges::allow`].
    pub(crate) fn defer(&self) {
        self.set(true);
    }

    pub(crate) fn allow(&self) {
        self.set(false);
    }

    /// Returns when purges are allowed, or the store has stopped.
    pub(super) fn wait(&self, failure: &Failure) {
        let (deferred, changed) = &*self.deferred;
        let mut waiting = deferred.lock().unwrap_or_else(PoisonError::into_inner);
        while *waiting && !failure.is_set() {
            waiting = changed.wait_timeout(waiting, LOOK_INTERVAL).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn set(&self, value: bool) {
        let (deferred, changed) = &*self.deferred;
        *deferred.lock().unwrap_or_else(PoisonError::into_inner) = value;
        changed.notify_all();
    }
}
