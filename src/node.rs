//! A node: puts the parts together in order, and takes them down in reverse.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::config::Config;
use crate::submission::Line;

/// A running node.
pub struct Node {
    pub line: Arc<Line>,
    pub submission: Vec<SocketAddr>,
    pub http: SocketAddr,
    pub control_socket: PathBuf,
}

impl Node {
    /// Opens the stores, recovers what a crash left, and begins to accept mail.
    pub async fn start(_config: Config) -> anyhow::Result<Self> {
        todo!()
    }

    /// Reads the certificate files again; on an error the old certificate stays.
    pub fn reload_tls(&self) -> Result<(), crate::tls::TlsError> {
        todo!()
    }

    pub async fn shutdown(self) {
        todo!()
    }
}
