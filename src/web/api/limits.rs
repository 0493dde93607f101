//! `/users/{login}/limits`: every window with what is used of it.

use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use outgate_cluster::command::LimitUnit;
use outgate_cluster::state::LimitsView;
use outgate_cluster::{Charge, Scope};
use serde::Deserialize;
use serde_json::{Value, json};

use super::users::unknown;
use super::{Answer, Params, Parts, parse_login};

pub(super) fn routes() -> Router<Parts> {
    Router::new().route("/users/{login}/limits", get(show))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Of {
    identity: Option<String>,
}

async fn show(State(parts): State<Parts>, Path(login): Path<String>, Params(of): Params<Of>) -> Answer<Json<Value>> {
    let login = parse_login(&parts, &login)?;
    let found = parts.cluster.read(|state| {
        let user = state.user(&login)?;
        Some((state.limits(user.id, of.identity.as_deref()), user))
    });
    let (limits, user) = found.ok_or_else(|| unknown(&login))?;
    Ok(Json(json!({
        "login": user.login.to_string(),
        "identity": of.identity,
        "unit": unit(user.settings.limit_unit),
        "limits_enabled": user.settings.limits_enabled,
        "windows": all(&limits),
        "distinct_recipients": { "used": limits.distinct_recipients, "limit": user.settings.max_recipients_per_day },
        "invalid_recipients": { "used": limits.invalid_recipients, "limit": user.settings.invalid_recipient_limit },
    })))
}

/// The User's own windows, in the form of `user show`.
pub(super) fn windows(limits: &LimitsView) -> Value {
    let own = limits.windows.iter().filter(|charge| charge.scope == Scope::User);
    own.map(|charge| {
        json!({
            "window": charge.window.as_str(),
            "used": charge.used,
            "limit": charge.limit,
            "next_free_s": charge.next_free_s,
        })
    })
    .collect()
}

/// Every window with its scope.
pub(super) fn all(limits: &LimitsView) -> Value {
    limits.windows.iter().map(charge).collect()
}

fn charge(charge: &Charge) -> Value {
    json!({
        "scope": scope(charge.scope),
        "window": charge.window.as_str(),
        "used": charge.used,
        "limit": charge.limit,
        "next_free_s": charge.next_free_s,
    })
}

fn unit(unit: LimitUnit) -> &'static str {
    match unit {
        LimitUnit::Messages => "messages",
        LimitUnit::Recipients => "recipients",
    }
}

fn scope(scope: Scope) -> &'static str {
    match scope {
        Scope::User => "user",
        Scope::Identity => "identity",
        Scope::Domain => "domain",
        Scope::NullSender => "null_sender",
    }
}
