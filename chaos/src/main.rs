//! Benchmarks (and, later, faults) for outgate: `outgate-chaos bench NAME [--rounds N] [--json FILE]`.

#![expect(clippy::print_stdout, reason = "a command line's answer")]

mod bench;
mod machine;
mod report;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::bench::Bench;

#[derive(Parser)]
#[command(about, version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Measures outgate and its peers in turn on this machine.
    Bench {
        name: Bench,
        /// How often each point is measured; the peers take turns within a round.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Writes every figure to this file as well.
        #[arg(long)]
        json: Option<PathBuf>,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Arguments::parse().verb {
        Verb::Bench { name, rounds, json } => {
            let report = bench::run(name, rounds.max(1)).await?;
            println!("{report}");
            if let Some(path) = json {
                let text = serde_json::to_string_pretty(&report)?;
                std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
            }
        }
    }
    Ok(())
}
