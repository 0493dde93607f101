//! `/import/users` and `/export/users`: users as CSV.
//!
//! Every line is checked before anything changes. All lines that are fine are taken in one step, or with `strict` none
//! where one is not (409). From a quote that is never closed on, no line is fine. A file of too many lines is refused as a
//! whole (400).

use std::collections::BTreeSet;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use outgate_cluster::command::{ImportReport, NewUser};
use outgate_cluster::state::State as Replica;
use outgate_cluster::state::settings::Patch;
use outgate_cluster::{Command, DomainName, Login, Outcome};
use serde::Deserialize;
use serde_json::json;

use super::{Answer, ApiError, PAGE_MAX, Params, Parts, parse_domain, propose};
use crate::mail::MessageId;
use crate::web::csv::{self, COLUMNS, Fault, Row};
use crate::web::password;

/// Octets of an import.
const IMPORT_MAX: usize = 512 << 20;
/// Users in one staged command: about 32 KiB, half of what one log entry may hold.
const STAGE_USERS: usize = 128;

/// Header of an export: how many of its Users are disabled.
pub const DISABLED_USERS: &str = "outgate-disabled-users";

pub(super) fn routes() -> Router<Parts> {
    Router::new()
        .route("/import/users", post(import).layer(DefaultBodyLimit::max(IMPORT_MAX)))
        .route("/export/users", get(export))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Way {
    /// All or nothing.
    #[serde(default)]
    strict: bool,
    /// Check only.
    #[serde(default)]
    dry_run: bool,
}

async fn import(State(parts): State<Parts>, Params(way): Params<Way>, bytes: Bytes) -> Answer<Response> {
    let parsed = tokio::task::spawn_blocking(move || csv::parse(&bytes)).await;
    let (rows, mut faults) = parsed.map_err(|_| ApiError::unavailable("the check of the file failed"))??;
    let rows = parts.cluster.read(|state| against_state(state, rows, &mut faults));
    faults.sort_by_key(|fault| fault.line);
    if way.dry_run {
        return Ok(report(StatusCode::OK, &way, rows.len(), &faults));
    }
    if way.strict && !faults.is_empty() {
        return Ok(report(StatusCode::CONFLICT, &way, 0, &faults));
    }
    let done = commit(&parts, &rows, way.strict).await?;
    for (position, refusal) in &done.refused {
        let line = usize::try_from(*position).ok().and_then(|at| rows.get(at)).map_or(0, |row| row.line);
        faults.push(Fault { line, column: "user", reason: refusal.to_string() });
    }
    let added = usize::try_from(done.added).unwrap_or(usize::MAX);
    Ok(report(StatusCode::OK, &way, added, &faults))
}

/// With `dry_run`, `added` is how many would be.
fn report(status: StatusCode, way: &Way, added: usize, faults: &[Fault]) -> Response {
    let error = (status != StatusCode::OK)
        .then(|| format!("{} lines cannot be taken, so nothing was changed (strict)", faults.len()));
    (status, Json(json!({ "error": error, "dry_run": way.dry_run, "added": added, "refused": faults }))).into_response()
}

/// Drops the rows that the state would refuse today.
fn against_state(state: &Replica, rows: Vec<Row>, faults: &mut Vec<Fault>) -> Vec<Row> {
    let domains: BTreeSet<DomainName> = state.domains().into_iter().map(|domain| domain.name).collect();
    let fault = |row: &Row| {
        let own = row.owner.as_ref().or_else(|| row.login.domain());
        match own.filter(|name| !domains.contains(*name)) {
            Some(name) => Some(("domain", format!("domain {name} is not known: outgate domain add {name}"))),
            None => state.user(&row.login).map(|_| ("user", format!("user {} exists already", row.login))),
        }
    };
    let mut fine = Vec::with_capacity(rows.len());
    for row in rows {
        match fault(&row) {
            Some((column, reason)) => faults.push(Fault { line: row.line, column, reason }),
            None => fine.push(row),
        }
    }
    fine
}

/// Hashes, stages and takes the rows in one step.
async fn commit(parts: &Parts, rows: &[Row], strict: bool) -> Answer<ImportReport> {
    if rows.is_empty() {
        return Ok(ImportReport::default());
    }
    let [.., a, b, c, d, e, f, g, h] = MessageId::generate().to_bytes();
    let import = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    for part in rows.chunks(STAGE_USERS) {
        let users = new_users(part).await?;
        propose(parts, Command::ImportStage { import, users }).await?;
    }
    match propose(parts, Command::ImportCommit { import, strict }).await?.outcome {
        Outcome::Imported(report) => Ok(report),
        outcome @ (Outcome::Done
        | Outcome::Batch(_)
        | Outcome::Admission(_)
        | Outcome::UserAdded(_)
        | Outcome::Lock(_)
        | Outcome::AuthFailure { .. }
        | Outcome::Joined(_)
        | Outcome::Refused(_)) => {
            tracing::error!(?outcome, "unexpected answer to an import");
            Err(ApiError::unavailable("the import was not answered"))
        }
    }
}

async fn new_users(rows: &[Row]) -> Answer<Vec<NewUser>> {
    let passwords: Vec<String> = rows.iter().filter_map(|row| row.password.clone()).collect();
    let mut hashes = password::to_hashes(passwords).await.into_iter();
    let mut users = Vec::with_capacity(rows.len());
    for row in rows {
        let password_hash = match row.password {
            Some(_) => hashes.next().transpose()?,
            None => None,
        };
        users.push(NewUser {
            login: row.login.clone(),
            owner: row.owner.clone(),
            password_hash,
            settings: Patch::default(),
        });
    }
    Ok(users)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Of {
    domain: Option<String>,
}

/// `user,domain,password` with hashes instead of passwords: an import takes it back as it is, but for whether a User is
/// disabled, which the three columns do not tell: a header counts those.
async fn export(State(parts): State<Parts>, Params(of): Params<Of>) -> Answer<Response> {
    let domain = of.domain.as_deref().map(parse_domain).transpose()?;
    if let Some(name) = &domain
        && parts.cluster.read(|state| state.domain(name).is_none())
    {
        return Err(ApiError::not_found(format!("domain {name} is not known")));
    }
    let failed = |_| ApiError::unavailable("cannot write the list");
    let mut writer = ::csv::Writer::from_writer(Vec::new());
    writer.write_record(COLUMNS).map_err(failed)?;
    let (mut after, mut disabled): (Option<Login>, u64) = (None, 0);
    loop {
        let page = parts.cluster.read(|state| state.users(domain.as_ref(), after.as_ref(), PAGE_MAX));
        for user in &page {
            let cells = csv::line(&user.login, &user.domain, user.password_hash.as_deref());
            writer.write_record(cells).map_err(failed)?;
            disabled += u64::from(!user.enabled);
        }
        match page.last() {
            Some(last) if page.len() == PAGE_MAX => after = Some(last.login.clone()),
            Some(_) | None => break,
        }
    }
    let bytes = writer.into_inner().map_err(|_| ApiError::unavailable("cannot write the list"))?;
    let kind = (header::CONTENT_TYPE.as_str(), "text/csv; charset=utf-8".to_owned());
    Ok(([kind, (DISABLED_USERS, disabled.to_string())], bytes).into_response())
}
