//! How many decisions a second the store makes, each one synced before it is answered, and what etcd and Redis make of the
//! like: etcd one `put` of a small value, Redis (one node) a Lua script that checks and charges the same five windows.
//!
//! outgate's askers run inside its processes, so its CPU figure holds the load generator too; the peers' is of their
//! servers alone.

mod asker;
mod etcd;
mod nodes;
mod outgate;
mod redis;

use std::time::Duration;

use anyhow::ensure;

use self::asker::Asked;
use self::nodes::{Nodes, Where};
use crate::machine;
use crate::report::{Report, Row, Sample};

/// Three nodes, and what their processes do.
pub(crate) mod voting {
    pub(crate) use super::nodes::Nodes;
    pub(crate) use super::outgate::{add_users, ask, ask_forever, ask_once, decide};
}

const LEVELS: [usize; 4] = [1, 16, 128, 1_024];
pub(crate) const WARM_UP: Duration = Duration::from_millis(500);
pub(crate) const MEASURE: Duration = Duration::from_secs(3);
pub(crate) const USERS: usize = 1_000;

#[derive(Clone, Copy, PartialEq)]
enum System {
    Outgate,
    /// Three processes; where their askers are.
    Nodes(Where),
    Etcd(usize),
    Redis,
}

const REDIS: (System, &str) = (System::Redis, "Redis, one node, appendfsync always, Lua over five windows");
const ONE: [(System, &str); 3] =
    [(System::Outgate, "outgate, one node, Admit"), (System::Etcd(1), "etcd, one node, put"), REDIS];
const THREE: [(System, &str); 5] = [
    (System::Nodes(Where::All), "outgate, three nodes, Admit at all"),
    (System::Nodes(Where::Leader), "outgate, three nodes, Admit at the leader"),
    (System::Nodes(Where::Follower), "outgate, three nodes, Admit at a follower"),
    (System::Etcd(3), "etcd, three nodes, put"),
    REDIS,
];

impl System {
    fn installed(self) -> bool {
        match self {
            Self::Outgate | Self::Nodes(_) => true,
            Self::Etcd(_) => machine::find_program("etcd").is_some(),
            Self::Redis => machine::find_program("redis-server").is_some(),
        }
    }

    async fn measure(self, level: usize) -> anyhow::Result<Sample> {
        let load_average = machine::load();
        let Asked { mut durations, seconds, cpu_seconds } = match self {
            Self::Outgate => outgate::measure(level).await?,
            Self::Nodes(place) => Nodes::start().await?.measure(level, place).await?,
            Self::Etcd(nodes) => etcd::measure(level, nodes).await?,
            Self::Redis => redis::measure(level).await?,
        };
        durations.sort_unstable();
        Ok(Sample::of(&durations, seconds, cpu_seconds, load_average))
    }
}

pub(crate) async fn run(rounds: usize, nodes: usize) -> anyhow::Result<Report> {
    ensure!(nodes == 1 || nodes == 3, "--nodes {nodes}: give 1 or 3");
    let systems: &[(System, &str)] = if nodes == 1 { &ONE } else { &THREE };
    let mut rows = Vec::new();
    for level in LEVELS {
        let mut samples = vec![Vec::new(); systems.len()];
        for _ in 0..rounds {
            for ((system, _), samples) in systems.iter().zip(&mut samples) {
                if system.installed() {
                    samples.push(system.measure(level).await?);
                }
            }
        }
        let base = samples.first().cloned().unwrap_or_default();
        for ((system, name), samples) in systems.iter().zip(samples) {
            let load = format!("{level} at once");
            rows.push(match system.installed() {
                true => Row::measured(name, load, samples, &base),
                false => Row::not_installed(name, load),
            });
        }
    }
    let notes = vec![
        format!("Every decision is on disk before its answer; {USERS} Users; {} s per round.", MEASURE.as_secs()),
        "outgate's CPU holds the load generator, the peers' only their servers.".to_owned(),
    ];
    Ok(Report { bench: "admission", rounds, rows, notes })
}
