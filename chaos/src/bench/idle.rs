//! Memory of a node that holds many idle sessions, each with TLS and a login.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use serde::Serialize;
use tokio::net::TcpSocket;

use super::submission::{Server, login, product};
use crate::machine::resident_mib;

const CONNECTIONS: usize = 10_000;
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

pub(crate) async fn run() -> Result<Report> {
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    let server = product::start(nowhere, 1)?;
    let before = resident_mib(server.pid())?;
    let held = open(&server, CONNECTIONS).await?;
    let after = resident_mib(server.pid())?;
    drop(held);
    let kib_per_connection = (after - before) * 1024.0 / f64::from(u32::try_from(CONNECTIONS)?);
    Ok(Report { connections: CONNECTIONS, resident_before_mib: before, resident_mib: after, kib_per_connection })
}

async fn open(server: &Server, connections: usize) -> Result<Vec<login::Stream>> {
    let mut held = Vec::with_capacity(connections);
    let numbers: Vec<usize> = (0..connections).collect();
    for part in numbers.chunks(OPENING_MAX) {
        let opening: Vec<_> = part.iter().map(|number| tokio::spawn(session(*number, server.login(0)))).collect();
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

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| idle sessions, TLS and logged in | resident MiB before | resident MiB | KiB per session |")?;
        writeln!(f, "|---|---|---|---|")?;
        let Self { connections, resident_before_mib: before, resident_mib: after, kib_per_connection: each } = self;
        write!(f, "| {connections} | {before:.0} | {after:.0} | {each:.1} |")
    }
}
