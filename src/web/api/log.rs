//! `/log`: search in the mail log.

use axum::extract::{Query, State};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::{Answer, ApiError, PAGE_MAX, Parts, time_ms};
use crate::maillog;
use crate::maillog::Record;

pub(super) fn routes() -> Router<Parts> {
    Router::new().route("/log", get(search))
}

/// The fields of [`maillog::Query`] are the parameters.
async fn search(State(parts): State<Parts>, Query(query): Query<maillog::Query>) -> Answer<Json<Value>> {
    let count = query.count.unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX);
    let query = maillog::Query { count: Some(count), ..query };
    let records = parts.maillog.search(query).await.map_err(ApiError::unavailable)?;
    Ok(Json(records.iter().map(render).collect()))
}

/// The record as it is kept, with the time as RFC 3339 beside it.
pub(super) fn render(record: &Record) -> Value {
    json!({ "at": time_ms(record.at_ms), "at_ms": record.at_ms, "id": record.id, "event": record.event })
}
