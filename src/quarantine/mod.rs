//! Messages that are held back, on disk, until somebody decides or they expire.
//!
//! One file an entry: `<day>/<id>.held`, its first line the [`Held`] record as JSON, the message behind it. The day
//! is that of the id's time, so an id alone names its file and expiry is mostly whole directories. A file is written
//! under another name, synced, renamed, and its directory synced: it is there whole or not at all.
//!
//! One copy of equal content (client retries while a User is locked) is kept through a marker
//! `once/<fingerprint>` that holds the id of the copy. A marker whose copy is gone counts for nothing. Whoever is locked
//! may still send different messages without end, so such copies have a daily measure: `quota`.
//!
//! A release takes the entry out first, by renaming it to `<id>.releasing`: of two at the same time one finds it. What a
//! crash left taken out is back after the next start.
//!
//! Invariants:
//! * `hold` returns only after its file and its directory are synced.
//! * An entry that cannot be read is said aloud and passed over; it hides no other.
//!
//! Copies of what other nodes hold lie beside the entries, under names of their own: `copies`.
//!
//! Never here: why a message is held, and what becomes of it when it is released.

mod copies;
mod quota;
mod store;

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use self::store::Store;
use crate::mail::{Envelope, Message, MessageId};
use crate::maillog::Origin;

/// Quarantine operations that may use the disk at once.
const CONCURRENT_MAX: usize = 8;

/// The quarantine's handle. Cheap to clone.
#[derive(Clone)]
pub struct Quarantine {
    store: Arc<Store>,
    permits: Arc<Semaphore>,
}

/// What is known of a held message beside its bytes.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Held {
    pub id: MessageId,
    pub envelope: Envelope,
    pub domain: String,
    pub user: String,
    pub identity: Option<String>,
    pub class: String,
    pub score: f32,
    pub evidence: Vec<String>,
    pub subject: String,
    pub size: u64,
    pub held_ms: u64,
    /// How long what is released may be retried.
    pub max_days_to_retry: u64,
}

impl Held {
    /// For the log.
    pub fn origin(&self) -> Origin {
        let sender = self.envelope.reverse_path.to_string();
        Origin { user: self.user.clone(), domain: self.domain.clone(), sender }
    }
}

#[derive(thiserror::Error, Debug)]
pub enum QuarantineError {
    #[error("message {0} is not in quarantine")]
    Unknown(MessageId),
    #[error("quarantine keeps no more copies of locked mail today")]
    Full,
    #[error("no other node keeps a copy of message {0}")]
    NoMirror(MessageId),
    #[error("cannot use the quarantine: {0}")]
    Io(#[from] std::io::Error),
}

impl Quarantine {
    /// Uses (and makes) `directory`; what a crash left half written is removed.
    pub fn open(directory: &Path, keep_days: u64) -> Result<Self, QuarantineError> {
        let store = Arc::new(Store::open(directory, keep_days)?);
        Ok(Self { store, permits: Arc::new(Semaphore::new(CONCURRENT_MAX)) })
    }

    /// Whether [`Quarantine::hold`] with `once` would keep a copy of this content, before any work is put into it. False
    /// = there is one.
    pub async fn wants(&self, held: Held, message: Message) -> Result<bool, QuarantineError> {
        self.run(move |store| store.wants(&held, &message)).await
    }

    /// Holds the message; returns after the sync. `once` keeps one copy of equal content of one User (false = it was there
    /// already) while its measure of the day lasts (else [`QuarantineError::Full`]).
    pub async fn hold(&self, held: Held, message: Message, once: bool) -> Result<bool, QuarantineError> {
        self.run(move |store| if once { store.hold_once(&held, &message) } else { store.hold(&held, &message, None) })
            .await
    }

    /// Newest first; `domain` and `user` filter.
    pub async fn list(
        &self,
        domain: Option<&str>,
        user: Option<&str>,
        count: usize,
    ) -> Result<Vec<Held>, QuarantineError> {
        let (domain, user) = (domain.map(str::to_owned), user.map(str::to_owned));
        self.run(move |store| store.list(domain.as_deref(), user.as_deref(), count)).await
    }

    pub async fn show(&self, id: MessageId) -> Result<(Held, Message), QuarantineError> {
        self.run(move |store| store.show(id)).await
    }

    /// Takes the entry out, for whoever then calls [`Quarantine::taken`] or [`Quarantine::put_back`]; nobody else finds it.
    pub async fn take(&self, id: MessageId) -> Result<(Held, Message), QuarantineError> {
        self.run(move |store| store.take(id)).await
    }

    /// Ends a [`Quarantine::take`]: the entry is gone for good.
    pub async fn taken(&self, id: MessageId) -> Result<(), QuarantineError> {
        self.run(move |store| store.taken(id)).await
    }

    /// Undoes a [`Quarantine::take`].
    pub async fn put_back(&self, id: MessageId) -> Result<(), QuarantineError> {
        self.run(move |store| store.put_back(id)).await
    }

    /// What was known of it, where that can be read.
    pub async fn remove(&self, id: MessageId) -> Result<Option<Held>, QuarantineError> {
        self.run(move |store| store.remove(id)).await
    }

    /// Removes what is older than `keep_days`; returns the ids with what was known of them.
    pub async fn expire(&self, now_ms: u64) -> Result<Vec<(MessageId, Option<Held>)>, QuarantineError> {
        self.run(move |store| store.expire(now_ms)).await
    }

    /// What is held, oldest first.
    pub(crate) async fn all(&self) -> Result<Vec<MessageId>, QuarantineError> {
        self.run(Store::all).await
    }

    /// Whether it is held, or being released.
    pub(crate) async fn holds(&self, id: MessageId) -> bool {
        self.run(move |store| Ok(store.holds(id))).await.unwrap_or(true)
    }

    /// Keeps a copy of what `node` holds; returns after the sync.
    pub(crate) async fn keep_copy(&self, node: u64, held: Held, message: Message) -> Result<(), QuarantineError> {
        self.run(move |store| store.keep_copy(node, &held, &message)).await
    }

    pub(crate) async fn drop_copies(&self, node: u64, ids: Vec<MessageId>) -> Result<(), QuarantineError> {
        self.run(move |store| ids.into_iter().try_for_each(|id| store.drop_copy(node, id))).await
    }

    /// What is kept for the node, oldest first.
    pub(crate) async fn copies_of(&self, node: u64) -> Result<Vec<MessageId>, QuarantineError> {
        self.run(move |store| store.copies_of(node)).await
    }

    /// Makes copies of `node` entries of this quarantine.
    pub(crate) async fn adopt(&self, node: u64, ids: Vec<MessageId>) -> Result<(), QuarantineError> {
        self.run(move |store| ids.into_iter().try_for_each(|id| store.adopt(node, id))).await
    }

    /// The node holds this by now: what is here becomes the copy. One that is not here is left alone.
    pub(crate) async fn hand_over(&self, id: MessageId, node: u64) -> Result<(), QuarantineError> {
        self.run(move |store| store.hand_over(id, node)).await
    }

    /// Runs `work` on a blocking thread, at most [`CONCURRENT_MAX`] at a time. The permit goes with the work: a caller
    /// that gives up does not make room before its work is done.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, QuarantineError> + Send + 'static,
    ) -> Result<T, QuarantineError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(std::io::Error::other)?;
        let store = Arc::clone(&self.store);
        let task = tokio::task::spawn_blocking(move || {
            let result = work(&store);
            drop(permit);
            result
        });
        task.await.map_err(std::io::Error::other)?
    }
}

#[cfg(test)]
mod tests;
