//! Listener actors: accept, count, refuse.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::config::ListenerConfig;
use crate::submission::Line;
use crate::tls::ServerTls;

/// The running listeners of a node.
pub struct Listeners {}

impl Listeners {
    /// Binds every address; on an error nothing is left bound.
    pub async fn start(_listeners: &[ListenerConfig], _line: Arc<Line>, _tls: ServerTls) -> std::io::Result<Self> {
        todo!()
    }

    /// In the order of the configuration, with the port that was bound.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        todo!()
    }

    /// Refuses TCP from now on, keeps open sessions (their next MAIL gets 421). `open` undoes it.
    pub fn close(&self) {
        todo!()
    }

    pub fn open(&self) {
        todo!()
    }

    /// Closes, lets transactions finish for `drain_timeout_s`, then ends what is left.
    pub async fn shutdown(&self) {
        todo!()
    }
}
