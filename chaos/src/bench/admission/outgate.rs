//! The one-node store in this process, on a directory of its own.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use outgate_cluster::command::{DomainPatch, NewUser};
use outgate_cluster::state::settings::{Level, Patch};
use outgate_cluster::{
    AdmissionVerdict, Admit, Class, Cluster, Command, DomainName, Login, OpenOptions, Outcome, UserId, Wish,
};

use super::{Asker, USERS, measure as measure_askers};
use crate::report::Sample;

struct Sender {
    cluster: Cluster,
    users: Arc<[UserId]>,
}

pub(crate) async fn measure(level: usize) -> anyhow::Result<Sample> {
    let directory = tempfile::tempdir()?;
    let options = OpenOptions::alone(directory.path().to_owned(), Duration::from_secs(30));
    Cluster::init(&options)?;
    let cluster = Cluster::open(options).await?;
    let users: Arc<[UserId]> = add_users(&cluster).await?.into();
    let askers = (0..level).map(|_| Sender { cluster: cluster.clone(), users: Arc::clone(&users) }).collect();
    let sample = measure_askers(askers, "self").await;
    cluster.shutdown().await;
    sample
}

/// Users with a limit on every window that is never reached.
async fn add_users(cluster: &Cluster) -> anyhow::Result<Vec<UserId>> {
    let domain = DomainName::new("example.com")?;
    cluster.propose(Command::DomainAdd { name: domain.clone(), patch: DomainPatch::default() }).await?;
    let limits = ["minute", "hour", "day", "week", "month"].map(|window| format!("limit_per_{window}=1000000000"));
    let settings = Patch::parse(&limits, Level::User)?;
    let user = |number: usize| {
        let login = Login::Mailbox { local: format!("user{number}"), domain: domain.clone() };
        let user =
            NewUser { login, owner: None, password_hash: Some("$argon2id$".to_owned()), settings: settings.clone() };
        Command::UserAdd { user }
    };
    let Outcome::Batch(outcomes) = cluster.propose(Command::Batch((0..USERS).map(user).collect())).await?.outcome
    else {
        bail!("a batch was answered with another outcome");
    };
    let id = |outcome: Outcome| match outcome {
        Outcome::UserAdded(id) => Ok(id),
        other @ (Outcome::Done
        | Outcome::Batch(_)
        | Outcome::Admission(_)
        | Outcome::Imported(_)
        | Outcome::Lock(_)
        | Outcome::AuthFailure { .. }
        | Outcome::Joined(_)
        | Outcome::Refused(_)) => bail!("a user was not added: {other:?}"),
    };
    outcomes.into_iter().map(id).collect()
}

impl Asker for Sender {
    async fn ask(&mut self, number: u64) -> anyhow::Result<()> {
        let id = self.cluster.next_admission();
        let user = self.users.get(usize::try_from(number)? % self.users.len()).copied().context("no users")?;
        let admit = Admit {
            id,
            settled_below: 0,
            user,
            identity: None,
            wish: Wish::Accept,
            class: Class::Clean,
            score: 12,
            recipients: vec![number],
            null_sender: false,
            to_contact: false,
            message: format!("{number:026}"),
        };
        let decided = self.cluster.admit(admit).await?;
        self.cluster.settle(id);
        anyhow::ensure!(decided.outcome.verdict == AdmissionVerdict::Accepted, "{:?}", decided.outcome.verdict);
        Ok(())
    }
}
