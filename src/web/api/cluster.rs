//! `/status` of this node and `/cluster`.

use std::net::SocketAddr;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::{Parts, time};
use crate::config::ListenerMode;
use crate::web::health::not_ready;

pub(super) fn routes() -> Router<Parts> {
    Router::new().route("/status", get(status)).route("/cluster", get(cluster))
}

async fn status(State(parts): State<Parts>) -> Json<Value> {
    let (domains, blocked) = parts.cluster.read(|state| (state.domains(), state.auth_blocks().len()));
    let reasons = not_ready(&parts);
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "node": parts.cluster.node_id(),
        "hostname": parts.hostname,
        "ready": reasons.is_empty(),
        "reasons": reasons,
        "submission": addresses(&parts, ListenerMode::Submission),
        "submissions": addresses(&parts, ListenerMode::Submissions),
        "http": parts.http,
        "domains": domains.len(),
        "users": domains.iter().map(|domain| domain.users).sum::<u64>(),
        "queue_messages": parts.metrics.queue_messages.get(),
        "queue_frozen": parts.metrics.queue_frozen.get(),
        "blocked_addresses": blocked,
    }))
}

fn addresses(parts: &Parts, mode: ListenerMode) -> Vec<SocketAddr> {
    parts.listeners.iter().filter(|(of, _)| *of == mode).map(|(_, address)| *address).collect()
}

async fn cluster(State(parts): State<Parts>) -> Json<Value> {
    Json(json!({
        "nodes": [{
            "id": parts.cluster.node_id(),
            "hostname": parts.hostname,
            "version": env!("CARGO_PKG_VERSION"),
            "ready": parts.cluster.is_ready(),
            "epoch": parts.cluster.epoch(),
            "clock": time(parts.cluster.now()),
        }],
    }))
}
