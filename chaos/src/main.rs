//! Benchmarks (and, later, faults) for outgate: `outgate-chaos bench NAME [--rounds N] [--json FILE]`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line's answer")]

mod bench;
mod machine;
mod report;
mod voter;

use std::ffi::OsString;
use std::iter;
use std::path::PathBuf;
use std::process::ExitCode;

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
        /// How many nodes outgate and etcd have, where the bench knows several.
        #[arg(long, default_value_t = 1)]
        nodes: usize,
        /// Writes every figure to this file as well.
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Is one of several nodes that a bench measures.
    #[command(hide = true)]
    Voter(voter::Arguments),
    /// Is outgate itself: what a bench starts as its node.
    #[command(hide = true)]
    Node {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().verb {
        Verb::Node { arguments } => return outgate::cli::main_with(iter::once("outgate".into()).chain(arguments)),
        Verb::Voter(arguments) => voter(arguments),
        Verb::Bench { name, rounds, nodes, json } => bench(name, rounds.max(1), nodes, json),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("outgate-chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn voter(arguments: voter::Arguments) -> anyhow::Result<()> {
    voter::run(arguments).await
}

#[tokio::main]
async fn bench(name: Bench, rounds: usize, nodes: usize, json: Option<PathBuf>) -> anyhow::Result<()> {
    let found = bench::run(name, rounds, nodes).await?;
    println!("{found}");
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&found)?;
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
