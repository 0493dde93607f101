//! `/settings`: the cluster's defaults, and how requests give settings of any level.

use axum::body::Bytes;
use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use outgate_cluster::Command;
use outgate_cluster::state::settings::{Effective, Level, Patch, rows};
use serde_json::{Map, Value, json};

use super::{Answer, ApiError, Parts, body, propose};

pub(super) fn routes() -> Router<Parts> {
    Router::new().route("/settings", get(show).patch(set))
}

async fn show(State(parts): State<Parts>) -> Json<Value> {
    let settings = parts.cluster.read(|state| state.defaults());
    let table = rows().into_iter().map(|row| {
        json!({
            "key": row.key,
            "value": settings.value(row.key).map(|value| value.to_json()),
            "default": row.default.to_json(),
            "expects": row.expects,
            "cluster_only": row.cluster_only,
            "help": row.help,
        })
    });
    Json(Value::Array(table.collect()))
}

/// `{"limit_per_minute": 5, "notify_admin": "inherit"}`; answers what holds now.
async fn set(State(parts): State<Parts>, bytes: Bytes) -> Answer<Json<Value>> {
    let patch = patch(&body(&bytes)?, Level::Cluster)?;
    propose(&parts, Command::DefaultsSet { patch }).await?;
    Ok(show(State(parts)).await)
}

/// Settings of a request, as object of key and value. A value may be a text as the command line gives it,
/// JSON of its type, or null for `inherit`.
pub(super) fn patch(settings: &Map<String, Value>, level: Level) -> Answer<Patch> {
    let pairs: Vec<String> = settings.iter().map(|(key, value)| format!("{key}={}", as_text(value))).collect();
    Patch::parse(&pairs, level).map_err(ApiError::from)
}

fn as_text(value: &Value) -> String {
    match value {
        Value::Null => "inherit".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) if list.iter().all(Value::is_string) => {
            list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
        }
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// `{"limit_per_minute": {"value": 60, "from": "cluster"}}`.
pub(super) fn with_origin(settings: &[Effective]) -> Value {
    let object = settings
        .iter()
        .map(|setting| (setting.key.to_owned(), json!({ "value": setting.value.to_json(), "from": setting.from })));
    Value::Object(object.collect())
}
