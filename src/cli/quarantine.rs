//! `outgate quarantine`.

use clap::Subcommand;
use serde_json::Value;

use super::Outcome;
use super::client::{Admin, Query, segment};
use super::output::print_bytes;

const COLUMNS: [&str; 8] = ["id", "held", "user", "class", "score", "sender", "recipients", "subject"];

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    admin: Admin,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// List held messages, newest first
    List {
        #[arg(long)]
        domain: Option<String>,
        #[arg(long)]
        user: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 1_000)]
        limit: usize,
    },
    /// Show one with its findings and headers
    Show { id: String },
    /// Deliver it
    Release { id: String },
    /// Delete it
    Remove { id: String },
    /// Write the message to standard output
    Download { id: String },
}

pub(super) async fn execute(args: Args) -> Outcome {
    let client = args.admin.client();
    let of = |id: &str, rest: &str| format!("/quarantine/{}{rest}", segment(id));
    match args.verb {
        Verb::List { domain, user, limit } => {
            let query = Query::default()
                .and("domain", domain.as_deref())
                .and("user", user.as_deref())
                .and("count", Some(limit.to_string().as_str()));
            args.admin.output.list(&COLUMNS, &client.get(&query.of("/quarantine")).await?)
        }
        Verb::Show { id } => args.admin.output.one(&client.get(&of(&id, "")).await?),
        Verb::Release { id } => args.admin.output.changed(&client.post(&of(&id, "/release"), &Value::Null).await?),
        Verb::Remove { id } => args.admin.output.changed(&client.delete(&of(&id, "")).await?),
        Verb::Download { id } => print_bytes(&client.download(&of(&id, "/message")).await?),
    }
}
