//! Two disks for every message: the spool of the node that owns it, and that of one other node, its mirror.
//!
//! [`Disks`] is what queue and delivery see: a spool whose `store` returns when both disks have the message, and whose
//! marks reach both. Reading order: this file, `copies` (where the second copy of each of our messages is), `link`
//! (one other node: what it has to hear, what it keeps for us), `placing` (choosing a mirror), `keeper` (being one),
//! `held` and `log` (the same for the quarantine and the mail log), `sessions` (no disk: how many there are elsewhere),
//! `take_over` and `taken` (what becomes of a node's messages when it is down), `damage` (when a disk has lost some),
//! `letter` (the words).
//!
//! Invariants:
//! * In a cluster in which any other node has ever owned mail, `store` says yes only when two disks have the message.
//! * `accept` calls back only when both disks know of it: until then the replicated state has to remember the decision,
//!   because a mirror that takes over asks it.
//! * A copy whose mirror is down, or does not have it after all, is made again elsewhere. A node that keeps a copy which
//!   it need not keep hears so when it is next compared with the owner.
//! * A mirror takes a copy only from a node that owns mail under the epoch in which it sends it.
//! * What was taken over is on disk in a list before anything of it is delivered, and the old owner drops what is listed
//!   before it owns mail again.

mod copies;
mod damage;
mod held;
mod keeper;
mod letter;
mod link;
mod log;
mod placing;
mod sessions;
mod take_over;
mod taken;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use outgate_cluster::Cluster;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::{Notify, mpsc};

use crate::config::SpoolConfig;
use crate::mail::{Message, MessageId};
use crate::maillog::Maillog;
use crate::metrics::Metrics;
use crate::quarantine::Quarantine;
use crate::spool::{Found, Spool, SpoolError, Then, Whose};
use crate::user::Sessions;
use copies::Copies;
use keeper::Keeper;
use letter::What;
use link::Links;
pub use log::Searched;
use placing::Parcel;
pub(crate) use take_over::{Claims, Handed};

/// How long mirrors may take to hear the last marks.
const FAREWELL_MAX: Duration = Duration::from_secs(2);

/// Where messages are kept. Cheap to clone.
#[derive(Clone)]
pub struct Disks {
    spool: Spool,
    /// `None` = there is no other node and never will be.
    mirrors: Option<Arc<Mirrors>>,
}

/// What is known of the copies on other nodes.
pub(crate) struct Mirrors {
    cluster: Cluster,
    spool: Spool,
    metrics: Arc<Metrics>,
    maillog: Maillog,
    sessions: Sessions,
    copies: Mutex<Copies>,
    links: Links,
    keeper: Arc<Keeper>,
    /// What is about to be held, here and there.
    holding: Mutex<BTreeSet<MessageId>>,
    /// Something is held here that has no copy.
    held_changed: Arc<Notify>,
    /// Messages of ours that cannot be read.
    unreadable: Mutex<BTreeSet<MessageId>>,
    /// Bytes on their way to mirrors.
    sending: tokio::sync::Semaphore,
}

fn ours(id: MessageId) -> (MessageId, Whose) {
    (id, Whose::Ours)
}

impl Disks {
    /// Opens the spool under `directory` and begins to keep copies of other nodes' messages there; returns what is ours.
    pub async fn open(
        directory: &Path,
        config: &SpoolConfig,
        metrics: &Arc<Metrics>,
        cluster: &Cluster,
        quarantine: &Quarantine,
        maillog: &Maillog,
        sessions: &Sessions,
    ) -> Result<(Self, Left), SpoolError> {
        let was_there = Spool::is_under(directory);
        let (spool, _) = Spool::open(directory, config, metrics.spool_sync_seconds.clone()).await?;
        if !was_there && cluster.owner_epoch() > 0 {
            tracing::error!(path = %directory.display(), "the queue of this node is gone");
            spool.note_emptied().map_err(|error| SpoolError::Io(directory.to_owned(), error))?;
        }
        let keeper = Keeper::open(directory, spool.clone(), cluster.clone(), quarantine.clone()).await?;
        keeper.finish().await?;
        let found = spool.list(Whose::Ours).await?;
        let mut copies = Copies::default();
        found.iter().for_each(|message| copies.find(message.id, message.accepted));
        let mirrors = Arc::new(Mirrors {
            cluster: cluster.clone(),
            spool: spool.clone(),
            metrics: Arc::clone(metrics),
            maillog: maillog.clone(),
            sessions: sessions.clone(),
            copies: Mutex::new(copies),
            links: Links::default(),
            keeper: Arc::new(keeper),
            holding: Mutex::default(),
            held_changed: Arc::default(),
            unreadable: Mutex::default(),
            sending: tokio::sync::Semaphore::new(placing::SENDING_MAX),
        });
        keeper::serve(&mirrors, cluster);
        tokio::spawn(link::run(Arc::downgrade(&mirrors)));
        tokio::spawn(held::run(Arc::downgrade(&mirrors)));
        tokio::spawn(log::run(Arc::downgrade(&mirrors)));
        tokio::spawn(sessions::run(Arc::downgrade(&mirrors)));
        Ok((Self { spool, mirrors: Some(mirrors) }, Left(found)))
    }

    /// One disk, for a node that stays alone.
    pub async fn alone(
        directory: &Path,
        config: &SpoolConfig,
        sync_seconds: Histogram,
    ) -> Result<(Self, Left), SpoolError> {
        let (spool, found) = Spool::open(directory, config, sync_seconds).await?;
        Ok((Self { spool, mirrors: None }, Left(found)))
    }

