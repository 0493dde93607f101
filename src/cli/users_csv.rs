//! `outgate user import` and `export`.

use std::path::PathBuf;

use serde_json::Value;

use super::Outcome;
use super::client::{Client, Query};
use super::failure::Failure;
use super::output::{Output, cell, print_bytes, remark};
use crate::web::api::DISABLED_USERS;

const COLUMNS: [&str; 3] = ["line", "column", "reason"];

#[derive(clap::Args)]
pub(super) struct ImportArgs {
    /// CSV: user,domain,password; an empty user is the domain user, an address range a network
    file: PathBuf,
    /// Take nothing if one line cannot be taken
    #[arg(long)]
    strict: bool,
    /// Check only, change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Exit code 0: every line was taken; 1: some were not; 2: nothing was taken because of the file.
pub(super) async fn import(client: &Client, output: Output, args: &ImportArgs) -> Outcome {
    let file = args.file.display();
    let bytes = std::fs::read(&args.file).map_err(|error| Failure::wrong(format!("cannot read {file}: {error}")))?;
    let flag = |on: bool| on.then_some("true");
    let query = Query::default().and("strict", flag(args.strict)).and("dry_run", flag(args.dry_run));
    let (status, report) = client.upload(&query.of("/import/users"), bytes).await?;
    let refused = report["refused"].as_array().map_or(0, Vec::len);
    match output {
        Output::Json => output.one(&report)?,
        Output::Table | Output::Csv if refused > 0 => output.list(&COLUMNS, &report["refused"])?,
        Output::Table | Output::Csv => {}
    }
    let Some(first) = report["refused"].get(0) else { return Ok(()) };
    let fault = format!("line {}, {}: {}", cell(&first["line"]), cell(&first["column"]), cell(&first["reason"]));
    let more = if refused > 1 { format!(" (and {} more)", refused - 1) } else { String::new() };
    let added = cell(&report["added"]);
    if args.dry_run {
        Err(Failure::wrong(format!("{file}: {added} users could be taken, {refused} lines not: {fault}{more}")))
    } else if status.is_success() {
        Err(Failure::failed(format!("{file}: {added} users taken, {refused} lines not: {fault}{more}")))
    } else {
        Err(Failure::wrong(format!("{file}: nothing was taken: {fault}{more}")))
    }
}

pub(super) async fn export(client: &Client, output: Output, domain: Option<&str>) -> Outcome {
    let answer = client.fetch(&Query::default().and("domain", domain).of("/export/users")).await?;
    let csv = answer.body();
    match output {
        Output::Table | Output::Csv => print_bytes(csv)?,
        Output::Json => output.one(&objects(csv)?)?,
    }
    let disabled = answer.headers().get(DISABLED_USERS).and_then(|count| count.to_str().ok()?.parse().ok());
    match disabled.unwrap_or(0u64) {
        0 => Ok(()),
        1 => remark("1 of these users is disabled, and an import would enable it"),
        count => remark(&format!("{count} of these users are disabled, and an import would enable them")),
    }
}

fn objects(csv: &[u8]) -> Result<Value, Failure> {
    let mut reader = ::csv::Reader::from_reader(csv);
    let rows: Result<Vec<std::collections::BTreeMap<String, String>>, _> = reader.deserialize().collect();
    let rows = rows.map_err(|error| Failure::failed(format!("the node's CSV does not fit: {error}")))?;
    serde_json::to_value(rows).map_err(Failure::failed)
}
