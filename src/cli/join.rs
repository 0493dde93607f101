//! `outgate join`: the data directory of a node that joins a cluster.

use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};

use outgate_cluster::{Cluster, JoinError, Token};

use super::Outcome;
use super::client::block_on;
use super::failure::Failure;
use super::init::{
    CLUSTER_PORT, absolute, check_address, check_hostname, cluster_options, config_path, make_directory, not_made,
    write_config,
};
use super::output::{print, remark};
use crate::web::api::TWO_NODES;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Where a member of the cluster listens to other nodes
    #[arg(value_name = "HOST:PORT")]
    member: String,
    /// What `outgate init` or `outgate cluster token` printed
    #[arg(long, env = "OUTGATE_TOKEN", hide_env_values = true)]
    token: String,
    /// Data directory of the node
    #[arg(long, value_name = "DIR", default_value = "/var/lib/outgate")]
    data: PathBuf,
    /// Name in the greeting and in Received; this machine's where absent
    #[arg(long)]
    hostname: Option<String>,
    /// Where the other nodes will reach this one; its address towards the member and port 7587 where absent
    #[arg(long, value_name = "HOST:PORT")]
    cluster: Option<String>,
}

pub(super) fn execute(args: &Args) -> Outcome {
    check_hostname(args.hostname.as_deref())?;
    check_member(&args.member)?;
    let advertise = match &args.cluster {
        Some(address) => address.clone(),
        None => own_address(&args.member)?,
    };
    check_address(&advertise)?;
    let id = block_on(make(&args.data, &args.member, &args.token, &advertise))?;
    let data = absolute(&args.data)?;
    let told = write_config(&data, args.hostname.as_deref().unwrap_or_default(), &advertise)?;
    print(&format!("{told}this is node {id}\nnext: outgate run --config {}\n", config_path(&data).display()))?;
    // Nobody can know here whether another joined and left before.
    if id == 2 { remark(&format!("warning: {TWO_NODES}")) } else { Ok(()) }
}

/// Joins, and makes directory and node; its id.
pub(super) async fn make(data: &Path, member: &str, token: &str, advertise: &str) -> Result<u64, Failure> {
    let token: Token = token.parse().map_err(|error: JoinError| Failure::wrong(error))?;
    make_directory(data)?;
    let joined = Cluster::join(&cluster_options(data), member, &token, advertise).await;
    joined.map_err(|error| match &error {
        JoinError::Open(open) => not_made(open, data),
        JoinError::NotAToken | JoinError::Unreachable(..) | JoinError::OtherCluster(_) | JoinError::Refused(..) => {
            Failure::wrong(error)
        }
        JoinError::Certificate(_) | JoinError::Random => Failure::failed(error),
    })
}

fn check_member(text: &str) -> Outcome {
    if crate::config::is_host_port(text) {
        return Ok(());
    }
    Err(Failure::wrong(format!("`{text}` is no member's place: give host:port as `outgate cluster token` prints it")))
}

/// The address from which this machine speaks to the member: nothing is sent.
fn own_address(member: &str) -> Result<String, Failure> {
    let ask = || {
        let there = member.to_socket_addrs()?.next().ok_or(std::io::ErrorKind::NotFound)?;
        let socket = UdpSocket::bind(if there.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.connect(there)?;
        socket.local_addr()
    };
    let address = ask().map_err(|error: std::io::Error| {
        Failure::wrong(format!("cannot tell how {member} reaches this machine: {error}: give --cluster host:port"))
    })?;
    Ok(SocketAddr::new(address.ip(), CLUSTER_PORT).to_string())
}
