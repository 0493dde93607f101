//! openraft's types for this crate, and its timing.

use openraft::{BasicNode, Config, SnapshotPolicy};

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
