//! `outgate log`.

use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};

use super::Outcome;
use super::client::{Admin, Query, parse};
use super::failure::Failure;
use super::output::{Output, remark};
use crate::clock::now_ms;
use crate::web::api::MISSING_NODES;

const COLUMNS: [&str; 9] = ["at", "id", "status", "user", "sender", "recipients", "class", "subject", "reply"];

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    admin: Admin,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Search; filters are joined by "and"; user and domain match as a whole, * is a wildcard in them and in the text
    Search(Box<Filter>),
}

#[derive(clap::Args)]
struct Filter {
    #[arg(long)]
    user: Option<String>,
    #[arg(long)]
    domain: Option<String>,
    /// clean, unsure, spam, phish, virus, blocked, locked, limit or oversize
    #[arg(long)]
    class: Option<String>,
    /// accepted, queued, delivered, deferred, bounced, expired, frozen, removed, quarantined, released, rejected,
    /// refused or discarded
    #[arg(long)]
    status: Option<String>,
    /// 30m, 1h, 2d ago, a date, or a time as in RFC 3339
    #[arg(long, value_parser = moment)]
    since: Option<u64>,
    /// As --since
    #[arg(long, value_parser = moment)]
    until: Option<u64>,
    /// In sender, recipients, subject, Message-ID, reply and evidence
    #[arg(long)]
    text: Option<String>,
    /// One message's journey, oldest step first
    #[arg(long)]
    id: Option<String>,
    /// At most so many records, up to 10000
    #[arg(long, default_value_t = 100)]
    limit: usize,
}

pub(super) async fn execute(args: Args) -> Outcome {
    let Verb::Search(filter) = args.verb;
    let number = |value: Option<u64>| value.map(|value| value.to_string());
    let query = Query::default()
        .and("user", filter.user.as_deref())
        .and("domain", filter.domain.as_deref())
        .and("class", filter.class.as_deref())
        .and("status", filter.status.as_deref())
        .and("text", filter.text.as_deref())
        .and("id", filter.id.as_deref())
        .and("since_ms", number(filter.since).as_deref())
        .and("until_ms", number(filter.until).as_deref())
        .and("count", Some(filter.limit.to_string().as_str()));
    let answer = args.admin.client().fetch(&query.of("/log")).await?;
    let records = parse(answer.body())?;
    match args.admin.output {
        Output::Json => Output::Json.one(&records)?,
        output @ (Output::Table | Output::Csv) => output.list(&COLUMNS, &flat(&records))?,
    }
    let missing = answer.headers().get(MISSING_NODES).and_then(|nodes| nodes.to_str().ok());
    missing.map_or(Ok(()), |nodes| remark(&incomplete(nodes)))
}

/// What a search has to say of nodes that did not answer.
pub(super) fn incomplete(nodes: &str) -> String {
    format!("warning: node {nodes} does not answer: some of its log may be missing")
}

/// The three kinds of record in the same columns.
fn flat(records: &Value) -> Value {
    let flat = |record: &Value| {
        let event = &record["event"];
        let mut row = json!({ "at": record["at"], "id": record["id"] });
        for key in ["status", "user", "sender", "recipients", "class", "subject", "reply"] {
            row[key] = event[key].clone();
        }
        match event["event"].as_str() {
            Some("attempt") => row["recipients"] = event["recipient"].clone(),
            Some("change") => row["reply"] = event["detail"].clone(),
            Some(_) | None => {}
        }
        row
    };
    records.as_array().map_or(Value::Null, |records| records.iter().map(flat).collect())
}

/// Milliseconds since the epoch.
fn moment(text: &str) -> Result<u64, Failure> {
    if let Some(ago) = ago(text) {
        return Ok(now_ms().saturating_sub(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)));
    }
    let date = || text.parse::<jiff::civil::Date>().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok();
    let at = text.parse::<jiff::Timestamp>().ok().or_else(|| Some(date()?.timestamp()));
    at.and_then(|at| u64::try_from(at.as_millisecond()).ok())
        .ok_or_else(|| Failure::wrong("give 30m, 1h, 2d, 2026-01-31 or 2026-01-31T12:00:00Z"))
}

fn ago(text: &str) -> Option<Duration> {
    let unit = text.chars().next_back()?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        'w' => 7 * 86_400,
        _ => return None,
    };
    let count: u64 = text.strip_suffix(unit)?.parse().ok()?;
    Some(Duration::from_secs(count.checked_mul(seconds)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn moments_are_read_in_every_form() {
        assert_eq!(moment("2026-01-31T12:00:00Z").unwrap(), 1_769_860_800_000);
        assert_eq!(moment("2026-01-31").unwrap(), 1_769_817_600_000);
        let now = moment("0s").unwrap();
        assert!((now - moment("2h").unwrap()).abs_diff(7_200_000) < 5_000);
        for wrong in ["", "h", "-1h", "1y", "yesterday", "99999999999999999999d"] {
            assert!(moment(wrong).is_err(), "{wrong}");
        }
    }
}
