//! The delivery queue: which message goes where, and when.
//!
//! A message comes in two steps, because its bytes are synced while the replicated state decides: [`Queue::store`] puts
//! it on disk, [`Queue::deliver`] or [`Queue::discard`] note the decision. After a crash, messages of which only the first
//! step is known come back from [`Queue::open`] as [`Undecided`]. Invariants:
//!
//! - What `store` answered with `Ok` and was decided with yes is delivered, bounced, expired or removed by an
//!   administrator; nothing else ends it.
//! - `on_settled` is called only when the decision is noted on disk: until then the state has to remember it.
//! - Nothing is sent before [`Queue::start`].

mod entry;
mod notice;
mod operate;
mod owner;
mod plan;
mod schedule;
mod settle;
mod take_over;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ractor::{Actor, ActorRef};
use tokio::sync::oneshot;

use crate::clock::now_ms;
use crate::config::Config;
use crate::delivery::MayDeliver;
use crate::dns::Dns;
use crate::mail::{Envelope, Message, MessageId};
use crate::maillog::Maillog;
use crate::metrics::Metrics;
use crate::mirror::{Disks, Left};
use crate::spool::{Found, SpoolError};
pub(crate) use entry::Entry;
use operate::Operation;
use owner::{Owner, QueueMessage, send};
pub(crate) use take_over::{Sorted, sort};

/// How long messages whose text is on its way get at shutdown: a hop may take it and we would not know.
const DRAIN_MAX: Duration = Duration::from_secs(60);

/// The queue's handle. Cheap to clone.
#[derive(Clone)]
pub struct Queue {
    inner: Arc<Inner>,
}

struct Inner {
    disks: Disks,
    owner: ActorRef<QueueMessage>,
    supervisor: tokio::task::AbortHandle,
    on_settled: OnSettled,
    undecided: Mutex<HashMap<MessageId, Entry>>,
    maillog: Maillog,
    metrics: Arc<Metrics>,
}

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

/// A message that is on disk and waits for its decision. Must be given to [`Queue::deliver`] or [`Queue::discard`];
/// dropped, it counts as discarded.
#[must_use]
pub struct Stored {
    pub id: MessageId,
    waiting: Option<Waiting>,
}

struct Waiting {
    entry: Entry,
    disks: Disks,
    on_settled: OnSettled,
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
    pub disks: Disks,
    pub maillog: Maillog,
    pub metrics: Arc<Metrics>,
    pub on_settled: OnSettled,
    pub find_route: FindRoute,
    pub may_deliver: MayDeliver,
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
    #[error("message {0} is frozen: thaw it first")]
    Frozen(MessageId),
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

impl Stored {
    fn discard(&mut self) {
        if let Some(Waiting { entry, disks, on_settled }) = self.waiting.take() {
            disks.done(entry.id, settled(&entry, &on_settled));
        }
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        self.discard();
    }
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stored").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The call to make when the decision is on disk.
fn settled(entry: &Entry, on_settled: &OnSettled) -> Option<crate::spool::Then> {
    let (tag, on_settled) = (entry.admission?, Arc::clone(on_settled));
    Some(Box::new(move || on_settled(tag)))
}

impl Queue {
    /// Takes up what an earlier life left; nothing is delivered before [`Queue::start`].
    pub async fn open(parts: QueueParts, Left(found): Left) -> Result<(Self, Vec<Undecided>), SpoolError> {
        let QueueParts { config, dns, disks, maillog, metrics, on_settled, find_route, may_deliver } = parts;
        let (entries, waiting) = recover(&found, &disks);
        let undecided: Vec<Undecided> =
            waiting.iter().filter_map(|entry| Some(Undecided { id: entry.id, admission: entry.admission? })).collect();
        let hostname = config.node.effective_hostname();
        let helo = if config.delivery.helo.is_empty() { hostname.clone() } else { config.delivery.helo.clone() };
        let relay = relay(&config.delivery);
        let (of_queue, counters) = (maillog.clone(), Arc::clone(&metrics));
        let delivery = Arc::new(crate::delivery::Shared::new(config, helo, dns, disks.clone(), metrics, may_deliver));
        let delivery_of_task = Arc::clone(&delivery);
        let parts = owner::Parts { delivery, hostname, maillog, find_route, relay, entries };
        let spawned = Actor::spawn(None, Owner, parts).await;
        let failed = |error| SpoolError::Io("the queue".into(), std::io::Error::other(error));
        let (owner, ended) = spawned.map_err(failed)?;
        let supervisor = tokio::spawn(supervise(disks.clone(), ended, delivery_of_task)).abort_handle();
        owner.send_interval(owner::TICK, || QueueMessage::Tick);
        let undecided_entries = Mutex::new(waiting.into_iter().map(|entry| (entry.id, entry)).collect());
        let inner = Inner {
            disks,
            owner,
            supervisor,
            on_settled,
            undecided: undecided_entries,
            maillog: of_queue,
            metrics: counters,
        };
        Ok((Self { inner: Arc::new(inner) }, undecided))
    }

