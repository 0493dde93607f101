//! HTTP of a node, in two servers.
//!
//! * **Health**, on `http.address`: `/healthz`, `/readyz`, `/metrics`. It tells nothing about mail or people.
//! * **Control**, on a Unix socket with mode 0600: the REST API `/api/v1/…`. Who can open the socket owns the
//!   node's files anyway, so there is no login and every caller is a super-admin. The command line is a
//!   client of exactly this API.
//!
//! Invariants: no operation exists only here or only in the command line; every change of replicated state is one
//! proposed command, whose refusal is the answer; nothing here speaks SMTP or touches a store directly.

pub mod api;
pub mod csv;
pub mod dkim;
pub mod echo;
mod health;
pub mod password;
mod server;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use outgate_cluster::Cluster;

use crate::config::ListenerMode;
use crate::maillog::Maillog;
use crate::metrics::Metrics;
use crate::mirror::Disks;
use crate::quarantine::Quarantine;
use crate::queue::Queue;

pub use server::{Servers, WebError};

/// What the servers show and change.
#[derive(Clone)]
pub struct Parts {
    pub hostname: String,
    /// Bound addresses of the submission listeners.
    pub listeners: Vec<(ListenerMode, SocketAddr)>,
    /// Where `/healthz`, `/readyz` and `/metrics` are served.
    pub http: SocketAddr,
    pub control_socket: PathBuf,
    pub cluster: Cluster,
    pub queue: Queue,
    pub quarantine: Quarantine,
    pub disks: Disks,
    pub maillog: Maillog,
    pub metrics: Arc<Metrics>,
    /// True while the submission listeners are open; the node sets it.
    pub listening: Arc<AtomicBool>,
}
