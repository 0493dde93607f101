//! One file per bench. Each measures outgate and its peers in interleaved rounds, so that a change of the machine's mood
//! meets all of them.

mod admission;

use crate::report::Report;

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
pub(crate) enum Bench {
    /// Decisions per second of the one-node store, beside etcd and Redis.
    Admission,
}

pub(crate) async fn run(bench: Bench, rounds: usize) -> anyhow::Result<Report> {
    match bench {
        Bench::Admission => admission::run(rounds).await,
    }
}
