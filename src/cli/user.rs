//! `outgate user`.

use std::io::BufRead;

use clap::Subcommand;
use serde_json::{Value, json};

use super::client::{Admin, Client, Query, segment};
use super::failure::Failure;
use super::output::Output;
use super::{Outcome, pairs, users_csv};

const COLUMNS: [&str; 6] = ["login", "kind", "domain", "enabled", "lock", "until"];

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    admin: Admin,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Add a user: local@domain, a domain, or a network such as 192.0.2.0/24 with --domain
    Add {
        login: String,
        #[command(flatten)]
        password: PasswordArgs,
        /// The owner domain of a network
        #[arg(long, value_name = "OWNER")]
        domain: Option<String>,
        /// Settings: `outgate settings show` lists them
        #[arg(value_name = "KEY=VALUE")]
        settings: Vec<String>,
    },
    /// Change settings; the value `inherit` takes the domain's
    Set {
        login: String,
        #[arg(value_name = "KEY=VALUE", required = true)]
        settings: Vec<String>,
    },
    /// Change the password; an empty one makes a network do without
    Password {
        login: String,
        #[command(flatten)]
        password: PasswordArgs,
    },
    /// Lock until somebody unlocks
    Lock {
        #[command(flatten)]
        subject: Subject,
        /// For the history
        #[arg(long)]
        reason: Option<String>,
    },
    /// Unlock, and begin to count unlocks anew
    Unlock(Subject),
    /// Begin to count unlocks anew; the lock stays as it is
    Reset(Subject),
    /// Refuse logins
    Disable { login: String },
    /// Permit logins again
    Enable { login: String },
    /// Remove the user with its counters and history
    Remove { login: String },
    /// List users
    List {
        #[arg(long)]
        domain: Option<String>,
    },
    /// Show one user with every setting, its windows and its lock
    Show { login: String },
    /// Take users from CSV: user,domain,password
    Import(users_csv::ImportArgs),
    /// Write users as CSV, with hashes for passwords
    Export {
        #[arg(long)]
        domain: Option<String>,
    },
}

#[derive(clap::Args)]
#[group(multiple = false)]
struct PasswordArgs {
    /// The password, or an argon2id hash; others on this machine can see it in the process list
    #[arg(long)]
    password: Option<String>,
    /// Read the password from the first line of standard input
    #[arg(long)]
    password_stdin: bool,
}

#[derive(clap::Args)]
pub(super) struct Subject {
    pub(super) login: String,
    /// One person inside a smarthost's mail
    #[arg(long)]
    pub(super) identity: Option<String>,
}

impl PasswordArgs {
    fn read(self) -> Result<Option<String>, Failure> {
        if !self.password_stdin {
            return Ok(self.password);
        }
        let mut line = String::new();
        std::io::stdin()
            .lock()
            .read_line(&mut line)
            .map_err(|error| Failure::wrong(format!("cannot read the password from standard input: {error}")))?;
        Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned()))
    }
}

pub(super) async fn execute(args: Args) -> Outcome {
    let client = args.admin.client();
    let output = args.admin.output;
    match args.verb {
        Verb::Add { login, password, domain, settings } => {
            let settings = pairs::settings(&settings)?;
            let body = json!({ "login": login, "owner": domain, "password": password.read()?, "settings": settings });
            output.changed(&client.post("/users", &body).await?)
        }
        Verb::Set { login, settings } => {
            let body = json!({ "settings": pairs::settings(&settings)? });
            output.changed(&client.patch(&path(&login), &body).await?)
        }
        Verb::Password { login, password } => {
            let given = password.read()?.ok_or_else(|| Failure::wrong("give --password-stdin or --password"))?;
            args.admin
                .output
                .changed(&client.put(&format!("{}/password", path(&login)), &json!({ "password": given })).await?)
        }
        Verb::Lock { subject, reason } => change_lock(&client, output, "lock", &subject, reason).await,
        Verb::Unlock(subject) => change_lock(&client, output, "unlock", &subject, None).await,
        Verb::Reset(subject) => change_lock(&client, output, "reset", &subject, None).await,
        Verb::Disable { login } => output.changed(&client.patch(&path(&login), &json!({ "enabled": false })).await?),
        Verb::Enable { login } => output.changed(&client.patch(&path(&login), &json!({ "enabled": true })).await?),
        Verb::Remove { login } => output.changed(&client.delete(&path(&login)).await?),
        Verb::List { domain } => {
            let query = Query::default().and("domain", domain.as_deref());
            output.list(&COLUMNS, &client.get_all("/users", &query, "login").await?)
        }
        Verb::Show { login } => output.one(&client.get(&path(&login)).await?),
        Verb::Import(import) => users_csv::import(&client, output, &import).await,
        Verb::Export { domain } => users_csv::export(&client, output, domain.as_deref()).await,
    }
}

/// `verb` is `lock`, `unlock` or `reset`.
pub(super) async fn change_lock(
    client: &Client,
    output: Output,
    verb: &str,
    subject: &Subject,
    reason: Option<String>,
) -> Outcome {
    let mut body = json!({ "identity": subject.identity });
    if let Some(reason) = reason {
        body["reason"] = Value::String(reason);
    }
    output.changed(&client.post(&format!("{}/{verb}", path(&subject.login)), &body).await?)
}

pub(super) fn path(login: &str) -> String {
    format!("/users/{}", segment(login))
}
