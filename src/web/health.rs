//! `/healthz`, `/readyz`, `/metrics`.

use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;

use super::Parts;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(super) fn router(parts: Parts) -> Router {
    Router::new()
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(parts)
}

/// 200 while this node accepts mail, else 503 with every reason.
async fn ready(State(parts): State<Parts>) -> impl IntoResponse {
    let reasons = not_ready(&parts);
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": reasons.is_empty(), "reasons": reasons })))
}

/// Why the node does not accept mail; empty = it does.
pub(super) fn not_ready(parts: &Parts) -> Vec<&'static str> {
    let checks = [
        (parts.cluster.has_majority(), "no quorum"),
        (!draining(parts), "draining"),
        (parts.queue.has_room() && parts.cluster.has_room(), "the disk is nearly full"),
        (parts.listening.load(Ordering::Relaxed), "the listeners are closed"),
    ];
    checks.into_iter().filter_map(|(fine, reason)| (!fine).then_some(reason)).collect()
}

fn draining(parts: &Parts) -> bool {
    parts.cluster.read(|state| state.node(parts.cluster.node_id())).is_some_and(|node| node.draining)
}

async fn metrics(State(parts): State<Parts>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, OPEN_METRICS)], parts.metrics.encode())
}
