//! A snapshot on its way: a connection of its own, the head, the file in parts, an empty part, the answer.
//!
//! The sender reads its file while decisions go on. The receiver looks at the whole file before openraft sees any of it: a
//! damaged snapshot is refused and changes nothing.

use std::io;
use std::time::Duration;

use openraft::raft::SnapshotResponse;
use openraft::{Snapshot, Vote};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::network::frame;
use crate::network::message::Channel;
use crate::network::peers::{CallError, Peers};
use crate::raft::{Raft, SnapshotMeta, TypeConfig};
use crate::store::Failure;
use crate::store::codec;
use crate::store::log::Purges;
use crate::store::snapshot::{SnapshotFile, Snapshots};

const PART_BYTES: usize = 1024 * 1024;
/// For each part, and for the head.
const PART_TIMEOUT: Duration = Duration::from_secs(10);
/// Looking at it, writing it down, and putting the state in place.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(300);
/// Until the leader has gone back to appends and heartbeats.
const QUIET_AFTERWARDS: Duration = Duration::from_secs(1);

#[derive(Serialize, Deserialize)]
struct Head {
    vote: Vote<u64>,
    meta: SnapshotMeta,
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Done(SnapshotResponse<u64>),
    Refused(String),
}

pub(crate) async fn send(
    peers: &Peers,
    node: u64,
    vote: Vote<u64>,
    snapshot: Snapshot<TypeConfig>,
    snapshots: &Snapshots,
) -> Result<SnapshotResponse<u64>, CallError> {
    let mut stream = peers.connect(node, Channel::Snapshot).await?;
    let head = codec::encode(&Head { vote, meta: snapshot.meta });
    let mut file = tokio::fs::File::open(&snapshot.snapshot.path).await.map_err(CallError::Unreachable)?;
    put(&mut stream, &head).await.map_err(CallError::Unreachable)?;
    let mut part = vec![0; PART_BYTES];
    loop {
        let count = file.read(&mut part).await.map_err(CallError::Unreachable)?;
        put(&mut stream, &part[..count]).await.map_err(CallError::Unreachable)?;
        if count == 0 {
            break;
        }
    }
    let answer = timeout(INSTALL_TIMEOUT, frame::read(&mut stream, Channel::Snapshot.bytes_max())).await;
    let answer = answer.map_err(|_| CallError::TimedOut)?.ok().flatten().ok_or(CallError::Broken)?;
    match codec::decode("answer", &answer.body)? {
        Answer::Done(response) => Ok(response),
        Answer::Refused(why) => {
            let (file, snapshots) = (*snapshot.snapshot, snapshots.clone());
            // A thread that has gone with the runtime looks at nothing any more.
            drop(tokio::task::spawn_blocking(move || snapshots.examine(&file)).await);
            Err(CallError::Unreachable(io::Error::other(why)))
        }
    }
}

async fn put(stream: &mut (impl AsyncWrite + Unpin), body: &[u8]) -> io::Result<()> {
    timeout(PART_TIMEOUT, async {
        frame::write(stream, 0, body).await?;
        stream.flush().await
    })
    .await?
}

async fn take(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let frame = timeout(PART_TIMEOUT, frame::read(stream, Channel::Snapshot.bytes_max())).await??;
    frame.map(|frame| frame.body).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Where a snapshot that comes in goes to.
#[derive(Clone)]
pub(crate) struct Receiver {
    pub(crate) raft: Raft,
    pub(crate) purges: Purges,
    pub(crate) failure: Failure,
}

/// The leader sends no heartbeats to whom it sends a snapshot: the silence must not make that node a candidate, whose
/// greater term would end the leader's office and the transfer with it.
struct NoCampaign(Raft);

impl NoCampaign {
    fn begin(raft: &Raft) -> Self {
        raft.runtime_config().elect(false);
        Self(raft.clone())
    }
}

impl Drop for NoCampaign {
    fn drop(&mut self) {
        let raft = self.0.clone();
        tokio::spawn(async move {
            tokio::time::sleep(QUIET_AFTERWARDS).await;
            raft.runtime_config().elect(true);
        });
    }
}

impl Receiver {
    /// A task of its own, which goes on where the sender has gone.
    async fn install(self, vote: Vote<u64>, snapshot: Snapshot<TypeConfig>) -> Answer {
        self.purges.defer();
        match self.raft.install_full_snapshot(vote, snapshot).await {
            Ok(response) => {
                self.purges.allow();
                Answer::Done(response)
            }
            Err(fatal) => {
                self.failure.set(format!("a snapshot was not installed: {fatal}"));
                Answer::Refused(fatal.to_string())
            }
        }
    }
}

/// Serves the sender's connection; the caller sees to it that there is one at a time.
pub(crate) async fn receive(receiver: &Receiver, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    let raft = &receiver.raft;
    let _quiet = NoCampaign::begin(raft);
    let head = take(stream).await?;
    let Head { vote, meta } = codec::decode("snapshot", &head).map_err(io::Error::other)?;
    let file = raft.begin_receiving_snapshot().await.map_err(io::Error::other)?;
    collect(stream, &file).await?;
    let whole = SnapshotFile::clone(&file);
    let looked_at = tokio::task::spawn_blocking(move || whole.verify()).await.map_err(io::Error::other)?;
    let answer = match looked_at {
        Err(error) => {
            tracing::error!(%error, "a snapshot of the leader is damaged and was refused");
            Answer::Refused(error.to_string())
        }
        Ok(_) => {
            let installing = receiver.clone().install(vote, Snapshot { meta, snapshot: file });
            tokio::spawn(installing).await.map_err(io::Error::other)?
        }
    };
    put(stream, &codec::encode(&answer)).await
}

async fn collect(stream: &mut (impl AsyncRead + Unpin), file: &SnapshotFile) -> io::Result<()> {
    let mut writing = tokio::fs::File::create(&file.path).await?;
    loop {
        let part = take(stream).await?;
        if part.is_empty() {
            return writing.flush().await;
        }
        writing.write_all(&part).await?;
    }
}
