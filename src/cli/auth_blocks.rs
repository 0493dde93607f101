//! `outgate auth-blocks`: the authentication block list.

use clap::Subcommand;

use super::Outcome;
use super::client::{Admin, segment};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    admin: Admin,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// List blocked addresses with the time until which they stay
    List,
    /// Let an address try again
    Remove { address: String },
}

pub(super) async fn execute(args: Args) -> Outcome {
    let client = args.admin.client();
    match args.verb {
        Verb::List => args.admin.output.list(&["address", "until"], &client.get("/auth-blocks").await?),
        Verb::Remove { address } => {
            args.admin.output.changed(&client.delete(&format!("/auth-blocks/{}", segment(&address))).await?)
        }
    }
}
