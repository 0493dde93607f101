//! `/quarantine`: messages that are held.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, ApiError, PAGE_MAX, Params, Parts, download, note, parse_id, time_ms};
use crate::clock::now_ms;
use crate::mail::Message;
use crate::maillog::Status;
use crate::quarantine::Held;
use crate::queue::{NewMessage, Stored};

const DAY_MS: u64 = 86_400_000;

pub(super) fn routes() -> Router<Parts> {
    Router::new()
        .route("/quarantine", get(list))
        .route("/quarantine/{id}", get(show).delete(remove))
        .route("/quarantine/{id}/message", get(message))
        .route("/quarantine/{id}/release", post(release))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Filter {
    domain: Option<String>,
    user: Option<String>,
    count: Option<usize>,
}

async fn list(State(parts): State<Parts>, Params(filter): Params<Filter>) -> Answer<Json<Value>> {
    let count = filter.count.unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX);
    let held = parts.quarantine.list(filter.domain.as_deref(), filter.user.as_deref(), count).await?;
    Ok(Json(held.iter().map(render).collect()))
}

/// What is known of the message, with its header section.
async fn show(State(parts): State<Parts>, Path(id): Path<String>) -> Answer<Json<Value>> {
    let (held, message) = parts.quarantine.show(parse_id(&id)?).await?;
    let mut value = render(&held);
    value["headers"] = Value::String(String::from_utf8_lossy(message.header_section()).into_owned());
    Ok(Json(value))
}

async fn message(State(parts): State<Parts>, Path(id): Path<String>) -> Answer<Response> {
    let id = parse_id(&id)?;
    let (_, message) = parts.quarantine.show(id).await?;
    Ok(download(id, &message))
}

async fn remove(State(parts): State<Parts>, Path(id): Path<String>) -> Answer<StatusCode> {
    let id = parse_id(&id)?;
    let removed = parts.quarantine.remove(id).await?;
    parts.disks.let_out(id).await;
    let origin = removed.as_ref().map(Held::origin).unwrap_or_default();
    note(&parts, id, origin, Status::Removed, "removed from quarantine");
    Ok(StatusCode::NO_CONTENT)
}

/// Delivers the held message as it is on disk: what was not stamped and signed when it was held leaves
/// without stamp and signature. It is not counted against any limit. A crash before the end leaves the copy in
/// quarantine, never nothing; a client that goes away ends nothing.
async fn release(State(parts): State<Parts>, Path(id): Path<String>) -> Answer<StatusCode> {
    let id = parse_id(&id)?;
    let release = tokio::spawn(async move {
        let (held, message) = parts.quarantine.take(id).await?;
        let origin = held.origin();
        let stored = match store(&parts, held, message).await {
            Ok(stored) => stored,
            Err(error) => {
                parts.quarantine.put_back(id).await?;
                return Err(error);
            }
        };
        // Before the delivery, which may be over at once.
        note(&parts, id, origin, Status::Released, "released from quarantine");
        parts.queue.deliver(stored);
        parts.quarantine.taken(id).await?;
        parts.disks.let_out(id).await;
        Ok(StatusCode::NO_CONTENT)
    });
    release.await.unwrap_or_else(|error| Err(ApiError::unavailable(error)))
}

async fn store(parts: &Parts, held: Held, message: Message) -> Answer<Stored> {
    let id = held.id;
    if parts.queue.show(id).await.is_ok() {
        return Err(ApiError::conflict(format!("message {id} is in the delivery queue already")));
    }
    let released = NewMessage {
        id,
        envelope: held.envelope,
        message,
        login: Some(held.user),
        domain: held.domain,
        expires_ms: now_ms().saturating_add(held.max_days_to_retry.saturating_mul(DAY_MS)),
        admission: None,
    };
    Ok(parts.queue.store(released).await?)
}

pub(super) fn render(held: &Held) -> Value {
    let recipients = held.envelope.recipients.iter();
    json!({
        "id": held.id,
        "held": time_ms(held.held_ms),
        "domain": held.domain,
        "user": held.user,
        "identity": held.identity,
        "class": held.class,
        "score": held.score,
        "evidence": held.evidence,
        "sender": held.envelope.reverse_path.to_string(),
        "recipients": recipients.map(|recipient| recipient.address.as_str()).collect::<Vec<_>>(),
        "subject": held.subject,
        "size": held.size,
    })
}
