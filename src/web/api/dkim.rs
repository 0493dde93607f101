//! `/dkim`: signing keys.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{delete, get};
use axum::{Json, Router};
use outgate_cluster::command::DkimAlgorithm;
use outgate_cluster::state::DkimKey;
use outgate_cluster::{Command, DomainName};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, ApiError, Params, Parts, body, parse_domain, propose, time};
use crate::web::dkim::{self, DkimError};
use crate::web::echo;

pub(super) fn routes() -> Router<Parts> {
    Router::new()
        .route("/dkim", get(list).post(create))
        .route("/dkim/{domain}", get(show))
        .route("/dkim/{domain}/{selector}", delete(remove))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Of {
    domain: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct New {
    domain: String,
    selector: Option<String>,
    #[serde(default)]
    algorithm: Algorithms,
}

#[derive(Deserialize, Clone, Copy, Default)]
#[serde(rename_all = "snake_case")]
enum Algorithms {
    Rsa,
    Ed25519,
    #[default]
    Both,
}

async fn list(State(parts): State<Parts>, Params(of): Params<Of>) -> Answer<Json<Value>> {
    let domain = of.domain.as_deref().map(parse_domain).transpose()?;
    let keys = parts.cluster.read(|state| state.dkim_keys(domain.as_ref()));
    Ok(Json(keys.iter().map(render).collect()))
}

/// The domain's keys; 404 where it has none.
async fn show(State(parts): State<Parts>, Path(domain): Path<String>) -> Answer<Json<Value>> {
    let domain = parse_domain(&domain)?;
    let keys = parts.cluster.read(|state| state.domain(&domain).map(|_| state.dkim_keys(Some(&domain))));
    let keys = keys.ok_or_else(|| ApiError::not_found(format!("domain {domain} is not known")))?;
    if keys.is_empty() {
        return Err(ApiError::not_found(format!("{domain} has no DKIM key: outgate dkim create {domain}")));
    }
    Ok(Json(keys.iter().map(render).collect()))
}

/// Makes the keys; 409 where one of the selectors is taken, so that no key in use is overwritten.
async fn create(State(parts): State<Parts>, bytes: Bytes) -> Answer<(StatusCode, Json<Value>)> {
    let new: New = body(&bytes)?;
    let domain = parse_domain(&new.domain)?;
    let default = parts.cluster.read(|state| {
        state.domain(&domain)?;
        let own = state.domain_settings_with_origin(&domain);
        own.iter().find(|setting| setting.key == "dkim_selector").map(|setting| setting.value.to_json())
    });
    let default = default.and_then(|value| value.as_str().map(str::to_owned));
    let default = default.ok_or_else(|| ApiError::not_found(format!("domain {domain} is not known")))?;
    let selector = new.selector.unwrap_or(default);
    let wanted = wanted(new.algorithm, &selector);
    for (_, selector) in &wanted {
        check_selector(&parts, &domain, selector)?;
    }
    for (algorithm, selector) in wanted {
        let made = tokio::task::spawn_blocking(move || dkim::generate(algorithm)).await;
        let private_key = made.unwrap_or(Err(DkimError::Generate))?;
        propose(&parts, Command::DkimPut { domain: domain.clone(), selector, algorithm, private_key }).await?;
    }
    let keys = parts.cluster.read(|state| state.dkim_keys(Some(&domain)));
    Ok((StatusCode::CREATED, Json(keys.iter().map(render).collect())))
}

fn wanted(algorithms: Algorithms, selector: &str) -> Vec<(DkimAlgorithm, String)> {
    let both = [DkimAlgorithm::RsaSha256, DkimAlgorithm::Ed25519Sha256];
    match algorithms {
        Algorithms::Rsa => vec![(DkimAlgorithm::RsaSha256, selector.to_owned())],
        Algorithms::Ed25519 => vec![(DkimAlgorithm::Ed25519Sha256, selector.to_owned())],
        Algorithms::Both => both.map(|algorithm| (algorithm, algorithm.selector_beside(selector))).to_vec(),
    }
}

fn check_selector(parts: &Parts, domain: &DomainName, selector: &str) -> Answer<()> {
    DomainName::new(selector).map_err(|_| {
        ApiError::wrong(format!("`{}` is not a selector: give a label such as s2024", echo::excerpt(selector)))
    })?;
    let taken = parts.cluster.read(|state| state.dkim_keys(Some(domain)).iter().any(|key| key.selector == selector));
    if taken {
        return Err(ApiError::conflict(format!("{domain} has a key {selector} already: give another --selector")));
    }
    Ok(())
}

async fn remove(State(parts): State<Parts>, Path((domain, selector)): Path<(String, String)>) -> Answer<StatusCode> {
    propose(&parts, Command::DkimRemove { domain: parse_domain(&domain)?, selector }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Everything but the private part.
fn render(key: &DkimKey) -> Value {
    let algorithm = match key.algorithm {
        DkimAlgorithm::RsaSha256 => "rsa",
        DkimAlgorithm::Ed25519Sha256 => "ed25519",
    };
    let record = dkim::record(key.algorithm, &key.private_key);
    let zone = record.as_ref().map(|record| dkim::zone_line(&key.selector, key.domain.as_str(), record));
    json!({
        "domain": key.domain.as_str(),
        "selector": key.selector,
        "algorithm": algorithm,
        "created": time(key.created),
        "dns_name": format!("{}._domainkey.{}", key.selector, key.domain),
        "dns_value": record.as_ref().ok(),
        "dns_zone": zone.ok(),
    })
}
