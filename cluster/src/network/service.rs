//! What this crate carries between nodes without reading it: questions of the mail side, over a connection of their own.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

/// Answers the question of another node, given by its id. An empty answer means "not now".
pub type Service = Arc<dyn Fn(u64, Vec<u8>) -> Pin<Box<dyn Future<Output = Vec<u8>> + Send>> + Send + Sync>;

/// Why a node's service gave no answer.
#[derive(thiserror::Error, Clone, Debug)]
pub enum PeerError {
    /// The question surely was not heard.
    #[error("cannot reach node {0}: {1}")]
    Unreachable(u64, String),
    /// The question may have been heard.
    #[error("no answer from node {0}: {1}")]
    Unanswered(u64, String),
}

/// The service of this node, once there is one. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Services {
    service: Arc<OnceLock<Service>>,
}

impl Services {
    /// The first stays.
    pub(crate) fn set(&self, service: Service) {
        if self.service.set(service).is_err() {
            tracing::error!("a node has one service: the second is not asked");
        }
    }

    pub(crate) async fn answer(&self, node: u64, body: Vec<u8>) -> Vec<u8> {
        match self.service.get() {
            Some(service) => service(node, body).await,
            None => Vec::new(),
        }
    }
}
