//! etcd, asked by gRPC for one put a decision.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::USERS;
use super::asker::{self, Asked, Asker};
use crate::machine::free_port;

/// Requests that share a connection; etcd allows 100 and more streams on each.
const STREAMS_PER_CONNECTION: usize = 64;

struct Client {
    sender: SendRequest<Bytes>,
    uri: String,
}

/// One member of the cluster.
struct Member {
    server: Child,
    client: String,
    _directory: tempfile::TempDir,
}

/// Askers take the members in turn.
pub(super) async fn measure(level: usize, nodes: usize) -> anyhow::Result<Asked> {
    let mut members = start(nodes)?;
    for member in &mut members {
        wait_ready(&member.client, &mut member.server).await?;
    }
    let mut askers = Vec::with_capacity(level);
    let mut senders = vec![None; nodes];
    for place in 0..level {
        let at = place % nodes;
        let client = &members[at].client;
        if (place / nodes).is_multiple_of(STREAMS_PER_CONNECTION) {
            senders[at] = Some(connect(client).await?);
        }
        let sender = senders[at].clone().context("no connection")?;
        askers.push(Client { sender, uri: format!("http://{client}/etcdserverpb.KV/Put") });
    }
    let pids = members.iter().map(|member| Ok(member.server.id().context("etcd has ended")?.to_string()));
    let asked = asker::measure(askers, &pids.collect::<anyhow::Result<Vec<_>>>()?).await;
    for member in &mut members {
        member.server.kill().await?;
    }
    asked
}

fn start(nodes: usize) -> anyhow::Result<Vec<Member>> {
    let peers: Vec<String> =
        (0..nodes).map(|_| Ok(format!("http://127.0.0.1:{}", free_port()?))).collect::<anyhow::Result<_>>()?;
    let all: Vec<String> = peers.iter().enumerate().map(|(at, peer)| format!("n{at}={peer}")).collect();
    peers.iter().enumerate().map(|(at, peer)| start_member(at, peer, &all.join(","))).collect()
}

fn start_member(at: usize, peer: &str, all: &str) -> anyhow::Result<Member> {
    let directory = tempfile::tempdir()?;
    let client = format!("127.0.0.1:{}", free_port()?);
    let url = format!("http://{client}");
    let server = Command::new("etcd")
        .args(["--name", &format!("n{at}"), "--initial-cluster", all])
        .args(["--listen-client-urls", &url, "--advertise-client-urls", &url, "--listen-peer-urls", peer])
        .args(["--initial-advertise-peer-urls", peer, "--log-level", "error", "--data-dir"])
        .arg(directory.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    Ok(Member { server, client, _directory: directory })
}

async fn connect(address: &str) -> anyhow::Result<SendRequest<Bytes>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Until it has elected itself and takes a put.
async fn wait_ready(address: &str, server: &mut Child) -> anyhow::Result<()> {
    for _ in 0..500 {
        if let Ok(sender) = connect(address).await {
            let mut client = Client { sender, uri: format!("http://{address}/etcdserverpb.KV/Put") };
            if client.ask(0).await.is_ok() {
                return Ok(());
            }
        }
        ensure!(server.try_wait()?.is_none(), "etcd has ended");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    anyhow::bail!("etcd is not ready")
}

/// `PutRequest { key = 1, value = 2 }` behind gRPC's five bytes of framing.
fn put(key: &[u8], value: &[u8]) -> anyhow::Result<Bytes> {
    let mut bytes = BytesMut::new();
    let length = u32::try_from(key.len() + value.len() + 4)?;
    bytes.put_u8(0);
    bytes.put_u32(length);
    for (tag, part) in [(0x0a, key), (0x12, value)] {
        bytes.put_u8(tag);
        bytes.put_u8(u8::try_from(part.len()).ok().filter(|length| *length < 128).context("too long")?);
        bytes.put_slice(part);
    }
    Ok(bytes.freeze())
}

impl Asker for Client {
    async fn ask(&mut self, number: u64) -> anyhow::Result<()> {
        let request = http::Request::post(&self.uri)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let body = put(format!("user{}", usize::try_from(number)? % USERS).as_bytes(), &[7; 96])?;
        self.sender = self.sender.clone().ready().await?;
        let (response, mut stream) = self.sender.send_request(request, false)?;
        stream.send_data(body, true)?;
        let mut body = response.await?.into_body();
        while let Some(chunk) = body.data().await {
            body.flow_control().release_capacity(chunk?.len())?;
        }
        let trailers = body.trailers().await?.context("no trailers")?;
        ensure!(trailers.get("grpc-status").is_some_and(|status| status == "0"), "etcd: {trailers:?}");
        Ok(())
    }
}
