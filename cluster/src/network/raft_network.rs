//! openraft's view of the other nodes.

use std::future::Future;

use openraft::error::{Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use openraft::{BasicNode, Snapshot, Vote};

use crate::network::message::{Channel, Request, Response};
use crate::network::peers::{CallError, Peers};
use crate::network::snapshot;
use crate::raft::{Entry, TypeConfig};
use crate::store::snapshot::Snapshots;

/// Entries are sent together up to about this many bytes; one alone may be larger. openraft waits for the answer no longer
/// than for a heartbeat's, and sends everything again then.
const APPEND_BYTES_MAX: usize = 1024 * 1024;

type RpcError = RPCError<u64, BasicNode, RaftError<u64>>;

/// Makes a way to each node that raft knows.
pub(crate) struct Network(pub(crate) Peers, pub(crate) Snapshots);

/// The way to one node.
pub(crate) struct Way {
    peers: Peers,
    node: u64,
    snapshots: Snapshots,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Way;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Way {
        self.0.note_address(target, &node.addr);
        Way { peers: self.0.clone(), node: target, snapshots: self.1.clone() }
    }
}

impl Way {
    async fn ask(&self, request: &Request, option: &RPCOption) -> Result<Response, RpcError> {
        self.peers.call(self.node, Channel::Raft, request, option.hard_ttl()).await.map_err(|error| match error {
            // openraft waits a moment before it tries again.
            CallError::Unreachable(_) | CallError::Unwelcome(_) => Unreachable::new(&error).into(),
            CallError::TimedOut | CallError::Broken | CallError::Unreadable(_) => NetworkError::new(&error).into(),
        })
    }
}

fn unexpected(response: &Response) -> NetworkError {
    let text = if let Response::Refused(why) = response {
        format!("it refused: {why}")
    } else {
        "it answered another question".to_owned()
    };
    NetworkError::new(&std::io::Error::other(text))
}

/// How many entries from the first on go together.
fn fitting(entries: &[Entry]) -> usize {
    let mut bytes = 0;
    let fits = |entry: &&Entry| {
        bytes += match &entry.payload {
            openraft::EntryPayload::Normal(stamped) => stamped.encoded().len(),
            openraft::EntryPayload::Blank | openraft::EntryPayload::Membership(_) => 0,
        };
        bytes <= APPEND_BYTES_MAX
    };
    entries.iter().take_while(fits).count().max(1)
}

impl RaftNetwork<TypeConfig> for Way {
    async fn append_entries(
        &mut self,
        mut rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RpcError> {
        let all = rpc.entries.len();
        rpc.entries.truncate(fitting(&rpc.entries));
        let partial = (rpc.entries.len() < all).then(|| rpc.entries.last().map(|entry| entry.log_id)).flatten();
        let answer = self.ask(&Request::Append(rpc), &option).await?;
        let Response::Append(response) = answer else { return Err(unexpected(&answer).into()) };
        if partial.is_some() && matches!(response, AppendEntriesResponse::Success) {
            return Ok(AppendEntriesResponse::PartialSuccess(partial));
        }
        Ok(response)
    }

    async fn vote(&mut self, rpc: VoteRequest<u64>, option: RPCOption) -> Result<VoteResponse<u64>, RpcError> {
        let answer = self.ask(&Request::Vote(rpc), &option).await?;
        let Response::Vote(response) = answer else { return Err(unexpected(&answer).into()) };
        Ok(response)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote<u64>,
        snapshot: Snapshot<TypeConfig>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<TypeConfig, Fatal<u64>>> {
        tokio::select! {
            closed = cancel => Err(closed.into()),
            sent = snapshot::send(&self.peers, self.node, vote, snapshot, &self.snapshots) => {
                sent.map_err(|error| StreamingError::Unreachable(Unreachable::new(&error)))
            }
        }
    }
}