    /// Returns when the message is on both disks. One that is not `accepted` waits for [`Disks::accept`] or
    /// [`Disks::done`]; so does one that is on one disk when this fails.
    pub(crate) async fn store(
        &self,
        id: MessageId,
        meta: Vec<u8>,
        body: Bytes,
        accepted: bool,
    ) -> Result<(), SpoolError> {
        let Some(mirrors) = self.mirrors.clone() else {
            return self.spool.store(ours(id), meta, body, accepted).await;
        };
        mirrors.copies().send(id, accepted);
        let parcel = Parcel { id, accepted, meta: Bytes::from(meta.clone()), progress: None, body: body.clone() };
        // A task of its own: a caller that gives up must not leave a copy that nobody knows of.
        let placing = tokio::spawn(async move { mirrors.place(parcel).await });
        let (stored, placed) = tokio::join!(self.spool.store(ours(id), meta, body, accepted), placing);
        stored?;
        placed.unwrap_or(Err(SpoolError::Stopped))
    }

    /// Notes that the decision was yes; `then` is called when the note is on both disks.
    pub(crate) fn accept(&self, id: MessageId, then: Option<Then>) {
        let Some(mirrors) = &self.mirrors else { return self.spool.accept(ours(id), then) };
        let (here, there) = then.map(both).unzip();
        self.spool.accept(ours(id), here);
        mirrors.accept(id, there);
    }

    /// Returns when whoever may take over knows of each of our messages that it is accepted.
    pub(crate) async fn all_confirmed(&self) {
        let Some(mirrors) = &self.mirrors else { return };
        let (open, mut all) = mpsc::channel::<()>(1);
        let accepted = mirrors.copies().accepted();
        for id in accepted {
            let open = open.clone();
            mirrors.accept(id, Some(Box::new(move || drop(open))));
        }
        drop(open);
        // Ends with the last sender.
        while all.recv().await.is_some() {}
    }

    /// Notes the whole state of the recipients.
    pub(crate) fn progress(&self, id: MessageId, state: Vec<u8>) {
        if let Some(mirrors) = &self.mirrors {
            let state = Bytes::from(state.clone());
            let mirror = mirrors.copies().progress(id, &state);
            if let Some(node) = mirror {
                mirrors.links.tell(node, id, What::Progress(state));
            }
        }
        self.spool.progress(ours(id), state, None);
    }

    /// Forgets the message; `then` is called when that is on this node's disk.
    pub(crate) fn done(&self, id: MessageId, then: Option<Then>) {
        let Some(mirrors) = &self.mirrors else { return self.spool.done(ours(id), then) };
        let (mirror, waiting) = mirrors.copies().done(id);
        let then: Then = Box::new(move || waiting.into_iter().chain(then).for_each(|then| then()));
        self.spool.done(ours(id), Some(then));
        if let Some(node) = mirror {
            mirrors.links.tell(node, id, What::Done);
        }
    }

    pub(crate) async fn read(&self, id: MessageId) -> Result<Option<Message>, SpoolError> {
        self.spool.read(id).await
    }

    /// False while less than the configured minimum is free, or after a failure.
    pub(crate) fn has_room(&self) -> bool {
        self.spool.has_room()
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.spool.has_failed()
    }

    /// Takes no more messages; [`Disks::failed`] tells why. The first reason stays.
    pub(crate) fn fail(&self, reason: &str) {
        self.spool.fail(reason);
    }

    /// Resolves with the reason when nothing more can be kept.
    pub(crate) async fn failed(&self) -> String {
        self.spool.failed().await
    }

    /// Tells the mirrors what they have to hear, syncs, commits the index and ends the threads.
    pub(crate) async fn shutdown(&self) {
        if let Some(mirrors) = &self.mirrors
            && !mirrors.links.are_told(&mirrors.others(), FAREWELL_MAX).await
        {
            tracing::warn!("not every mirror knows what became of its copies: what was done may go out again");
        }
        self.spool.shutdown().await;
    }
}

/// What an earlier life left and is ours.
pub struct Left(pub(crate) Vec<Found>);

impl Mirrors {
    /// `then` is called when the mirror knows.
    fn accept(&self, id: MessageId, then: Option<Then>) {
        let (mirror, back) = self.copies().accept(id, then);
        back.into_iter().for_each(|then| then());
        match mirror {
            Some(node) => self.links.tell(node, id, What::Accepted),
            None if !self.are_needed() => self.release(id),
            None => {}
        }
    }

    fn unreadable(&self) -> MutexGuard<'_, BTreeSet<MessageId>> {
        self.unreadable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copies(&self) -> MutexGuard<'_, Copies> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is another node that has ever owned mail.
    fn are_needed(&self) -> bool {
        let here = self.cluster.node_id();
        self.cluster.read(|state| state.nodes().iter().any(|node| node.id != here && node.ownership.epoch > 0))
    }
}

/// Two calls, the later of which makes `then`'s.
fn both(then: Then) -> (Then, Then) {
    let shared = Arc::new(Mutex::new((1, Some(then))));
    let call = move |shared: &Mutex<(u8, Option<Then>)>| {
        let then = {
            let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
            if shared.0 > 0 {
                shared.0 -= 1;
                return;
            }
            shared.1.take()
        };
        then.into_iter().for_each(|then| then());
    };
    let other = Arc::clone(&shared);
    (Box::new(move || call(&shared)), Box::new(move || call(&other)))
}
