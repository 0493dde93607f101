//! `outgate status` and `outgate cluster status`.

use clap::Subcommand;

use super::Outcome;
use super::client::Admin;

const COLUMNS: [&str; 6] = ["id", "hostname", "version", "ready", "epoch", "clock"];

#[derive(clap::Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    admin: Admin,
}

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    admin: Admin,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Show the nodes
    Status,
}

pub(super) async fn status(args: StatusArgs) -> Outcome {
    args.admin.output.one(&args.admin.client().get("/status").await?)
}

pub(super) async fn execute(args: Args) -> Outcome {
    let Verb::Status = args.verb;
    let cluster = args.admin.client().get("/cluster").await?;
    match args.admin.output {
        super::output::Output::Json => args.admin.output.one(&cluster),
        super::output::Output::Table | super::output::Output::Csv => {
            args.admin.output.list(&COLUMNS, &cluster["nodes"])
        }
    }
}
