//! Askers inside a node's process; the one-node store in this one, on a directory of its own.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use outgate_cluster::command::{DomainPatch, NewUser};
use outgate_cluster::state::settings::{Level, Patch};
use outgate_cluster::{
    Admission, AdmissionVerdict, Admit, Applied, Class, Cluster, Command, DomainName, Login, OpenOptions, Outcome,
    UserId, Wish,
};

use super::USERS;
use super::asker::{self, Asked, Asker};

/// As a client would wait that was told 451, only shorter.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

struct Sender {
    cluster: Cluster,
    users: Arc<[UserId]>,
}

pub(super) async fn measure(level: usize) -> anyhow::Result<Asked> {
    let directory = tempfile::tempdir()?;
    let options = OpenOptions::alone(directory.path().to_owned(), Duration::from_secs(30));
    Cluster::init(&options)?;
    let cluster = Cluster::open(options).await?;
    add_users(&cluster).await?;
    let asked = ask(&cluster, level).await;
    cluster.shutdown().await;
    asked
}

/// `level` askers in this process, until it ends; what fails is asked again.
pub(crate) fn ask_forever(cluster: &Cluster, level: usize) {
    for mut sender in senders(cluster, level) {
        tokio::spawn(async move {
            for number in 0.. {
                if sender.ask(number).await.is_err() {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        });
    }
}

/// One decision, however often it must be asked for.
pub(crate) async fn ask_once(cluster: &Cluster) -> anyhow::Result<()> {
    let mut sender = senders(cluster, 1).pop().context("no sender")?;
    while sender.ask(0).await.is_err() {
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    Ok(())
}

fn senders(cluster: &Cluster, level: usize) -> Vec<Sender> {
    let users: Arc<[UserId]> =
        cluster.read(|state| state.users(None, None, USERS).iter().map(|user| user.id).collect());
    (0..level).map(|_| Sender { cluster: cluster.clone(), users: Arc::clone(&users) }).collect()
}

/// `level` askers in this process, who send for the Users of [`add_users`].
pub(crate) async fn ask(cluster: &Cluster, level: usize) -> anyhow::Result<Asked> {
    asker::measure(senders(cluster, level), &["self".to_owned()]).await
}

/// Users with a limit on every window that is never reached.
pub(crate) async fn add_users(cluster: &Cluster) -> anyhow::Result<()> {
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
    let refused = outcomes.iter().find(|outcome| !matches!(outcome, Outcome::UserAdded(_)));
    refused.map_or(Ok(()), |refused| bail!("a user was not added: {refused:?}"))
}

/// One message of the User to the recipient of this number.
pub(crate) async fn decide(cluster: &Cluster, user: UserId, number: u64) -> anyhow::Result<Applied<Admission>> {
    let id = cluster.next_admission();
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
    let decided = cluster.admit(admit).await?;
    cluster.settle(id);
    Ok(decided)
}

impl Asker for Sender {
    async fn ask(&mut self, number: u64) -> anyhow::Result<()> {
        let user = self.users.get(usize::try_from(number)? % self.users.len()).copied().context("no users")?;
        let decided = decide(&self.cluster, user, number).await?;
        anyhow::ensure!(decided.outcome.verdict == AdmissionVerdict::Accepted, "{:?}", decided.outcome.verdict);
        Ok(())
    }
}
