//! `/domains`.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use outgate_cluster::command::DomainPatch;
use outgate_cluster::state::DomainView;
use outgate_cluster::state::settings::Level;
use outgate_cluster::{Command, DomainName};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Answer, ApiError, Parts, body, parse_domain, propose, settings};
use crate::config::is_host_port;
use crate::mail::Address;
use crate::web::echo;

pub(super) fn routes() -> Router<Parts> {
    Router::new().route("/domains", get(list).post(add)).route("/domains/{name}", get(show).patch(set).delete(remove))
}

/// Fields that stay as they are where absent; an empty text removes.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Change {
    /// Only where a domain is added.
    name: Option<String>,
    enabled: Option<bool>,
    contact: Option<String>,
    route: Option<String>,
    route_auth: Option<String>,
    settings: Map<String, Value>,
}

impl Change {
    fn patch(self) -> Answer<DomainPatch> {
        if let Some(contact) = self.contact.as_deref().filter(|contact| !contact.is_empty()) {
            Address::new(contact).map_err(|error| {
                ApiError::wrong(format!("contact: {}: give local@domain", echo::about(error, contact)))
            })?;
        }
        if let Some(route) = self.route.as_deref().filter(|route| !route.is_empty() && !is_host_port(route)) {
            let route = echo::excerpt(route);
            return Err(ApiError::wrong(format!(
                "route: `{route}` does not fit: give host:port such as mx.example.com:25"
            )));
        }
        if let Some(auth) = self.route_auth.as_deref().filter(|auth| !auth.is_empty())
            && auth.split_once(':').is_none_or(|(user, _)| user.is_empty())
        {
            return Err(ApiError::wrong("route_auth: give user:password"));
        }
        Ok(DomainPatch {
            enabled: self.enabled,
            contact: self.contact,
            route: self.route,
            route_auth: self.route_auth,
            settings: settings::patch(&self.settings, Level::Domain)?,
        })
    }
}

async fn list(State(parts): State<Parts>) -> Json<Value> {
    let domains = parts.cluster.read(|state| state.domains());
    Json(domains.iter().map(render).collect())
}

async fn add(State(parts): State<Parts>, bytes: Bytes) -> Answer<(StatusCode, Json<Value>)> {
    let mut change: Change = body(&bytes)?;
    let name = change.name.take().ok_or_else(|| ApiError::wrong("name is missing"))?;
    let name = parse_domain(&name)?;
    propose(&parts, Command::DomainAdd { name: name.clone(), patch: change.patch()? }).await?;
    Ok((StatusCode::CREATED, Json(find(&parts, &name)?)))
}

async fn show(State(parts): State<Parts>, Path(name): Path<String>) -> Answer<Json<Value>> {
    Ok(Json(find(&parts, &parse_domain(&name)?)?))
}

async fn set(State(parts): State<Parts>, Path(name): Path<String>, bytes: Bytes) -> Answer<Json<Value>> {
    let name = parse_domain(&name)?;
    let change: Change = body(&bytes)?;
    if change.name.is_some() {
        return Err(ApiError::wrong("a domain cannot be renamed: add the new one"));
    }
    propose(&parts, Command::DomainSet { name: name.clone(), patch: change.patch()? }).await?;
    Ok(Json(find(&parts, &name)?))
}

async fn remove(State(parts): State<Parts>, Path(name): Path<String>) -> Answer<StatusCode> {
    propose(&parts, Command::DomainRemove { name: parse_domain(&name)? }).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn find(parts: &Parts, name: &DomainName) -> Answer<Value> {
    let found = parts.cluster.read(|state| Some((state.domain(name)?, state.domain_settings_with_origin(name))));
    let (domain, settings) = found.ok_or_else(|| ApiError::not_found(format!("domain {name} is not known")))?;
    let mut value = render(&domain);
    value["settings"] = settings::with_origin(&settings);
    Ok(value)
}

/// The route's password is never told.
fn render(domain: &DomainView) -> Value {
    let login = domain.route_auth.as_deref().and_then(|auth| auth.split_once(':')).map(|(user, _)| user);
    json!({
        "name": domain.name.as_str(),
        "enabled": domain.enabled,
        "contact": domain.contact,
        "route": domain.route,
        "route_user": login,
        "users": domain.users,
    })
}
