//! `outgate settings`: what all domains and users inherit.

use clap::Subcommand;
use serde_json::json;

use super::client::Admin;
use super::{Outcome, pairs};

const COLUMNS: [&str; 5] = ["key", "value", "default", "expects", "help"];

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    admin: Admin,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Show every setting with its value, default and meaning
    Show,
    /// Change cluster defaults; the value `inherit` takes the product's default
    Set {
        #[arg(value_name = "KEY=VALUE", required = true)]
        settings: Vec<String>,
    },
}

pub(super) async fn execute(args: Args) -> Outcome {
    let client = args.admin.client();
    match args.verb {
        Verb::Show => args.admin.output.list(&COLUMNS, &client.get("/settings").await?),
        Verb::Set { settings } => {
            args.admin.output.changed(&client.patch("/settings", &json!(pairs::settings(&settings)?)).await?)
        }
    }
}
