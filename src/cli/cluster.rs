//! `outgate status`, `outgate cluster …`, `outgate drain` and `outgate resume`.

use clap::Subcommand;
use serde_json::{Value, json};

use super::Outcome;
use super::client::{Admin, Client};
use super::failure::Failure;
use super::output::{Output, print, remark};

const COLUMNS: [&str; 8] = ["id", "address", "role", "state", "version", "epoch", "applied", "clock_offset_ms"];

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
    /// Make a token with which one node can join
    Token {
        /// Minutes until it expires
        #[arg(long, default_value_t = 60)]
        valid: u64,
    },
    /// Remove a node for good; its certificate is worthless from then on
    Remove { id: u64 },
    /// Have a node take no more mail, and deliver what it has
    Drain { id: u64 },
    /// Have a drained node take mail again
    Resume { id: u64 },
}

pub(super) async fn status(args: StatusArgs) -> Outcome {
    args.admin.output.one(&args.admin.client().get("/status").await?)
}

/// `outgate drain` and `outgate resume`: the node behind the socket.
pub(super) async fn set_draining(args: StatusArgs, draining: bool) -> Outcome {
    let client = args.admin.client();
    let status = client.get("/status").await?;
    let id = status["node"].as_u64().ok_or_else(|| Failure::failed("the node does not tell its id"))?;
    change(&client, id, draining).await
}

pub(super) async fn execute(args: Args) -> Outcome {
    let (client, output) = (args.admin.client(), args.admin.output);
    match args.verb {
        Verb::Status => show(&client, output).await,
        Verb::Token { valid } => {
            let made = client.post("/cluster/tokens", &json!({ "valid_minutes": valid })).await?;
            match output {
                Output::Table => print(&format!("{}\n", made["command"].as_str().unwrap_or_default())),
                Output::Json | Output::Csv => output.one(&made),
            }
        }
        Verb::Remove { id } => {
            client.delete(&format!("/cluster/nodes/{id}")).await?;
            // It is removed, whatever can be told of the others.
            client.get("/cluster").await.map_or(Ok(()), |cluster| warn(&cluster))
        }
        Verb::Drain { id } => change(&client, id, true).await,
        Verb::Resume { id } => change(&client, id, false).await,
    }
}

async fn change(client: &Client, id: u64, draining: bool) -> Outcome {
    client.patch(&format!("/cluster/nodes/{id}"), &json!({ "draining": draining })).await.map(drop)
}

async fn show(client: &Client, output: Output) -> Outcome {
    let cluster = client.get("/cluster").await?;
    match output {
        Output::Json => output.one(&cluster),
        Output::Table | Output::Csv => {
            output.list(&COLUMNS, &cluster["nodes"])?;
            warn(&cluster)
        }
    }
}

fn warn(cluster: &Value) -> Outcome {
    cluster["warning"].as_str().map_or(Ok(()), |warning| remark(&format!("warning: {warning}")))
}
