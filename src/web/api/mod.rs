//! The REST API: one file a resource. JSON in, JSON out; an error is `{"error":"…"}` with 400 (wrong input),
//! 404, 409 (the state forbids it) or 503 (no decision now).

mod backup;
mod blocks;
mod cluster;
mod dkim;
mod domains;
mod error;
mod identities;
mod import;
mod limits;
mod locks;
mod log;
mod params;
mod quarantine;
mod queue;
mod settings;
mod users;
mod why;

use std::fmt::Display;
use std::str::FromStr;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use outgate_cluster::{Actor, Applied, Command, DomainName, Login, Outcome, ProposeError, Timestamp};
use serde::de::DeserializeOwned;

use super::{Parts, echo};
use crate::clock::now_ms;
use crate::mail::{Message, MessageId};
use crate::maillog::{Event, Origin, Record, Status};

pub use cluster::TWO_NODES;
pub(super) use error::ApiError;
pub use import::DISABLED_USERS;
pub use log::MISSING_NODES;
use params::Params;

type Answer<T> = Result<T, ApiError>;

/// Octets of a request, an import apart.
const BODY_MAX: usize = 1 << 20;
/// Entries of one answer; a client asks for the next page with `after`.
const PAGE_MAX: usize = 1_000;

pub(super) fn router(parts: Parts) -> Router {
    let barrier = from_fn_with_state(parts.clone(), after_barrier);
    let of_the_cluster = Router::new()
        .merge(domains::routes())
        .merge(users::routes())
        .merge(locks::routes())
        .merge(limits::routes())
        .merge(identities::routes())
        .merge(settings::routes())
        .merge(dkim::routes())
        .merge(blocks::routes())
        .merge(why::routes())
        .layer(barrier.clone());
    let of_this_node = Router::new()
        .merge(cluster::routes())
        .merge(queue::routes())
        .merge(quarantine::routes())
        .merge(log::routes())
        .merge(backup::routes());
    let small = of_the_cluster.merge(of_this_node).layer(DefaultBodyLimit::max(BODY_MAX));
    let resources = small.merge(import::routes().layer(barrier));
    Router::new().nest("/api/v1", resources).fallback(no_such_resource).with_state(parts)
}

/// What the replicated state tells is never older than the request, whichever node is asked.
async fn after_barrier(State(parts): State<Parts>, request: Request, next: Next) -> Response {
    match parts.cluster.barrier().await {
        Ok(()) => next.run(request).await,
        Err(error) => ApiError::from(error).into_response(),
    }
}

async fn no_such_resource(uri: Uri) -> ApiError {
    ApiError::not_found(format!("{} is no resource of this API", echo::excerpt(uri.path())))
}

/// Who changes things through the control socket, for history and log.
fn actor() -> Actor {
    Actor("cli".to_owned())
}

/// Proposes a command; a refusal of the state is the error.
async fn propose(parts: &Parts, command: Command) -> Answer<Applied<Outcome>> {
    // A leader that nobody follows would keep it, and have it decided when nobody expects it any more.
    if !parts.cluster.has_majority() {
        return Err(ProposeError::NoQuorum.into());
    }
    let applied = parts.cluster.propose(command).await?;
    if let Outcome::Refused(refusal) = applied.outcome {
        return Err(refusal.into());
    }
    Ok(applied)
}

/// A JSON body, read here so that its faults are told like all others.
fn body<T: DeserializeOwned>(bytes: &[u8]) -> Answer<T> {
    let bytes = if bytes.is_empty() { b"{}" } else { bytes };
    serde_json::from_slice(bytes).map_err(|error| ApiError::wrong(format!("the request's JSON does not fit: {error}")))
}

/// A login as it is given to a client or as it is shown: `192.0.2.0/24@owner.example` is the network of that owner.
fn parse_login(parts: &Parts, text: &str) -> Answer<Login> {
    let Some((network, owner)) = network_of(text) else { return parse(text) };
    let login = parse(network)?;
    let owner: DomainName = parse(owner)?;
    match parts.cluster.read(|state| state.user(&login)) {
        Some(user) if user.domain != owner => Err(users::unknown_text(text)),
        Some(_) | None => Ok(login),
    }
}

/// A range with its owner behind an `@`.
fn network_of(text: &str) -> Option<(&str, &str)> {
    text.rsplit_once('@').filter(|(network, _)| network.parse::<ipnet::IpNet>().is_ok())
}

fn parse_domain(text: &str) -> Answer<DomainName> {
    parse(text)
}

fn parse_id(text: &str) -> Answer<MessageId> {
    parse(text)
}

fn parse<T: FromStr<Err: Display>>(text: &str) -> Answer<T> {
    text.parse().map_err(|error| ApiError::wrong(echo::about(error, text)))
}

/// The log's clock as RFC 3339 in UTC.
fn time(at: Timestamp) -> String {
    time_ms(at.0)
}

fn time_ms(at_ms: u64) -> String {
    let at = i64::try_from(at_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.map_or_else(|| "never".to_owned(), |at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// The raw message as a download.
fn download(id: MessageId, message: &Message) -> Response {
    let name = format!("attachment; filename=\"{id}.eml\"");
    let headers = [(header::CONTENT_TYPE, "message/rfc822".to_owned()), (header::CONTENT_DISPOSITION, name)];
    (StatusCode::OK, headers, message.bytes().clone()).into_response()
}

/// Notes what an admin did with a message.
fn note(parts: &Parts, id: MessageId, origin: Origin, status: Status, detail: &str) {
    let event = Event::Change { origin, status, by: actor().0, detail: detail.to_owned() };
    parts.maillog.record(Record { at_ms: now_ms(), id, event });
}
