//! openraft's types for this crate, and the way to peers.
//!
//! A cluster has one voter until nodes can join; peers, their addresses and mutual TLS come with joining.
//! Until then a message to a peer has nowhere to go, and `NoPeers` says so to openraft.

use std::future::Future;
use std::io;

use openraft::error::{Fatal, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use openraft::{BasicNode, Config, Snapshot, SnapshotPolicy, Vote};

use crate::store::entry::{Reply, Stamped};
use crate::store::snapshot::SnapshotFile;

openraft::declare_raft_types!(
    /// Which types openraft works with here.
    pub TypeConfig:
        D = Stamped,
        R = Reply,
        NodeId = u64,
        Node = BasicNode,
        SnapshotData = SnapshotFile,
);

pub type Raft = openraft::Raft<TypeConfig>;
pub type Entry = openraft::Entry<TypeConfig>;
pub type LogId = openraft::LogId<u64>;
pub type Membership = openraft::StoredMembership<u64, BasicNode>;
pub type SnapshotMeta = openraft::SnapshotMeta<u64, BasicNode>;
pub type StorageError = openraft::StorageError<u64>;
pub type StorageIOError = openraft::StorageIOError<u64>;

/// Timing of heartbeats and elections; snapshots are asked for by the keeper of time, not by openraft.
pub(crate) fn config(log_entries_kept: u64) -> Config {
    Config {
        cluster_name: "outgate".to_owned(),
        heartbeat_interval: 50,
        election_timeout_min: 150,
        election_timeout_max: 300,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: log_entries_kept,
        ..Config::default()
    }
}

/// No peer can be reached.
pub(crate) struct NoPeers;

fn unreachable() -> Unreachable {
    Unreachable::new(&io::Error::new(io::ErrorKind::NotConnected, "this node knows no way to peers"))
}

impl RaftNetworkFactory<TypeConfig> for NoPeers {
    type Network = Self;

    async fn new_client(&mut self, _target: u64, _node: &BasicNode) -> Self {
        Self
    }
}

impl RaftNetwork<TypeConfig> for NoPeers {
    async fn append_entries(
        &mut self,
        _rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RPCError<u64, BasicNode, RaftError<u64>>> {
        Err(unreachable().into())
    }

    async fn vote(
        &mut self,
        _rpc: VoteRequest<u64>,
        _option: RPCOption,
    ) -> Result<VoteResponse<u64>, RPCError<u64, BasicNode, RaftError<u64>>> {
        Err(unreachable().into())
    }

    async fn full_snapshot(
        &mut self,
        _vote: Vote<u64>,
        _snapshot: Snapshot<TypeConfig>,
        _cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<TypeConfig, Fatal<u64>>> {
        Err(unreachable().into())
    }
}
