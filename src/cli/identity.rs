//! `outgate identity`: the people inside a smarthost's mail.

use clap::Subcommand;

use super::Outcome;
use super::client::Admin;
use super::user::{Subject, change_lock, path};

const COLUMNS: [&str; 5] = ["identity", "lock", "until", "unlocks_used", "last_seen"];

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    admin: Admin,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// List the identities of a user
    List { login: String },
    /// Lock one until somebody unlocks it
    Lock {
        login: String,
        identity: String,
        /// For the history
        #[arg(long)]
        reason: Option<String>,
    },
    /// Unlock one, and begin to count unlocks anew
    Unlock { login: String, identity: String },
    /// Begin to count unlocks anew
    Reset { login: String, identity: String },
}

pub(super) async fn execute(args: Args) -> Outcome {
    let client = args.admin.client();
    let subject = |login, identity| Subject { login, identity: Some(identity) };
    match args.verb {
        Verb::List { login } => {
            args.admin.output.list(&COLUMNS, &client.get(&format!("{}/identities", path(&login))).await?)
        }
        Verb::Lock { login, identity, reason } => {
            change_lock(&client, args.admin.output, "lock", &subject(login, identity), reason).await
        }
        Verb::Unlock { login, identity } => {
            change_lock(&client, args.admin.output, "unlock", &subject(login, identity), None).await
        }
        Verb::Reset { login, identity } => {
            change_lock(&client, args.admin.output, "reset", &subject(login, identity), None).await
        }
    }
}
