//! Many who ask for decisions, each one after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{MEASURE, WARM_UP};
use crate::machine;

pub(crate) trait Asker: Send + 'static {
    fn ask(&mut self, number: u64) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// What came of it.
pub(crate) struct Asked {
    /// Of each decision, in no order.
    pub(crate) durations: Vec<Duration>,
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
}

/// Lets every asker ask until the time is over; `pids` are the processes whose CPU time is counted.
pub(crate) async fn measure<A: Asker>(askers: Vec<A>, pids: &[String]) -> anyhow::Result<Asked> {
    let cpu = || pids.iter().map(|pid| machine::cpu_seconds(pid)).sum::<f64>();
    let (measuring, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let tasks: Vec<_> = askers
        .into_iter()
        .enumerate()
        .map(|(place, asker)| tokio::spawn(ask_on(asker, place as u64, Arc::clone(&measuring), Arc::clone(&stop))))
        .collect();
    tokio::time::sleep(WARM_UP).await;
    let (cpu_before, start) = (cpu(), Instant::now());
    measuring.store(true, Ordering::Relaxed);
    tokio::time::sleep(MEASURE).await;
    stop.store(true, Ordering::Relaxed);
    let (cpu_seconds, seconds) = (cpu() - cpu_before, start.elapsed().as_secs_f64());
    let mut durations = Vec::new();
    for task in tasks {
        durations.extend(task.await??);
    }
    Ok(Asked { durations, seconds, cpu_seconds })
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
