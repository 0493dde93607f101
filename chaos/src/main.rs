//! outgate-chaos: benchmarks of the product, run by the program itself so that no stale binary is measured.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line program shows its tables")]

mod bench;
mod report;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use serde::Serialize;

#[derive(Parser)]
#[command(name = "outgate-chaos", about = "Benchmarks of outgate beside its peers")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Measures; prints a table of medians and ranges.
    Bench {
        name: Bench,
        /// Rounds in turns with the peer.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Writes every figure of the table there.
        #[arg(long)]
        json: Option<PathBuf>,
        /// Idle sessions to open.
        #[arg(long, default_value_t = 10_000)]
        connections: usize,
    },
    /// Is outgate itself, for the benches.
    #[command(hide = true)]
    Node {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Bench {
    /// Accepted and delivered messages, beside Postfix.
    Submission,
    /// Memory of idle sessions.
    Idle,
}

fn main() -> ExitCode {
    let verb = Arguments::parse().verb;
    if let Verb::Node { arguments } = verb {
        return outgate::cli::main_with(std::iter::once("outgate".into()).chain(arguments));
    }
    match run(verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("outgate-chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Bench { name: Bench::Submission, rounds, json, .. } => {
            let report = bench::submission::run(rounds)?;
            show(&report.table(), &report, json)
        }
        Verb::Bench { name: Bench::Idle, json, connections, .. } => {
            let report = bench::idle::run(connections)?;
            show(&report.table(), &report, json)
        }
        Verb::Node { .. } => Ok(()),
    }
}

fn show(table: &str, report: &impl Serialize, json: Option<PathBuf>) -> Result<()> {
    println!("{table}");
    if let Some(path) = json {
        std::fs::write(path, serde_json::to_vec_pretty(report)?)?;
    }
    Ok(())
}
