//! `/users/{login}/identities`: the people inside a smarthost's mail.

use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::users::unknown;
use super::{Answer, Parts, locks, parse_login, time};

pub(super) fn routes() -> Router<Parts> {
    Router::new().route("/users/{login}/identities", get(list))
}

async fn list(State(parts): State<Parts>, Path(login): Path<String>) -> Answer<Json<Value>> {
    let login = parse_login(&parts, &login)?;
    let found = parts.cluster.read(|state| Some(state.identities(state.user(&login)?.id)));
    let identities = found.ok_or_else(|| unknown(&login))?;
    let row = |identity: &outgate_cluster::state::IdentityView| {
        json!({
            "identity": identity.identity,
            "lock": locks::name(identity.lock),
            "until": locks::until(identity.lock),
            "unlocks_used": identity.unlocks_used,
            "last_seen": time(identity.last_seen),
        })
    };
    Ok(Json(identities.iter().map(row).collect()))
}
