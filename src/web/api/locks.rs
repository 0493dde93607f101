//! `/users/{login}/lock`, `unlock`, `reset`: of a User, or of one identity of it.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use outgate_cluster::command::LockState;
use outgate_cluster::state::LockView;
use outgate_cluster::{Command, LockChange, Subject};
use serde::Deserialize;
use serde_json::{Value, json};

use super::users::unknown;
use super::{Answer, Params, Parts, actor, body, parse_login, propose, time};

pub(super) fn routes() -> Router<Parts> {
    Router::new()
        .route("/users/{login}/lock", get(show).post(lock))
        .route("/users/{login}/unlock", post(unlock))
        .route("/users/{login}/reset", post(reset))
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Request {
    identity: Option<String>,
    /// For the history; only with a lock.
    reason: Option<String>,
}

#[derive(Deserialize)]
struct Of {
    identity: Option<String>,
}

/// The lock with its history.
async fn show(State(parts): State<Parts>, Path(login): Path<String>, Params(of): Params<Of>) -> Answer<Json<Value>> {
    let login = parse_login(&parts, &login)?;
    let found = parts.cluster.read(|state| Some(state.lock(state.user(&login)?.id, of.identity.as_deref())));
    let lock = found.ok_or_else(|| unknown(&login))?;
    let mut value = render(&lock);
    value["history"] = lock.history.iter().map(change).collect();
    Ok(Json(value))
}

async fn lock(State(parts): State<Parts>, Path(login): Path<String>, bytes: Bytes) -> Answer<Json<Value>> {
    let request: Request = body(&bytes)?;
    let reason = request.reason.unwrap_or_default();
    let subject = Subject { login: parse_login(&parts, &login)?, identity: request.identity };
    let command = Command::Lock { subject: subject.clone(), actor: actor(), reason };
    decide(&parts, subject, command).await
}

async fn unlock(State(parts): State<Parts>, Path(login): Path<String>, bytes: Bytes) -> Answer<Json<Value>> {
    let subject = Subject { login: parse_login(&parts, &login)?, identity: body::<Request>(&bytes)?.identity };
    decide(&parts, subject.clone(), Command::Unlock { subject, actor: actor() }).await
}

async fn reset(State(parts): State<Parts>, Path(login): Path<String>, bytes: Bytes) -> Answer<Json<Value>> {
    let subject = Subject { login: parse_login(&parts, &login)?, identity: body::<Request>(&bytes)?.identity };
    decide(&parts, subject.clone(), Command::Reset { subject, actor: actor() }).await
}

/// Proposes it and answers the lock as it is then.
async fn decide(parts: &Parts, subject: Subject, command: Command) -> Answer<Json<Value>> {
    propose(parts, command).await?;
    let lock = parts
        .cluster
        .read(|state| Some(state.lock(state.user(&subject.login)?.id, subject.identity.as_deref())))
        .ok_or_else(|| unknown(&subject.login))?;
    Ok(Json(render(&lock)))
}

/// `{"state":"locked","reason":"…","until":"…","unlocks_used":0}`.
pub(super) fn render(lock: &LockView) -> Value {
    json!({
        "state": name(lock.state),
        "reason": lock.reason,
        "until": until(lock.state),
        "unlocks_used": lock.unlocks_used,
    })
}

pub(super) fn name(state: LockState) -> &'static str {
    match state {
        LockState::Unlocked => "unlocked",
        LockState::Locked { .. } => "locked",
        LockState::LockedPermanently => "locked_permanently",
        LockState::LockedManually => "locked_manually",
    }
}

pub(super) fn until(state: LockState) -> Option<String> {
    match state {
        LockState::Locked { until } => Some(time(until)),
        LockState::Unlocked | LockState::LockedPermanently | LockState::LockedManually => None,
    }
}

/// One step of the history.
pub(super) fn change(change: &LockChange) -> Value {
    json!({
        "at": time(change.at),
        "from": name(change.from),
        "to": name(change.to),
        "until": until(change.to),
        "unlocks_used": change.unlocks_used,
        "cause": change.cause.to_string(),
        "messages": change.messages,
    })
}
