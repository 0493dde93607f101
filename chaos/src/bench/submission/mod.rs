//! The main job against Postfix: the same clients, the same sink, the same machine, in turns.
//!
//! Every message comes with AUTH PLAIN over STARTTLS, is on disk before its 250, and is delivered to a
//! sink in this process. What is counted: messages per second from the first MAIL until the sink has
//! the last message, the time from MAIL to 250, and CPU seconds of the server's processes.

mod load;
pub(crate) mod login;
mod postfix;
pub(crate) mod product;
mod sink;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::bench::cpu;
use crate::report::{Range, machine_load};

use load::Load;
use sink::Sink;

/// How long the sink may take to get the rest once all clients are done.
const DELIVERY_PATIENCE: Duration = Duration::from_secs(120);

/// One kind of load.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Shape {
    pub(crate) connections: usize,
    /// Messages in one session; 1 = a TLS handshake and a login for each.
    pub(crate) per_session: usize,
    pub(crate) size: usize,
    pub(crate) messages: usize,
}

pub(crate) const SHAPES: [Shape; 6] = [
    Shape { connections: 20, per_session: 100, size: 2 << 10, messages: 4_000 },
    Shape { connections: 100, per_session: 100, size: 2 << 10, messages: 6_000 },
    Shape { connections: 20, per_session: 1, size: 2 << 10, messages: 1_500 },
    Shape { connections: 100, per_session: 1, size: 2 << 10, messages: 1_500 },
    Shape { connections: 20, per_session: 100, size: 50 << 10, messages: 1_500 },
    Shape { connections: 100, per_session: 1, size: 50 << 10, messages: 1_000 },
];

/// A server under load: where it listens, which credentials it knows, which process to charge.
pub(crate) struct Server {
    address: SocketAddr,
    user: &'static str,
    password: &'static str,
    pub(crate) pid: u32,
    process: std::process::Child,
    /// Removed with the server.
    _directory: tempfile::TempDir,
}

#[derive(Clone, Serialize)]
pub(crate) struct Measured {
    pub(crate) messages_per_s: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) cpu_s_per_1000: f64,
    pub(crate) refused: usize,
}

#[derive(Serialize)]
pub(crate) struct Row {
    pub(crate) shape: Shape,
    pub(crate) outgate: Summary,
    /// Absent where no Postfix is installed.
    pub(crate) postfix: Option<Summary>,
    /// outgate's messages per second in terms of Postfix's.
    pub(crate) speed_ratio: Option<f64>,
    pub(crate) cpu_ratio: Option<f64>,
}

#[derive(Serialize)]
pub(crate) struct Summary {
    pub(crate) messages_per_s: Range,
    pub(crate) p50_ms: Range,
    pub(crate) p99_ms: Range,
    pub(crate) cpu_s_per_1000: Range,
}

#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) rounds: usize,
    pub(crate) load_before: f64,
    pub(crate) rows: Vec<Row>,
}

/// Runs all shapes `rounds` times, outgate and Postfix in turns.
pub(crate) fn run(rounds: usize) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let load_before = machine_load()?;
    let rows = SHAPES.iter().map(|shape| runtime.block_on(measure_shape(*shape, rounds))).collect::<Result<_>>()?;
    Ok(Report { rounds, load_before, rows })
}

async fn measure_shape(shape: Shape, rounds: usize) -> Result<Row> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        ours.push(measure(shape, product::start).await.context("outgate")?);
        if postfix::is_installed() {
            theirs.push(measure(shape, postfix::start).await.context("postfix")?);
        }
    }
    let outgate = summary(&ours);
    let postfix = (!theirs.is_empty()).then(|| summary(&theirs));
    let speed_ratio = postfix.as_ref().map(|peer| outgate.messages_per_s.median / peer.messages_per_s.median);
    let cpu_ratio = postfix.as_ref().map(|peer| outgate.cpu_s_per_1000.median / peer.cpu_s_per_1000.median);
    Ok(Row { shape, outgate, postfix, speed_ratio, cpu_ratio })
}

async fn measure(shape: Shape, start: fn(SocketAddr) -> Result<Server>) -> Result<Measured> {
    let sink = Sink::start().await?;
    let server = start(sink.address)?;
    // The first login hashes the password and the first delivery opens the connection: both once per server, not per message.
    Load { shape: Shape { messages: 20, connections: 2, ..shape }, server: &server }.run().await?;
    sink.wait(20, DELIVERY_PATIENCE).await?;
    let (cpu_before, started) = (cpu::tree_seconds(server.pid)?, Instant::now());
    let done = Load { shape, server: &server }.run().await?;
    ensure!(done.refused == 0, "{} messages were refused, the first: {}", done.refused, done.first_refusal);
    sink.wait(20 + shape.messages, DELIVERY_PATIENCE).await?;
    let elapsed = started.elapsed().as_secs_f64();
    let cpu = cpu::tree_seconds(server.pid)? - cpu_before;
    Ok(Measured {
        messages_per_s: shape.messages as f64 / elapsed,
        p50_ms: done.percentile_ms(0.50),
        p99_ms: done.percentile_ms(0.99),
        cpu_s_per_1000: cpu * 1000.0 / shape.messages as f64,
        refused: done.refused,
    })
}

fn summary(rounds: &[Measured]) -> Summary {
    let range = |value: fn(&Measured) -> f64| Range::of(rounds.iter().map(value));
    Summary {
        messages_per_s: range(|m| m.messages_per_s),
        p50_ms: range(|m| m.p50_ms),
        p99_ms: range(|m| m.p99_ms),
        cpu_s_per_1000: range(|m| m.cpu_s_per_1000),
    }
}

impl Report {
    /// The table as it stands in README.
    pub(crate) fn table(&self) -> String {
        let mut lines = vec![
            "| load | outgate msg/s | Postfix msg/s | ratio | outgate p50 / p99 ms | Postfix p50 / p99 ms | outgate CPU s/1,000 | Postfix CPU s/1,000 |".to_owned(),
            "|---|---|---|---|---|---|---|---|".to_owned(),
        ];
        lines.extend(self.rows.iter().map(Row::line));
        lines.push(format!(
            "\nMedians (smallest–largest) of {} rounds in turns; load average before: {:.2}.",
            self.rounds, self.load_before
        ));
        lines.join("\n")
    }
}

impl Row {
    fn line(&self) -> String {
        let shape = self.shape;
        let kind = if shape.per_session == 1 { "one message a session" } else { "reused sessions" };
        let name = format!("{} KiB, {} connections, {kind}", shape.size >> 10, shape.connections);
        let peer =
            |show: fn(&Summary) -> String| self.postfix.as_ref().map_or_else(|| "not installed".to_owned(), show);
        let speed = |s: &Summary| s.messages_per_s.show(0);
        let latency = |s: &Summary| format!("{:.1} / {:.1}", s.p50_ms.median, s.p99_ms.median);
        let cpu = |s: &Summary| s.cpu_s_per_1000.show(2);
        let ratio = self.speed_ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.1}×"));
        format!(
            "| {name} | {} | {} | {ratio} | {} | {} | {} | {} |",
            speed(&self.outgate),
            peer(speed),
            latency(&self.outgate),
            peer(latency),
            cpu(&self.outgate),
            peer(cpu)
        )
    }
}

impl Server {
    pub(crate) fn login(&self) -> login::Login {
        login::Login::new(self.address, self.user, self.password)
    }
}

impl Drop for Server {
    /// Ends it gently, so that Postfix takes its children along.
    fn drop(&mut self) {
        crate::bench::process::end(&mut self.process);
    }
}
