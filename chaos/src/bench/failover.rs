//! How long nobody decides after the leader is killed: `kill -9` under load, and the time until the first admission that
//! was asked for afterwards is answered.

use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::voting::Nodes;
use crate::machine;

const ROUNDS: usize = 50;
/// Askers at each node all the while.
const ASKERS: usize = 16;
/// Load before the kill.
const CALM: Duration = Duration::from_millis(500);

/// Seconds, sorted.
#[derive(Serialize)]
pub(crate) struct Report {
    seconds: Vec<f64>,
    load_average: f64,
}

pub(crate) async fn run() -> anyhow::Result<Report> {
    let load_average = machine::load();
    let mut nodes = Nodes::start().await?;
    nodes.keep_busy(ASKERS).await?;
    let mut seconds = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        tokio::time::sleep(CALM).await;
        let leader = nodes.leader().await?;
        let killed = Instant::now();
        nodes.kill(leader).await?;
        let decided = nodes.first_decision_without(leader).await?;
        seconds.push(decided.duration_since(killed).as_secs_f64());
        nodes.restart(leader, ASKERS).await?;
    }
    seconds.sort_by(f64::total_cmp);
    Ok(Report { seconds, load_average })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.seconds.len();
        let at = |permille: usize| self.seconds.get((count - 1) * permille / 1_000).copied().unwrap_or(f64::NAN);
        writeln!(f, "bench failover, {count} times kill -9 of the leader under load\n")?;
        writeln!(f, "| p50 s | p90 s | max s | load average |\n|---|---|---|---|")?;
        write!(f, "| {:.2} | {:.2} | {:.2} | {:.1} |", at(500), at(900), at(1_000), self.load_average)
    }
}
