//! `outgate dkim`.

use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::Outcome;
use super::client::{Admin, Query, segment};
use super::output::{Output, cell, print};

const COLUMNS: [&str; 5] = ["domain", "selector", "algorithm", "created", "dns_name"];

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    admin: Admin,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make keys and print their DNS records
    Create {
        domain: String,
        /// The domain's dkim_selector where absent; the Ed25519 key beside an RSA key gets `-ed25519` behind it
        #[arg(long)]
        selector: Option<String>,
        #[arg(long, value_enum, default_value_t = Algorithm::Both)]
        algorithm: Algorithm,
    },
    /// List keys
    List {
        #[arg(long)]
        domain: Option<String>,
    },
    /// Print a domain's DNS records
    Show { domain: String },
    /// Delete a key; mail is no longer signed with it
    Remove { domain: String, selector: String },
}

#[derive(ValueEnum, Clone, Copy)]
enum Algorithm {
    Rsa,
    Ed25519,
    Both,
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Self::Rsa => "rsa",
            Self::Ed25519 => "ed25519",
            Self::Both => "both",
        }
    }
}

pub(super) async fn execute(args: Args) -> Outcome {
    let client = args.admin.client();
    let output = args.admin.output;
    match args.verb {
        Verb::Create { domain, selector, algorithm } => {
            let body = json!({ "domain": domain, "selector": selector, "algorithm": algorithm.name() });
            records(output, &client.post("/dkim", &body).await?)
        }
        Verb::List { domain } => {
            let query = Query::default().and("domain", domain.as_deref());
            output.list(&COLUMNS, &client.get(&query.of("/dkim")).await?)
        }
        Verb::Show { domain } => records(output, &client.get(&format!("/dkim/{}", segment(&domain))).await?),
        Verb::Remove { domain, selector } => {
            output.changed(&client.delete(&format!("/dkim/{}/{}", segment(&domain), segment(&selector))).await?)
        }
    }
}

/// As lines of a zone file, ready to be pasted.
fn records(output: Output, keys: &Value) -> Outcome {
    match output {
        Output::Json => output.one(keys),
        Output::Csv => output.list(&["domain", "selector", "algorithm", "created", "dns_name", "dns_value"], keys),
        Output::Table => {
            let lines = keys.as_array().map_or_else(Vec::new, |keys| {
                keys.iter().map(|key| format!("{}\n", cell(&key["dns_zone"]))).collect::<Vec<_>>()
            });
            print(&lines.join("\n"))
        }
    }
}
