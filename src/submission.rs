//! The straight line of a message, from the end of DATA to its reply.
//!
//! ```text
//! User now ─► judge (identity, checks, verdict, intent) ─► decide (store ‖ admit) ─► act ─► log ─► reply
//! ```
//!
//! Invariants:
//! * 250 for delivery only after the message is on disk *and* its admission is committed.
//! * Exactly one mail-log record for every end of DATA, whatever became of it.
//! * An admission id is settled exactly when nothing depends on its outcome any more: by the queue for what it took, at
//!   once for everything else.
//! * What was decided before this node was declared down is answered with 250 only as long as nobody can have taken it
//!   over and given it up: not after it came back.
//! * A message whose decision did not come in time is answered with 451 and thrown away: the client still owns it, and
//!   delivering it later, should the decision turn out a yes, would double it. The most that is lost is one charge.

mod act;
mod decide;
#[cfg(test)]
pub(crate) mod fixture;
mod judge;
mod record;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use outgate_cluster::Cluster;

use self::record::Outcome;
use crate::check;
use crate::config::Config;
use crate::dns::Dns;
use crate::mail::{Envelope, Message, MessageId};
use crate::maillog::{Maillog, Status};
use crate::metrics::Metrics;
use crate::mirror::Disks;
use crate::quarantine::Quarantine;
use crate::queue::Queue;
use crate::smtp::{Fault, Reply};
use crate::user::{Authenticated, Directory};

pub(crate) use act::limit_reply;
pub use judge::recipient_hash;

/// The parts of the node that a message passes.
pub struct Line {
    pub config: Arc<Config>,
    pub hostname: String,
    pub cluster: Cluster,
    pub directory: Directory,
    pub dns: Dns,
    pub disks: Disks,
    pub queue: Queue,
    pub quarantine: Quarantine,
    pub maillog: Maillog,
    pub metrics: Arc<Metrics>,
}

impl Line {
    /// False while what the queue or the replicated log is on is nearly full: a message would be answered with 452.
    pub(crate) fn has_room(&self) -> bool {
        self.queue.has_room() && self.cluster.has_room()
    }
}

/// What the session knows of its client.
#[derive(Clone, Debug)]
pub struct Client {
    pub address: IpAddr,
    pub local: SocketAddr,
    pub helo: String,
    /// Version and cipher suite, as Received names them.
    pub tls: Option<Tls>,
    pub user: Authenticated,
}

#[derive(Clone, Debug)]
pub struct Tls {
    pub version: String,
    pub cipher: String,
}

/// A message at the end of DATA.
#[derive(Debug)]
pub struct Incoming {
    pub id: MessageId,
    pub client: Client,
    pub envelope: Envelope,
    pub message: Message,
}

/// Judges, decides, stores; the one answer to the end of DATA.
pub async fn submit(line: &Line, incoming: Incoming) -> Reply {
    submit_checked(line, incoming, check::run).await
}

async fn submit_checked(line: &Line, incoming: Incoming, checks: judge::Checks) -> Reply {
    let started = Instant::now();
    let Some(user) = line.directory.current(&incoming.client.user) else {
        let outcome = Outcome::new(Reply::sender_not_permitted(), Status::Rejected);
        return record::finish(line, &incoming, None, outcome, started);
    };
    let judged = judge::judge(line, user, &incoming, checks).await;
    let decided = decide::decide(line, &incoming, &judged).await;
    let outcome = act::act(line, &incoming, &judged, decided).await;
    record::finish(line, &incoming, Some(&judged), outcome, started)
}

/// An end of DATA that never became a whole message (too large, bad octets): logs it; the answer to it.
pub fn refused(line: &Line, id: MessageId, client: &Client, envelope: &Envelope, size: u64, fault: Fault) -> Reply {
    record::refused(line, id, client, envelope, size, fault)
}

#[cfg(test)]
mod tests;
