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

/// A server under load: where its nodes listen, which credentials it knows, which processes to charge.
pub(crate) struct Server {
    addresses: Vec<SocketAddr>,
    user: &'static str,
    password: &'static str,
    processes: Vec<std::process::Child>,
    /// Removed with the server.
    _directory: tempfile::TempDir,
}

/// Runs all shapes `rounds` times, outgate and Postfix in turns.
pub(crate) async fn run(rounds: usize, nodes: usize) -> Result<Report> {
    let mut rows = Vec::new();
    for shape in SHAPES {
        rows.extend(measure_shape(shape, rounds, nodes).await?);
    }
    let disks = if nodes == 1 { "on disk" } else { "on two disks" };
    let notes = vec![
        format!("From AUTH PLAIN over STARTTLS to delivery into a sink; every message is {disks} before its 250."),
        "p50 and p99 are from MAIL to 250; CPU is that of all the server's processes.".to_owned(),
    ];
    Ok(Report { bench: "submission", rounds, rows, notes })
}

async fn measure_shape(shape: Shape, rounds: usize, nodes: usize) -> Result<Vec<Row>> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        ours.push(measure(shape, |sink| product::start(sink, nodes)).await.context("outgate")?);
        if postfix::is_installed() {
            theirs.push(measure(shape, postfix::start).await.context("Postfix")?);
        }
    }
    let peer = match theirs.is_empty() {
        true => Row::not_installed("Postfix", shape.name()),
        false => Row::measured("Postfix", shape.name(), theirs, &ours),
    };
    let name = if nodes == 1 { "outgate".to_owned() } else { format!("outgate, {nodes} nodes") };
    Ok(vec![Row::measured(&name, shape.name(), ours.clone(), &ours), peer])
}

async fn measure(shape: Shape, start: impl Fn(SocketAddr) -> Result<Server>) -> Result<Sample> {
    let load_average = machine::load();
    let sink = Sink::start().await?;
    let server = start(sink.address)?;
    // The first login hashes the password and the first delivery opens the connection: once per server, not per message.
    Load { shape: Shape { messages: WARM_UP, connections: 2, ..shape }, server: &server }.run().await?;
    sink.wait(WARM_UP, DELIVERY_PATIENCE).await?;
    let (cpu_before, started) = (server.cpu_seconds(), Instant::now());
    let mut done = Load { shape, server: &server }.run().await?;
    ensure!(done.refused == 0, "{} messages were refused, the first: {}", done.refused, done.first_refusal);
    sink.wait(WARM_UP + shape.messages, DELIVERY_PATIENCE).await?;
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), server.cpu_seconds() - cpu_before);
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
    /// At the nodes in turn.
    pub(crate) fn login(&self, number: usize) -> login::Login {
        login::Login::new(self.addresses[number % self.addresses.len()], self.user, self.password)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.processes[0].id()
    }

    fn cpu_seconds(&self) -> f64 {
        self.processes.iter().map(|process| machine::tree_cpu_seconds(process.id())).sum()
    }
}

impl Drop for Server {
    /// Ends it gently, so that Postfix takes its children along.
    fn drop(&mut self) {
        self.processes.iter_mut().for_each(crate::bench::process::end);
    }
}
