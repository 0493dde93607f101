//! `/queue`: messages on their way.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, PAGE_MAX, Params, Parts, download, parse_id, time_ms};
use crate::queue::QueueEntry;

pub(super) fn routes() -> Router<Parts> {
    Router::new()
        .route("/queue", get(list))
        .route("/queue/{id}", get(show).delete(remove))
        .route("/queue/{id}/message", get(message))
        .route("/queue/{id}/retry", post(retry))
        .route("/queue/{id}/freeze", post(freeze))
        .route("/queue/{id}/thaw", post(thaw))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    after: Option<String>,
    count: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Removal {
    /// The sender gets a bounce.
    #[serde(default)]
    notify: bool,
}

async fn list(State(parts): State<Parts>, Params(page): Params<Page>) -> Answer<Json<Value>> {
    let after = page.after.as_deref().map(parse_id).transpose()?;
    let count = page.count.unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX);
    Ok(Json(parts.queue.list(after, count).await.iter().map(render).collect()))
}

async fn show(State(parts): State<Parts>, Path(id): Path<String>) -> Answer<Json<Value>> {
    Ok(Json(render(&parts.queue.show(parse_id(&id)?).await?)))
}

async fn message(State(parts): State<Parts>, Path(id): Path<String>) -> Answer<Response> {
    let id = parse_id(&id)?;
    Ok(download(id, &parts.queue.bytes(id).await?))
}

async fn retry(State(parts): State<Parts>, Path(id): Path<String>) -> Answer<StatusCode> {
    parts.queue.retry(parse_id(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn freeze(State(parts): State<Parts>, Path(id): Path<String>) -> Answer<StatusCode> {
    parts.queue.freeze(parse_id(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn thaw(State(parts): State<Parts>, Path(id): Path<String>) -> Answer<StatusCode> {
    parts.queue.thaw(parse_id(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn remove(
    State(parts): State<Parts>,
    Path(id): Path<String>,
    Params(removal): Params<Removal>,
) -> Answer<StatusCode> {
    parts.queue.remove(parse_id(&id)?, removal.notify).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) fn render(entry: &QueueEntry) -> Value {
    json!({
        "id": entry.id,
        "sender": entry.sender,
        "user": entry.login,
        "domain": entry.domain,
        "size": entry.size,
        "arrived": time_ms(entry.arrived_ms),
        "next_attempt": time_ms(entry.next_attempt_ms),
        "attempts": entry.attempts,
        "frozen": entry.frozen,
        "recipients": entry.recipients,
    })
}
