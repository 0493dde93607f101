//! The straight line of a message, from the end of DATA to its reply.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use outgate_cluster::Cluster;

use crate::config::Config;
use crate::dns::Dns;
use crate::mail::{Envelope, Message, MessageId};
use crate::maillog::Maillog;
use crate::metrics::Metrics;
use crate::quarantine::Quarantine;
use crate::queue::Queue;
use crate::smtp::Reply;
use crate::user::{Authenticated, Directory};

/// The parts of the node that a message passes.
pub struct Line {
    pub config: Arc<Config>,
    pub hostname: String,
    pub cluster: Cluster,
    pub directory: Directory,
    pub dns: Dns,
    pub queue: Queue,
    pub quarantine: Quarantine,
    pub maillog: Maillog,
    pub metrics: Arc<Metrics>,
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
pub async fn submit(_line: &Line, _incoming: Incoming) -> Reply {
    todo!()
}

/// An end of DATA that never became a whole message (too large, bad octets): its log record.
pub fn refused(_line: &Line, _id: MessageId, _client: &Client, _envelope: &Envelope, _size: u64, _reply: &Reply) {
    todo!()
}
