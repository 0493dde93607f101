//! A node's replicated state as a process of its own, driven by lines on standard input: what benches with several nodes
//! start. Each line is answered by one.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use outgate_cluster::{Actor, Cluster, OpenOptions};
use tokio::sync::mpsc;

use crate::bench::voting::{add_users, ask, ask_forever, ask_once};

/// Microseconds of each decision as u32, in the node's directory.
pub(crate) const DURATIONS: &str = "durations";
const VOTERS: usize = 3;
const POLL: Duration = Duration::from_millis(20);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[arg(long)]
    directory: PathBuf,
    #[arg(long)]
    listen: SocketAddr,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let options = OpenOptions {
        listen: Some(arguments.listen),
        ..OpenOptions::alone(arguments.directory.clone(), Duration::from_secs(30))
    };
    let cluster = Cluster::open(options).await?;
    let (questions, mut asked) = mpsc::channel(1);
    // A thread of its own: a read that never ends must not hold up the runtime.
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if questions.blocking_send(line).is_err() {
                return;
            }
        }
    });
    while let Some(line) = asked.recv().await {
        match answer(&cluster, &line, &arguments.directory).await {
            Ok(text) => println!("{text}"),
            Err(error) => println!("error {error:#}"),
        }
    }
    cluster.shutdown().await;
    Ok(())
}

async fn answer(cluster: &Cluster, line: &str, directory: &Path) -> anyhow::Result<String> {
    match line.split_once(' ').unwrap_or((line, "")) {
        ("token", _) => {
            let token = cluster.token(Duration::from_secs(60), Actor("bench".to_owned())).await?;
            Ok(token.to_string())
        }
        ("ready", _) => {
            while !cluster.is_ready() || cluster.voters().len() < VOTERS {
                tokio::time::sleep(POLL).await;
            }
            Ok("ready".to_owned())
        }
        ("leader", _) => Ok(cluster.leader().context("no leader")?.to_string()),
        ("users", _) => add_users(cluster).await.map(|()| "added".to_owned()),
        ("forever", level) => {
            cluster.barrier().await?;
            ask_forever(cluster, level.parse()?);
            Ok("asking".to_owned())
        }
        ("once", _) => ask_once(cluster).await.map(|()| "decided".to_owned()),
        ("load", level) => {
            cluster.barrier().await?;
            let asked = ask(cluster, level.parse()?).await?;
            let micros = asked.durations.iter().map(|duration| u32::try_from(duration.as_micros()).unwrap_or(u32::MAX));
            let bytes: Vec<u8> = micros.flat_map(u32::to_le_bytes).collect();
            std::fs::write(directory.join(DURATIONS), bytes)?;
            Ok(format!("{} {}", asked.seconds, asked.cpu_seconds))
        }
        _ => anyhow::bail!("`{line}` is no question"),
    }
}
