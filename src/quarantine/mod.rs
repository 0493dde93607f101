//! Messages that are held back, on disk, until somebody decides or they expire.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::mail::{Envelope, Message, MessageId};

/// The quarantine's handle. Cheap to clone.
#[derive(Clone)]
pub struct Quarantine {}

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

#[derive(thiserror::Error, Debug)]
pub enum QuarantineError {
    #[error("message {0} is not in quarantine")]
    Unknown(MessageId),
    #[error("cannot use the quarantine: {0}")]
    Io(#[from] std::io::Error),
}

impl Quarantine {
    pub fn open(_directory: &Path, _keep_days: u64) -> Result<Self, QuarantineError> {
        todo!()
    }

    /// Holds the message; returns after the sync. `once` keeps one copy of equal content of one User: false = it was there already.
    pub async fn hold(&self, _held: Held, _message: Message, _once: bool) -> Result<bool, QuarantineError> {
        todo!()
    }

    /// Newest first; `domain` and `user` filter.
    pub async fn list(
        &self,
        _domain: Option<&str>,
        _user: Option<&str>,
        _count: usize,
    ) -> Result<Vec<Held>, QuarantineError> {
        todo!()
    }

    pub async fn show(&self, _id: MessageId) -> Result<(Held, Message), QuarantineError> {
        todo!()
    }

    pub async fn remove(&self, _id: MessageId) -> Result<(), QuarantineError> {
        todo!()
    }

    /// Removes what is older than `keep_days`; returns the ids.
    pub async fn expire(&self, _now_ms: u64) -> Result<Vec<MessageId>, QuarantineError> {
        todo!()
    }
}
