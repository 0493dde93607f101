//! `/auth-blocks`: addresses that failed to log in too often.

use std::net::IpAddr;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{delete, get};
use axum::{Json, Router};
use outgate_cluster::Command;
use serde_json::{Value, json};

use super::{Answer, ApiError, Parts, actor, propose, time};
use crate::web::echo;

pub(super) fn routes() -> Router<Parts> {
    Router::new().route("/auth-blocks", get(list)).route("/auth-blocks/{address}", delete(remove))
}

async fn list(State(parts): State<Parts>) -> Json<Value> {
    let blocks = parts.cluster.read(|state| state.auth_blocks());
    Json(blocks.iter().map(|(address, until)| json!({ "address": address, "until": time(*until) })).collect())
}

async fn remove(State(parts): State<Parts>, Path(address): Path<String>) -> Answer<StatusCode> {
    let wrong =
        |_| ApiError::wrong(format!("`{}` is not an IP address: give one such as 192.0.2.1", echo::excerpt(&address)));
    let address: IpAddr = address.parse().map_err(wrong)?;
    propose(&parts, Command::AuthUnblock { address, actor: actor() }).await?;
    Ok(StatusCode::NO_CONTENT)
}