    /// Decides what a crash left undecided: true = deliver it, false = it never was accepted. Returns when all of it is
    /// on disk. What never is decided comes back with the next [`Queue::open`].
    pub async fn decide(&self, decisions: Vec<(Undecided, bool)>) -> Result<(), SpoolError> {
        let noted: Vec<_> = decisions.into_iter().filter_map(|(of, accepted)| self.decide_one(&of, accepted)).collect();
        for one in noted {
            one.await.map_err(|_| SpoolError::Stopped)?;
        }
        Ok(())
    }

    fn undecided(&self) -> MutexGuard<'_, HashMap<MessageId, Entry>> {
        self.inner.undecided.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answered when the decision is on disk.
    fn decide_one(&self, undecided: &Undecided, accepted: bool) -> Option<oneshot::Receiver<()>> {
        let entry = self.undecided().remove(&undecided.id)?;
        let (reply, noted) = oneshot::channel();
        let settled = settled(&entry, &self.inner.on_settled);
        let then: crate::spool::Then = Box::new(move || {
            settled.into_iter().for_each(|settled| settled());
            owner::answer(reply, ());
        });
        if accepted {
            self.inner.disks.accept(entry.id, Some(then));
            send(&self.inner.owner, QueueMessage::Add(Box::new(entry)));
        } else {
            self.inner.disks.done(entry.id, Some(then));
        }
        Some(noted)
    }

    /// Begins deliveries.
    pub fn start(&self) {
        send(&self.inner.owner, QueueMessage::Start);
    }

    /// Puts the message on disk; returns after the sync. If the caller gives up waiting, the message comes back as
    /// [`Undecided`] after the next start.
    pub async fn store(&self, message: NewMessage) -> Result<Stored, SpoolError> {
        let entry = Entry::new(message, now_ms());
        let failed = |error| SpoolError::Io("envelope".into(), std::io::Error::other(error));
        let meta = entry.meta_bytes().map_err(failed)?;
        let body = entry.message.as_ref().map(|message| message.bytes().clone()).unwrap_or_default();
        if let Err(error) = self.inner.disks.store(entry.id, meta, body, entry.admission.is_none()).await {
            // One of both disks may have it.
            self.inner.disks.done(entry.id, None);
            return Err(error);
        }
        Ok(self.stored(entry))
    }

    fn stored(&self, entry: Entry) -> Stored {
        let (disks, on_settled) = (self.inner.disks.clone(), Arc::clone(&self.inner.on_settled));
        Stored { id: entry.id, waiting: Some(Waiting { entry, disks, on_settled }) }
    }

    /// The decision was yes: delivers it. Its note on disk follows with the next sync, then `on_settled` is called.
    pub fn deliver(&self, mut stored: Stored) {
        let Some(Waiting { entry, disks, on_settled }) = stored.waiting.take() else { return };
        if let Some(then) = settled(&entry, &on_settled) {
            disks.accept(entry.id, Some(then));
        }
        send(&self.inner.owner, QueueMessage::Add(Box::new(entry)));
    }

    /// The decision was no.
    pub fn discard(&self, mut stored: Stored) {
        stored.discard();
    }

