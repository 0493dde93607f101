//! `/users`.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, put};
use axum::{Json, Router};
use outgate_cluster::command::{NewUser, UserPatch};
use outgate_cluster::state::settings::Level;
use outgate_cluster::state::{LockView, State as Replica, UserView};
use outgate_cluster::{Command, Login};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    Answer, ApiError, PAGE_MAX, Params, Parts, body, limits, locks, network_of, parse_domain, parse_login, propose,
    settings,
};
use crate::web::{echo, password};

pub(super) fn routes() -> Router<Parts> {
    Router::new()
        .route("/users", get(list).post(add))
        .route("/users/{login}", get(show).patch(set).delete(remove))
        .route("/users/{login}/password", put(set_password))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    domain: Option<String>,
    /// The last login of the page before.
    after: Option<String>,
    count: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct New {
    login: String,
    /// The owner domain of a network.
    owner: Option<String>,
    /// A password, or an argon2id hash in PHC form.
    password: Option<String>,
    #[serde(default)]
    settings: Map<String, Value>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Change {
    enabled: Option<bool>,
    settings: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Password {
    /// Empty removes a network's password.
    password: String,
}

/// In order of login.
async fn list(State(parts): State<Parts>, Params(page): Params<Page>) -> Answer<Json<Value>> {
    let domain = page.domain.as_deref().map(parse_domain).transpose()?;
    let after = page.after.as_deref().map(|login| parse_login(&parts, login)).transpose()?;
    let count = page.count.unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX);
    let users = parts.cluster.read(|state| {
        let known = domain.as_ref().is_none_or(|name| state.domain(name).is_some());
        let row = |user: UserView| (state.lock(user.id, None), user);
        known.then(|| state.users(domain.as_ref(), after.as_ref(), count).into_iter().map(row).collect::<Vec<_>>())
    });
    let users = users.ok_or_else(|| ApiError::not_found("the domain is not known"))?;
    Ok(Json(users.iter().map(|(lock, user)| row(user, lock)).collect()))
}

async fn add(State(parts): State<Parts>, bytes: Bytes) -> Answer<(StatusCode, Json<Value>)> {
    let new: New = body(&bytes)?;
    let login = parse_login(&parts, &new.login)?;
    let owner = new.owner.as_deref().or_else(|| network_of(&new.login).map(|(_, owner)| owner));
    let owner = owner.map(parse_domain).transpose()?;
    let settings = settings::patch(&new.settings, Level::User)?;
    if new.password.is_none() && !matches!(login, Login::Network(_)) {
        return Err(ApiError::wrong("a mailbox or domain user needs a password"));
    }
    let password_hash = match new.password {
        Some(password) => Some(password::to_hash_blocking(password).await?),
        None => None,
    };
    let user = NewUser { login: login.clone(), owner, password_hash, settings };
    propose(&parts, Command::UserAdd { user }).await?;
    Ok((StatusCode::CREATED, Json(find(&parts, &login)?)))
}

async fn show(State(parts): State<Parts>, Path(login): Path<String>) -> Answer<Json<Value>> {
    Ok(Json(find(&parts, &parse_login(&parts, &login)?)?))
}

async fn set(State(parts): State<Parts>, Path(login): Path<String>, bytes: Bytes) -> Answer<Json<Value>> {
    let login = parse_login(&parts, &login)?;
    let change: Change = body(&bytes)?;
    let settings = settings::patch(&change.settings, Level::User)?;
    let patch = UserPatch { enabled: change.enabled, password_hash: None, settings };
    propose(&parts, Command::UserSet { login: login.clone(), patch }).await?;
    Ok(Json(find(&parts, &login)?))
}

async fn set_password(State(parts): State<Parts>, Path(login): Path<String>, bytes: Bytes) -> Answer<StatusCode> {
    let login = parse_login(&parts, &login)?;
    let given: Password = body(&bytes)?;
    let removes = given.password.is_empty() && matches!(login, Login::Network(_));
    let hash = if removes { String::new() } else { password::to_hash_blocking(given.password).await? };
    let patch = UserPatch { password_hash: Some(hash), ..UserPatch::default() };
    propose(&parts, Command::UserSet { login, patch }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn remove(State(parts): State<Parts>, Path(login): Path<String>) -> Answer<StatusCode> {
    propose(&parts, Command::UserRemove { login: parse_login(&parts, &login)? }).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn find(parts: &Parts, login: &Login) -> Answer<Value> {
    let found = parts.cluster.read(|state| full(state, login));
    found.ok_or_else(|| unknown(login))
}

pub(super) fn unknown(login: &Login) -> ApiError {
    unknown_text(&login.to_string())
}

pub(super) fn unknown_text(login: &str) -> ApiError {
    ApiError::not_found(format!("user {} is not known", echo::excerpt(login)))
}

/// A User with every setting, its windows and its lock.
pub(super) fn full(state: &Replica, login: &Login) -> Option<Value> {
    let user = state.user(login)?;
    let lock = state.lock(user.id, None);
    Some(json!({
        "login": user.login.to_string(),
        "kind": user.login.kind(),
        "domain": user.domain.as_str(),
        "enabled": user.enabled,
        "lock": locks::render(&lock),
        "settings": settings::with_origin(&state.settings_with_origin(user.id)),
        "windows": limits::windows(&state.limits(user.id, None)),
    }))
}

fn row(user: &UserView, lock: &LockView) -> Value {
    let lock = locks::render(lock);
    json!({
        "login": user.login.to_string(),
        "kind": user.login.kind(),
        "domain": user.domain.as_str(),
        "enabled": user.enabled,
        "lock": lock["state"],
        "until": lock["until"],
    })
}
