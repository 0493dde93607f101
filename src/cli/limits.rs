//! `outgate limits`.

use clap::Subcommand;

use super::Outcome;
use super::client::{Admin, Query};
use super::output::{Output, cell, print};
use super::user::{Subject, path};

const COLUMNS: [&str; 5] = ["scope", "window", "used", "limit", "next_free_s"];

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    admin: Admin,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Show what is used of each window; a limit of 0 is none
    Show(Subject),
}

pub(super) async fn execute(args: Args) -> Outcome {
    let Verb::Show(subject) = args.verb;
    let query = Query::default().and("identity", subject.identity.as_deref());
    let limits = args.admin.client().get(&query.of(&format!("{}/limits", path(&subject.login)))).await?;
    let output = args.admin.output;
    match output {
        Output::Json => output.one(&limits),
        Output::Csv => output.list(&COLUMNS, &limits["windows"]),
        Output::Table => {
            output.list(&COLUMNS, &limits["windows"])?;
            let counter = |name: &str| format!("{} of {}", cell(&limits[name]["used"]), cell(&limits[name]["limit"]));
            print(&format!(
                "\nunit: {}\ndifferent recipients in 24 h: {}\ninvalid recipients in 24 h: {}\n",
                cell(&limits["unit"]),
                counter("distinct_recipients"),
                counter("invalid_recipients")
            ))
        }
    }
}
