//! `/status` of this node and `/cluster`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, patch, post};
use axum::{Json, Router};
use outgate_cluster::Command;
use outgate_cluster::state::NodeView;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, ApiError, Parts, actor, body, propose, time};
use crate::config::ListenerMode;
use crate::web::health::not_ready;

/// A node that was not heard for longer is shown as down.
const HEARD_MAX_MS: u64 = 3_000;
const TOKEN_MINUTES: u64 = 60;
const TOKEN_MINUTES_MAX: u64 = 7 * 24 * 60;
/// How long a removal may take until the membership is without the node.
const REMOVAL_MAX: Duration = Duration::from_secs(10);
const REMOVAL_LOOK: Duration = Duration::from_millis(50);
const NO_QUORUM: &str = "this node decides nothing now, see `outgate status`: what it shows may be old";
pub const TWO_NODES: &str = "a cluster of two stops when either node stops: add a third, see `outgate cluster token`";

pub(super) fn routes() -> Router<Parts> {
    Router::new()
        .route("/status", get(status))
        .route("/cluster", get(cluster))
        .route("/cluster/tokens", post(token))
        .route("/cluster/nodes/{id}", patch(change).delete(remove))
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
        "leader": parts.cluster.leader(),
        "cluster": parts.cluster.address(),
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

/// As this node sees it, with a quorum or without.
async fn cluster(State(parts): State<Parts>) -> Json<Value> {
    let cluster = &parts.cluster;
    let (nodes, voters) = (cluster.read(|state| state.nodes()), cluster.voters());
    Json(json!({
        "leader": cluster.leader(),
        "quorum": cluster.is_ready(),
        "warning": warning(cluster.is_ready(), nodes.len()),
        "clock": time(cluster.now()),
        "nodes": nodes.iter().map(|node| show(&parts, node, &voters)).collect::<Vec<_>>(),
    }))
}

fn warning(has_quorum: bool, nodes: usize) -> Option<&'static str> {
    match (has_quorum, nodes) {
        (false, _) => Some(NO_QUORUM),
        (true, 2) => Some(TWO_NODES),
        (true, _) => None,
    }
}

fn show(parts: &Parts, node: &NodeView, voters: &[u64]) -> Value {
    let cluster = &parts.cluster;
    let role = match (cluster.leader() == Some(node.id), voters.contains(&node.id)) {
        (true, _) => "leader",
        (false, true) => "voter",
        (false, false) => "learner",
    };
    let here = node.id == cluster.node_id();
    let standing = cluster.standing(node.id).filter(|_| !here);
    let is_up = here || standing.as_ref().is_some_and(|(_, silent_ms)| *silent_ms <= HEARD_MAX_MS);
    let standing = standing.map(|(standing, _)| standing);
    let hashes =
        if here { cluster.state_hashes() } else { standing.iter().flat_map(|of| of.state_hashes.clone()).collect() };
    let state_hash = hashes.last().map(|hash| format!("{}:{:016x}", hash.index, hash.sum));
    let state = match (is_up, node.draining) {
        (false, _) => "down",
        (true, true) => "draining",
        (true, false) => "up",
    };
    let mut shown = json!({
        "id": node.id,
        "owner_epoch": node.ownership.epoch,
        "owns_mail": node.ownership.up,
        "address": node.address,
        "role": role,
        "state": state,
        "joined": time(node.joined),
        "state_hash": state_hash,
    });
    shown["version"] =
        if here { env!("CARGO_PKG_VERSION").into() } else { standing.as_ref().map(|of| of.version.as_str()).into() };
    shown["epoch"] = if here { cluster.epoch().into() } else { standing.as_ref().map(|of| of.epoch).into() };
    shown["applied"] = if here { cluster.applied().into() } else { standing.as_ref().map(|of| of.applied).into() };
    shown["clock_offset_ms"] = if here { 0.into() } else { standing.as_ref().map(|of| of.clock_offset_ms).into() };
    shown
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewToken {
    #[serde(default = "default_minutes")]
    valid_minutes: u64,
}

fn default_minutes() -> u64 {
    TOKEN_MINUTES
}

/// A token for one node, with the line that spends it.
async fn token(State(parts): State<Parts>, bytes: Bytes) -> Answer<(StatusCode, Json<Value>)> {
    let NewToken { valid_minutes } = body(&bytes)?;
    if !(1..=TOKEN_MINUTES_MAX).contains(&valid_minutes) {
        return Err(ApiError::wrong(format!("valid_minutes is 1…{TOKEN_MINUTES_MAX}")));
    }
    let here = parts.cluster.read(|state| state.node(parts.cluster.node_id())).map(|node| node.address);
    let Some(here) = here.filter(|address| !address.is_empty() && parts.cluster.address().is_some()) else {
        return Err(ApiError::conflict("this node listens to no others: set cluster.listen and start it again"));
    };
    let token = parts.cluster.token(Duration::from_secs(valid_minutes * 60), actor()).await?.to_string();
    let command = format!("outgate join {here} --token {token}");
    Ok((StatusCode::CREATED, Json(json!({ "token": token, "valid_minutes": valid_minutes, "command": command }))))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    draining: bool,
}

async fn change(State(parts): State<Parts>, Path(node): Path<u64>, bytes: Bytes) -> Answer<StatusCode> {
    let Change { draining } = body(&bytes)?;
    propose(&parts, Command::NodeSet { node, address: None, draining: Some(draining) }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn remove(State(parts): State<Parts>, Path(node): Path<u64>) -> Answer<StatusCode> {
    propose(&parts, Command::NodeRemove { node, actor: actor() }).await?;
    let votes = || node != parts.cluster.node_id() && parts.cluster.voters().contains(&node);
    let asked = Instant::now();
    while votes() {
        if asked.elapsed() > REMOVAL_MAX {
            return Err(ApiError::conflict(
                "the node is removed but still votes: stop it when `cluster status` shows that it does not",
            ));
        }
        tokio::time::sleep(REMOVAL_LOOK).await;
    }
    Ok(StatusCode::NO_CONTENT)
}
