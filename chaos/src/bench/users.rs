//! One node with a million Users, each of which has sent a message: its memory, and how long a start takes.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use outgate_cluster::command::{DomainPatch, NewUser};
use outgate_cluster::state::settings::Patch;
use outgate_cluster::{Cluster, Command, DomainName, Login, OpenOptions, Outcome, UserId};
use serde::Serialize;
use tokio::task::JoinSet;

use super::process;
use super::submission::product::{Place, node};
use super::voting::decide;
use crate::machine::resident_mib;

const DOMAINS: usize = 1_000;
const USERS_PER_DOMAIN: usize = 1_000;
/// As long as a real one.
const PASSWORD_HASH: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$Z7b3t0yWz8m6Q0m2kq3vZyJfYwYVt1m5hZ0b3t0yWz8";
/// Decisions that are asked for at once.
const ADMISSIONS_MAX: usize = 512;
/// Until memory that only the start needed is given back.
const CALM: Duration = Duration::from_secs(5);

#[derive(Serialize)]
pub(crate) struct Report {
    users: usize,
    starts: Vec<Start>,
}

#[derive(Serialize)]
struct Start {
    after: &'static str,
    ready_seconds: f64,
    resident_mib: f64,
}

pub(crate) async fn run() -> Result<Report> {
    let directory = tempfile::tempdir()?;
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    let place = Place::new(directory.path(), 1, nowhere)?;
    node(&["init", "--data", &place.data, "--cluster", &place.cluster])?;
    fill(&Path::new(&place.data).join("cluster")).await?;
    let (mut starts, mut running) = (Vec::new(), None);
    for after in ["SIGTERM", "SIGKILL", "SIGTERM"] {
        running.take().map_or(Ok(()), |process| stop(process, after))?;
        let begun = Instant::now();
        let process = place.run()?;
        process::wait_for_port(place.submission)?;
        let ready_seconds = begun.elapsed().as_secs_f64();
        tokio::time::sleep(CALM).await;
        starts.push(Start { after, ready_seconds, resident_mib: resident_mib(process.id())? });
        running = Some(process);
    }
    running.take().map_or(Ok(()), |process| stop(process, "SIGTERM"))?;
    Ok(Report { users: DOMAINS * USERS_PER_DOMAIN, starts })
}

fn stop(mut process: Child, signal: &str) -> Result<()> {
    if signal == "SIGKILL" {
        process.kill()?;
        process.wait()?;
    } else {
        process::end(&mut process);
    }
    Ok(())
}

/// Adds the Users and has each send one message.
async fn fill(directory: &Path) -> Result<()> {
    let cluster = Cluster::open(OpenOptions::alone(directory.to_owned(), Duration::from_secs(30))).await?;
    let mut users = Vec::with_capacity(DOMAINS * USERS_PER_DOMAIN);
    for number in 0..DOMAINS {
        users.extend(add_domain(&cluster, number).await?);
    }
    let mut asked = JoinSet::new();
    for user in users {
        if asked.len() == ADMISSIONS_MAX {
            asked.join_next().await.context("a decision")???;
        }
        let cluster = cluster.clone();
        asked.spawn(async move { decide(&cluster, user, user.0).await.map(drop) });
    }
    for sent in asked.join_all().await {
        sent?;
    }
    cluster.shutdown().await;
    Ok(())
}

async fn add_domain(cluster: &Cluster, number: usize) -> Result<Vec<UserId>> {
    let domain = DomainName::new(&format!("domain{number}.example"))?;
    cluster.propose(Command::DomainAdd { name: domain.clone(), patch: DomainPatch::default() }).await?;
    let user = |number: usize| {
        let login = Login::Mailbox { local: format!("user{number}"), domain: domain.clone() };
        let password_hash = Some(PASSWORD_HASH.to_owned());
        Command::UserAdd { user: NewUser { login, owner: None, password_hash, settings: Patch::default() } }
    };
    let batch = Command::Batch((0..USERS_PER_DOMAIN).map(user).collect());
    let Outcome::Batch(outcomes) = cluster.propose(batch).await?.outcome else { bail!("no answer to a batch") };
    let added = outcomes.into_iter().map(|outcome| {
        let Outcome::UserAdded(user) = outcome else { bail!("a user was not added: {outcome:?}") };
        Ok(user)
    });
    added.collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| Users, each with windows | start after | ready after s | resident MiB |")?;
        write!(f, "|---|---|---|---|")?;
        for Start { after, ready_seconds, resident_mib } in &self.starts {
            write!(f, "\n| {} | {after} | {ready_seconds:.1} | {resident_mib:.0} |", self.users)?;
        }
        Ok(())
    }
}
