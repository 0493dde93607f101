//! `/why/{id or login}`: everything that explains a decision.

use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use outgate_cluster::Login;
use serde_json::{Value, json};

use super::{Answer, ApiError, PAGE_MAX, Parts, limits, locks, log, parse_login, quarantine, queue, settings, users};
use crate::mail::MessageId;
use crate::maillog::Query;
use crate::mirror::Searched;
use crate::web::echo;

/// Newest messages shown for a User.
const RECENT: usize = 10;

pub(super) fn routes() -> Router<Parts> {
    Router::new().route("/why/{what}", get(why))
}

async fn why(State(parts): State<Parts>, Path(what): Path<String>) -> Answer<Json<Value>> {
    match what.parse::<MessageId>() {
        Ok(id) => message(&parts, id).await,
        Err(_) => user(&parts, parse_login(&parts, &what).map_err(|error| error.or_wrong(|| neither(&what)))?).await,
    }
}

fn neither(what: &str) -> ApiError {
    ApiError::wrong(format!("`{}` is neither a message id (26 letters and digits) nor a login", echo::excerpt(what)))
}

/// The message's journey, oldest step first, and where it is now.
async fn message(parts: &Parts, id: MessageId) -> Answer<Json<Value>> {
    let query = Query { id: Some(id), count: Some(PAGE_MAX), ..Query::default() };
    let Searched { records, silent } =
        parts.disks.search(&parts.maillog, query).await.map_err(ApiError::unavailable)?;
    let queued = parts.queue.show(id).await.ok();
    let held = parts.quarantine.show(id).await.ok();
    let elsewhere = if queued.is_none() { parts.disks.owner_elsewhere(id, &silent).await } else { None };
    if records.is_empty() && queued.is_none() && held.is_none() && elsewhere.is_none() {
        return Err(unknown(id, &silent));
    }
    Ok(Json(json!({
        "id": id,
        "records": records.iter().map(log::render).collect::<Value>(),
        "queue": queued.as_ref().map(queue::render),
        "queue_node": elsewhere.or_else(|| queued.is_some().then(|| parts.cluster.node_id())),
        "quarantine": held.as_ref().map(|(held, _)| quarantine::render(held)),
        "missing_nodes": silent,
    })))
}

/// A node that does not answer may know it.
fn unknown(id: MessageId, silent: &[u64]) -> ApiError {
    match log::named(silent) {
        None => ApiError::not_found(format!("message {id} is neither in the log nor in queue or quarantine")),
        Some(nodes) => ApiError::unavailable(format!(
            "message {id} is not known to the nodes that answer, but node {nodes} does not: try again"
        )),
    }
}

/// The settings that are not the cluster's, the windows, the lock with its history and the newest messages.
async fn user(parts: &Parts, login: Login) -> Answer<Json<Value>> {
    let found = parts.cluster.read(|state| {
        let user = state.user(&login)?;
        let own: Vec<_> =
            state.settings_with_origin(user.id).into_iter().filter(|setting| setting.from != "cluster").collect();
        Some((
            users::full(state, &login)?,
            own,
            state.lock(user.id, None),
            state.limits(user.id, None),
            state.identities(user.id),
            user.domain_enabled,
        ))
    });
    let (mut value, own, lock, windows, identities, domain_enabled) = found.ok_or_else(|| users::unknown(&login))?;
    let query = Query { user: Some(login.to_string()), submissions: true, count: Some(RECENT), ..Query::default() };
    let Searched { records: recent, silent } =
        parts.disks.search(&parts.maillog, query).await.map_err(ApiError::unavailable)?;
    value["settings"] = settings::with_origin(&own);
    value["domain_enabled"] = domain_enabled.into();
    value["history"] = lock.history.iter().map(locks::change).collect();
    value["distinct_recipients"] = windows.distinct_recipients.into();
    value["invalid_recipients"] = windows.invalid_recipients.into();
    value["all_windows"] = limits::all(&windows);
    let locked = identities.iter().filter(|identity| locks::name(identity.lock) != "unlocked");
    value["identities"] = identities.len().into();
    value["locked_identities"] = locked.map(|identity| identity.identity.clone()).collect();
    value["recent"] = recent.iter().map(log::render).collect();
    value["missing_nodes"] = silent.into();
    Ok(Json(value))
}
