//! One file per bench. Each measures outgate and its peers in interleaved rounds, so that a change of the machine's mood
//! meets all of them.

mod admission;
mod failover;
mod idle;
mod process;
mod submission;
mod tls;
mod users;

use std::fmt;

use serde::Serialize;

use crate::report::Report;

pub(crate) use admission::voting;

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
pub(crate) enum Bench {
    /// Decisions per second, beside etcd and Redis.
    Admission,
    /// Messages accepted and delivered per second, beside Postfix.
    Submission,
    /// Memory of ten thousand idle sessions.
    Idle,
    /// Time without decisions after the leader of three nodes is killed.
    Failover,
    /// Memory and start of a node with a million Users.
    Users,
}

/// What a bench found, as a table and as JSON.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum Found {
    Speed(Report),
    Memory(idle::Report),
    Pause(failover::Report),
    Users(users::Report),
}

pub(crate) async fn run(bench: Bench, rounds: usize, nodes: usize) -> anyhow::Result<Found> {
    match bench {
        Bench::Admission => admission::run(rounds, nodes).await.map(Found::Speed),
        Bench::Submission => submission::run(rounds, nodes).await.map(Found::Speed),
        Bench::Idle => idle::run().await.map(Found::Memory),
        Bench::Failover => failover::run().await.map(Found::Pause),
        Bench::Users => users::run().await.map(Found::Users),
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Speed(report) => report.fmt(f),
            Self::Memory(report) => report.fmt(f),
            Self::Pause(report) => report.fmt(f),
            Self::Users(report) => report.fmt(f),
        }
    }
}
