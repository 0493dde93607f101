//! Memory of a node that holds many idle sessions, each with TLS and a login.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::net::TcpSocket;

use super::submission::{Server, login, product};

/// Handshakes under way at once.
const OPENING_MAX: usize = 50;
/// Sessions from one loopback address: fewer than there are ports.
const PER_ADDRESS: usize = 900;

#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) connections: usize,
    pub(crate) resident_before_mib: f64,
    pub(crate) resident_mib: f64,
    pub(crate) kib_per_connection: f64,
}

pub(crate) fn run(connections: usize) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    let server = product::start(nowhere)?;
    let before = resident_mib(server.pid)?;
    let held = runtime.block_on(open(&server, connections))?;
    let after = resident_mib(server.pid)?;
    drop(held);
    let kib_per_connection = (after - before) * 1024.0 / connections as f64;
    Ok(Report { connections, resident_before_mib: before, resident_mib: after, kib_per_connection })
}

async fn open(server: &Server, connections: usize) -> Result<Vec<login::Stream>> {
    let mut held = Vec::with_capacity(connections);
    let numbers: Vec<usize> = (0..connections).collect();
    for part in numbers.chunks(OPENING_MAX) {
        let opening: Vec<_> = part.iter().map(|number| tokio::spawn(session(*number, server.login()))).collect();
        for stream in opening {
            held.push(stream.await??);
        }
    }
    Ok(held)
}

async fn session(number: usize, login: login::Login) -> Result<login::Stream> {
    let host = u8::try_from(2 + number / PER_ADDRESS)?;
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 9, host), 0)))?;
    login.over(socket.connect(login.address).await?).await
}

fn resident_mib(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

impl Report {
    pub(crate) fn table(&self) -> String {
        format!(
            "| idle sessions (TLS, logged in) | resident MiB before | resident MiB | KiB per session |\n|---|---|---|---|\n| {} | {:.0} | {:.0} | {:.1} |",
            self.connections, self.resident_before_mib, self.resident_mib, self.kib_per_connection
        )
    }
}
