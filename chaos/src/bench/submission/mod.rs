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

use crate::machine;
use crate::report::{Report, Row, Sample};

use load::Load;
use sink::Sink;

/// How long the sink may take to get the rest once all clients are done.
const DELIVERY_PATIENCE: Duration = Duration::from_secs(120);
/// Messages before the clock starts.
const WARM_UP: usize = 20;

/// One kind of load.
#[derive(Clone, Copy)]
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

/// Runs all shapes `rounds` times, outgate and Postfix in turns.
pub(crate) async fn run(rounds: usize) -> Result<Report> {
    let mut rows = Vec::new();
    for shape in SHAPES {
        rows.extend(measure_shape(shape, rounds).await?);
    }
    let notes = vec![
        "From AUTH PLAIN over STARTTLS to delivery into a sink; every message is on disk before its 250.".to_owned(),
        "p50 and p99 are from MAIL to 250; CPU is that of all the server's processes.".to_owned(),
    ];
    Ok(Report { bench: "submission", rounds, rows, notes })
}

async fn measure_shape(shape: Shape, rounds: usize) -> Result<Vec<Row>> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        ours.push(measure(shape, product::start).await.context("outgate")?);
        if postfix::is_installed() {
            theirs.push(measure(shape, postfix::start).await.context("Postfix")?);
        }
    }
    let peer = match theirs.is_empty() {
        true => Row::not_installed("Postfix", shape.name()),
        false => Row::measured("Postfix", shape.name(), theirs, &ours),
    };
    Ok(vec![Row::measured("outgate", shape.name(), ours.clone(), &ours), peer])
}

async fn measure(shape: Shape, start: fn(SocketAddr) -> Result<Server>) -> Result<Sample> {
    let load_average = machine::load();
    let sink = Sink::start().await?;
    let server = start(sink.address)?;
    // The first login hashes the password and the first delivery opens the connection: once per server, not per message.
    Load { shape: Shape { messages: WARM_UP, connections: 2, ..shape }, server: &server }.run().await?;
    sink.wait(WARM_UP, DELIVERY_PATIENCE).await?;
    let (cpu_before, started) = (machine::tree_cpu_seconds(server.pid), Instant::now());
    let mut done = Load { shape, server: &server }.run().await?;
    ensure!(done.refused == 0, "{} messages were refused, the first: {}", done.refused, done.first_refusal);
    sink.wait(WARM_UP + shape.messages, DELIVERY_PATIENCE).await?;
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), machine::tree_cpu_seconds(server.pid) - cpu_before);
    done.latencies.sort_unstable();
    Ok(Sample::of(&done.latencies, seconds, cpu, load_average))
}

impl Shape {
    fn name(self) -> String {
        let sessions = if self.per_session == 1 { "one message a session" } else { "reused sessions" };
        format!("{} KiB, {} connections, {sessions}", self.size >> 10, self.connections)
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
