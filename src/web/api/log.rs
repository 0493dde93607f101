//! `/log`: search in the mail log of all nodes.

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::{Answer, ApiError, PAGE_MAX, Params, Parts, network_of, time_ms};
use crate::maillog;
use crate::maillog::Record;
use crate::web::echo;

/// Header of an answer that may lack some of the log of nodes that did not answer, with their ids.
pub const MISSING_NODES: &str = "outgate-missing-nodes";
/// Records of one answer.
const RECORDS_MAX: usize = 10_000;
/// What a message can have been judged to be.
const CLASSES: [&str; 9] = ["clean", "unsure", "spam", "phish", "virus", "blocked", "locked", "limit", "oversize"];

pub(super) fn routes() -> Router<Parts> {
    Router::new().route("/log", get(search))
}

/// The fields of [`maillog::Query`] are the parameters.
async fn search(
    State(parts): State<Parts>,
    Params(query): Params<maillog::Query>,
) -> Answer<(Option<[(&'static str, String); 1]>, Json<Value>)> {
    let count = query.count.unwrap_or(PAGE_MAX);
    if !(1..=RECORDS_MAX).contains(&count) {
        return Err(ApiError::wrong(format!(
            "{count} records: ask for 1 to {RECORDS_MAX}, narrow it by time for more"
        )));
    }
    if let Some(class) = query.class.as_deref().filter(|class| !CLASSES.contains(class)) {
        let given = echo::excerpt(class);
        return Err(ApiError::wrong(format!("class: `{given}` is none: give one of {}", CLASSES.join(", "))));
    }
    let user = query.user.map(|user| network_of(&user).map_or(user.as_str(), |(network, _)| network).to_owned());
    let query = maillog::Query { count: Some(count), user, ..query };
    let found = parts.disks.search(&parts.maillog, query).await.map_err(ApiError::unavailable)?;
    let headers = named(&found.silent).map(|nodes| [(MISSING_NODES, nodes)]);
    Ok((headers, Json(found.records.iter().map(render).collect())))
}

/// `2, 3`; `None` = nobody is missing.
pub(super) fn named(nodes: &[u64]) -> Option<String> {
    (!nodes.is_empty()).then(|| nodes.iter().map(u64::to_string).collect::<Vec<_>>().join(", "))
}

/// The record as it is kept, with the time as RFC 3339 beside it.
pub(super) fn render(record: &Record) -> Value {
    json!({ "at": time_ms(record.at_ms), "at_ms": record.at_ms, "id": record.id, "event": record.event })
}
