//! `outgate domain`.

use clap::Subcommand;
use serde_json::Value;

use super::client::{Admin, segment};
use super::failure::Failure;
use super::{Outcome, pairs};

const COLUMNS: [&str; 5] = ["name", "enabled", "users", "contact", "route"];
/// Keys that are no settings.
const FIELDS: [&str; 4] = ["contact", "route", "route_auth", "enabled"];

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    admin: Admin,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Add a domain
    Add {
        name: String,
        /// contact=, route=host:port, route_auth=user:password, enabled=, and settings for its users. Mail of this domain's
        /// users, and notices to it, go to the route instead of the recipients' MX
        #[arg(value_name = "KEY=VALUE")]
        pairs: Vec<String>,
    },
    /// Change a domain; an empty value removes, `inherit` takes the cluster's
    Set {
        name: String,
        #[arg(value_name = "KEY=VALUE", required = true)]
        pairs: Vec<String>,
    },
    /// List domains
    List,
    /// Show a domain with its settings
    Show { name: String },
    /// Remove a domain without users
    Remove { name: String },
}

pub(super) async fn execute(args: Args) -> Outcome {
    let client = args.admin.client();
    match args.verb {
        Verb::Add { name, pairs } => {
            let mut body = body(&pairs)?;
            body["name"] = Value::String(name);
            args.admin.output.changed(&client.post("/domains", &body).await?)
        }
        Verb::Set { name, pairs } => args.admin.output.changed(&client.patch(&path(&name), &body(&pairs)?).await?),
        Verb::List => args.admin.output.list(&COLUMNS, &client.get("/domains").await?),
        Verb::Show { name } => args.admin.output.one(&client.get(&path(&name)).await?),
        Verb::Remove { name } => args.admin.output.changed(&client.delete(&path(&name)).await?),
    }
}

fn path(name: &str) -> String {
    format!("/domains/{}", segment(name))
}

fn body(given: &[String]) -> Result<Value, Failure> {
    let mut body = pairs::with_fields(given, &FIELDS)?;
    if let Some(enabled) = body.get_mut("enabled") {
        let flag = enabled.as_str().and_then(|text| text.parse().ok());
        *enabled = Value::Bool(flag.ok_or_else(|| Failure::wrong("enabled: give true or false"))?);
    }
    Ok(Value::Object(body))
}
