//! The delivery queue: which message goes where, and when.

use std::path::Path;
use std::sync::Arc;

use crate::config::Config;
use crate::dns::Dns;
use crate::mail::{Envelope, Message, MessageId};
use crate::maillog::Maillog;
use crate::metrics::Metrics;
use crate::spool::SpoolError;

/// The queue's handle. Cheap to clone.
#[derive(Clone)]
pub struct Queue {}

/// A message on its way into the queue.
#[derive(Clone, Debug)]
pub struct NewMessage {
    pub id: MessageId,
    pub envelope: Envelope,
    /// As it is to leave: signed and stamped.
    pub message: Message,
    /// The login that sent it and the domain it is logged under; `None` for our own notices.
    pub login: Option<String>,
    pub domain: String,
    /// Milliseconds since the epoch after which what is left bounces.
    pub expires_ms: u64,
    /// The decision that lets it pass; `None` for our own notices and for releases.
    pub admission: Option<AdmissionTag>,
}

/// The replicated state's admission id, opaque here.
#[derive(serde::Serialize, serde::Deserialize, Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AdmissionTag {
    pub node: u64,
    pub epoch: u64,
    pub sequence: u64,
}

/// A message that is on disk and waits for its decision. Must be given to [`Queue::deliver`] or [`Queue::discard`].
#[must_use]
#[derive(Debug)]
pub struct Stored {
    pub id: MessageId,
}

/// A message that was stored before a crash and whose decision was not noted.
#[derive(Clone, Debug)]
pub struct Undecided {
    pub id: MessageId,
    pub admission: AdmissionTag,
}

/// Called with each admission whose message no longer depends on the replicated state's memory.
pub type OnSettled = Arc<dyn Fn(AdmissionTag) + Send + Sync>;

/// Finds the route of a sender's domain now: `None` = look up MX.
pub type FindRoute = Arc<dyn Fn(&str) -> Option<Route> + Send + Sync>;

/// A fixed next hop.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Route {
    pub host: String,
    pub port: u16,
    /// Login and password for AUTH PLAIN.
    pub auth: Option<(String, String)>,
}

impl Route {
    /// Reads `host[:port]`, `[v6]:port`; port 25 where none is given. `None` where the text is neither.
    pub fn parse(text: &str, auth: Option<(String, String)>) -> Option<Self> {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port.parse().ok()?),
            Some(_) | None => (text, 25),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        (!host.is_empty()).then(|| Self { host: host.to_owned(), port, auth })
    }
}

/// What the queue needs from the rest of the node.
pub struct QueueParts {
    pub config: Arc<Config>,
    pub dns: Dns,
    pub maillog: Maillog,
    pub metrics: Arc<Metrics>,
    pub on_settled: OnSettled,
    pub find_route: FindRoute,
}

/// A queued message as list and show give it.
#[derive(serde::Serialize, serde::Deserialize, Clone, Debug)]
pub struct QueueEntry {
    pub id: MessageId,
    pub sender: String,
    pub login: Option<String>,
    pub domain: String,
    pub size: u64,
    pub arrived_ms: u64,
    pub next_attempt_ms: u64,
    pub attempts: u32,
    pub frozen: bool,
    pub recipients: Vec<QueueRecipient>,
}

#[derive(serde::Serialize, serde::Deserialize, Clone, Debug)]
pub struct QueueRecipient {
    pub address: String,
    /// `queued`, `deferred`, `delivered`, `bounced`, `expired`.
    pub status: String,
    /// The last reply of a next hop, with its host.
    pub last_reply: Option<String>,
}

#[derive(thiserror::Error, Debug)]
pub enum QueueError {
    #[error("message {0} is not in the queue")]
    Unknown(MessageId),
    #[error("message {0} is being delivered: try again in a moment")]
    Busy(MessageId),
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

impl Queue {
    /// Opens spool and index under `directory` and reads what an earlier life left; nothing is delivered before [`Queue::start`].
    pub async fn open(_directory: &Path, _parts: QueueParts) -> Result<(Self, Vec<Undecided>), SpoolError> {
        todo!()
    }

    /// Decides what a crash left undecided: true = deliver it, false = it never was accepted.
    pub async fn decide(&self, _undecided: Undecided, _accepted: bool) {
        todo!()
    }

    /// Begins deliveries.
    pub fn start(&self) {
        todo!()
    }

    /// Puts the message on disk; returns after the sync.
    pub async fn store(&self, _message: NewMessage) -> Result<Stored, SpoolError> {
        todo!()
    }

    /// The decision was yes: delivers it. Its note on disk follows with the next sync, then `on_settled` is called.
    pub fn deliver(&self, _stored: Stored) {
        todo!()
    }

    /// The decision was no.
    pub fn discard(&self, _stored: Stored) {
        todo!()
    }

    /// In order of id, after `after`.
    pub async fn list(&self, _after: Option<MessageId>, _count: usize) -> Vec<QueueEntry> {
        todo!()
    }

    pub async fn show(&self, _id: MessageId) -> Result<QueueEntry, QueueError> {
        todo!()
    }

    pub async fn bytes(&self, _id: MessageId) -> Result<Message, QueueError> {
        todo!()
    }

    /// Attempts it now; thaws nothing.
    pub async fn retry(&self, _id: MessageId) -> Result<(), QueueError> {
        todo!()
    }

    pub async fn freeze(&self, _id: MessageId) -> Result<(), QueueError> {
        todo!()
    }

    pub async fn thaw(&self, _id: MessageId) -> Result<(), QueueError> {
        todo!()
    }

    /// With `notify` the sender gets a bounce.
    pub async fn remove(&self, _id: MessageId, _notify: bool) -> Result<(), QueueError> {
        todo!()
    }

    /// False while the disk is nearly full: mail is answered with 452.
    pub fn has_room(&self) -> bool {
        todo!()
    }

    /// Lets running attempts finish for a moment, writes the index and stops.
    pub async fn shutdown(&self) {
        todo!()
    }
}