    /// In order of id, after `after`.
    pub async fn list(&self, after: Option<MessageId>, count: usize) -> Vec<QueueEntry> {
        self.ask(|reply| QueueMessage::List { after, count, reply }).await.unwrap_or_default()
    }

    pub async fn show(&self, id: MessageId) -> Result<QueueEntry, QueueError> {
        self.ask(|reply| QueueMessage::Show { id, reply }).await.unwrap_or(Err(SpoolError::Stopped.into()))
    }

    pub async fn bytes(&self, id: MessageId) -> Result<Message, QueueError> {
        self.inner.disks.read(id).await?.ok_or(QueueError::Unknown(id))
    }

    /// Attempts it now, unless it is frozen.
    pub async fn retry(&self, id: MessageId) -> Result<(), QueueError> {
        self.operate(id, Operation::Retry).await
    }

    pub async fn freeze(&self, id: MessageId) -> Result<(), QueueError> {
        self.operate(id, Operation::Freeze).await
    }

    pub async fn thaw(&self, id: MessageId) -> Result<(), QueueError> {
        self.operate(id, Operation::Thaw).await
    }

    /// With `notify` the sender gets a bounce.
    pub async fn remove(&self, id: MessageId, notify: bool) -> Result<(), QueueError> {
        self.operate(id, Operation::Remove { notify }).await
    }

    async fn operate(&self, id: MessageId, operation: Operation) -> Result<(), QueueError> {
        let answer = self.ask(|reply| QueueMessage::Operate { id, operation, reply }).await;
        answer.unwrap_or(Err(SpoolError::Stopped.into()))
    }

    /// `None` = the queue has stopped.
    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> QueueMessage) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        send(&self.inner.owner, question(reply));
        answer.await.ok()
    }

    /// False while the disk is nearly full: mail is answered with 452.
    pub fn has_room(&self) -> bool {
        self.inner.disks.has_room()
    }

    /// Resolves with the reason when spool or schedule have broken: nothing more can be kept or noted. `has_room` is
    /// false and no delivery begins from then on.
    pub async fn failed(&self) -> String {
        self.inner.disks.failed().await
    }

    /// Lets messages that are on their way arrive, for at most a minute, writes the index and stops.
    pub async fn shutdown(&self) {
        // After a failure there is nothing to wait for: what comes of an attempt cannot be noted.
        let drain_max = if self.inner.disks.has_failed() { Duration::ZERO } else { DRAIN_MAX };
        let drained = tokio::time::timeout(drain_max, self.ask(QueueMessage::Stop)).await;
        if drained.is_err() {
            tracing::warn!("attempts that are still under way are repeated after the next start");
        }
        self.inner.supervisor.abort();
        self.inner.owner.stop(None);
        self.inner.disks.shutdown().await;
    }
}

/// Without its owner or its spool the queue must not look as if it worked.
async fn supervise(disks: Disks, owner: ractor::concurrency::JoinHandle<()>, delivery: Arc<crate::delivery::Shared>) {
    tokio::select! {
        reason = disks.failed() => tracing::debug!(reason, "no delivery begins any more"),
        _ = owner => disks.fail("the queue's actor has ended"),
    }
    delivery.stop();
}

/// (to deliver, to decide)
fn recover(found: &[Found], disks: &Disks) -> (Vec<Entry>, Vec<Entry>) {
    let (mut accepted, mut waiting) = (Vec::new(), Vec::new());
    for message in found {
        match Entry::recover(message) {
            // Everything was delivered and only the last note is missing.
            Some(entry) if message.accepted && entry.pending().is_empty() => disks.done(entry.id, None),
            Some(entry) if message.accepted => accepted.push(entry),
            Some(entry) => waiting.push(entry),
            None => tracing::error!(id = %message.id, "the envelope of a queued message cannot be read; it is kept"),
        }
    }
    (accepted, waiting)
}

/// `delivery.relay` as a route.
fn relay(config: &crate::config::DeliveryConfig) -> Option<Route> {
    let auth = config.relay_auth.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()));
    Route::parse(&config.relay, auth)
}

#[cfg(test)]
mod tests;
