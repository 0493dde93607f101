//! How many decisions a second the one-node store makes, each one synced before it is answered, and what etcd and Redis make
//! of the like: etcd one `put` of a small value, Redis a Lua script that checks and charges the same five windows.
//!
//! outgate runs inside this process, so its CPU figure holds the load generator too; the peers' is of their server alone.

mod etcd;
mod outgate;
mod redis;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::machine;
use crate::report::{Report, Row, Sample, percentile_ms};

const LEVELS: [usize; 4] = [1, 16, 128, 1_024];
const WARM_UP: Duration = Duration::from_millis(500);
const MEASURE: Duration = Duration::from_secs(3);
pub(crate) const USERS: usize = 1_000;

/// One of many who ask for decisions, one after the other.
pub(crate) trait Asker: Send + 'static {
    fn ask(&mut self, number: u64) -> impl Future<Output = anyhow::Result<()>> + Send;
}

#[derive(Clone, Copy, PartialEq)]
enum System {
    Outgate,
    Etcd,
    Redis,
}

const SYSTEMS: [(System, &str); 3] = [
    (System::Outgate, "outgate, one node, Admit"),
    (System::Etcd, "etcd, one node, put"),
    (System::Redis, "Redis, appendfsync always, Lua over five windows"),
];

impl System {
    fn installed(self) -> bool {
        match self {
            Self::Outgate => true,
            Self::Etcd => machine::find_program("etcd").is_some(),
            Self::Redis => machine::find_program("redis-server").is_some(),
        }
    }

    async fn measure(self, level: usize) -> anyhow::Result<Sample> {
        match self {
            Self::Outgate => outgate::measure(level).await,
            Self::Etcd => etcd::measure(level).await,
            Self::Redis => redis::measure(level).await,
        }
    }
}

pub(crate) async fn run(rounds: usize) -> anyhow::Result<Report> {
    let mut rows = Vec::new();
    for level in LEVELS {
        let mut samples = vec![Vec::new(); SYSTEMS.len()];
        for _ in 0..rounds {
            for ((system, _), samples) in SYSTEMS.iter().zip(&mut samples) {
                if system.installed() {
                    samples.push(system.measure(level).await?);
                }
            }
        }
        let base = samples.first().cloned().unwrap_or_default();
        for ((system, name), samples) in SYSTEMS.iter().zip(samples) {
            let load = format!("{level} at once");
            rows.push(match system.installed() {
                true => Row::measured(name, load, samples, &base),
                false => Row::not_installed(name, load),
            });
        }
    }
    let notes = vec![
        format!("Every decision is on disk before its answer; {USERS} Users; {} s per round.", MEASURE.as_secs()),
        "outgate's CPU holds the load generator, the peers' only their server.".to_owned(),
    ];
    Ok(Report { bench: "admission", rounds, rows, notes })
}

/// Lets every asker ask until the time is over; `pid` is whose CPU time is counted.
pub(crate) async fn measure<A: Asker>(askers: Vec<A>, pid: &str) -> anyhow::Result<Sample> {
    let load_average = machine::load();
    let (measuring, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let tasks: Vec<_> = askers
        .into_iter()
        .enumerate()
        .map(|(place, asker)| tokio::spawn(ask_on(asker, place as u64, Arc::clone(&measuring), Arc::clone(&stop))))
        .collect();
    tokio::time::sleep(WARM_UP).await;
    let (cpu, start) = (machine::cpu_seconds(pid), Instant::now());
    measuring.store(true, Ordering::Relaxed);
    tokio::time::sleep(MEASURE).await;
    stop.store(true, Ordering::Relaxed);
    let (cpu, seconds) = (machine::cpu_seconds(pid) - cpu, start.elapsed().as_secs_f64());
    let mut durations = Vec::new();
    for task in tasks {
        durations.extend(task.await??);
    }
    durations.sort_unstable();
    let count = f64::from(u32::try_from(durations.len())?);
    Ok(Sample {
        per_second: count / seconds,
        p50_ms: percentile_ms(&durations, 50),
        p99_ms: percentile_ms(&durations, 99),
        cpu_us_each: cpu * 1e6 / count,
        load_average,
    })
}

async fn ask_on<A: Asker>(
    mut asker: A,
    place: u64,
    measuring: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<Vec<Duration>> {
    let mut durations = Vec::new();
    for number in 0.. {
        let start = Instant::now();
        asker.ask(place.wrapping_mul(7_919).wrapping_add(number)).await?;
        if stop.load(Ordering::Relaxed) {
            break;
        }
        if measuring.load(Ordering::Relaxed) {
            durations.push(start.elapsed());
        }
    }
    Ok(durations)
}
