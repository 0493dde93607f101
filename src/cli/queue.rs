//! `outgate queue`.

use clap::Subcommand;
use serde_json::Value;

use super::Outcome;
use super::client::{Admin, Query, segment};
use super::output::print_bytes;

const COLUMNS: [&str; 7] = ["id", "sender", "size", "arrived", "next_attempt", "frozen", "recipients"];

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    admin: Admin,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// List what waits for delivery
    List,
    /// Show one message with the last reply for each recipient
    Show { id: String },
    /// Attempt it now
    Retry { id: String },
    /// Stop attempts
    Freeze { id: String },
    /// Resume attempts
    Thaw { id: String },
    /// Delete it
    Remove {
        id: String,
        /// Send the sender a bounce
        #[arg(long)]
        notify: bool,
    },
    /// Write the message to standard output
    Download { id: String },
}

pub(super) async fn execute(args: Args) -> Outcome {
    let client = args.admin.client();
    let of = |id: &str, rest: &str| format!("/queue/{}{rest}", segment(id));
    match args.verb {
        Verb::List => args.admin.output.list(&COLUMNS, &client.get_all("/queue", &Query::default(), "id").await?),
        Verb::Show { id } => args.admin.output.one(&client.get(&of(&id, "")).await?),
        Verb::Retry { id } => args.admin.output.changed(&client.post(&of(&id, "/retry"), &Value::Null).await?),
        Verb::Freeze { id } => args.admin.output.changed(&client.post(&of(&id, "/freeze"), &Value::Null).await?),
        Verb::Thaw { id } => args.admin.output.changed(&client.post(&of(&id, "/thaw"), &Value::Null).await?),
        Verb::Remove { id, notify } => {
            let query = Query::default().and("notify", notify.then_some("true"));
            args.admin.output.changed(&client.delete(&query.of(&of(&id, ""))).await?)
        }
        Verb::Download { id } => print_bytes(&client.download(&of(&id, "/message")).await?),
    }
}
