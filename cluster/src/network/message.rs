//! What nodes say to each other. Append-only like commands: bincode writes the position of a variant.

use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};
use serde::{Deserialize, Serialize};

use crate::command::Outcome;
use crate::name::Timestamp;
use crate::network::authority::ClusterId;
use crate::network::frame;
use crate::raft::{LogId, TypeConfig};
use crate::store::codec::Blob;
use crate::store::state_hash::StateHash;

/// This version's way of talking, and the oldest that it still understands.
pub(crate) const PROTOCOL: u16 = 2;
pub(crate) const PROTOCOL_OLDEST: u16 = 2;

/// What a connection is for. One for each, so that none delays another.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Channel {
    /// Appends, heartbeats and votes.
    Raft,
    /// Commands on their way to the leader.
    Forward,
    /// Small questions: how far, what time, which index to read at.
    Control,
    /// One snapshot.
    Snapshot,
    /// The one question of a stranger.
    Join,
    /// What the nodes' services say to one another; nothing here reads it.
    Service,
}

impl Channel {
    /// The longest body of a frame.
    pub(crate) const fn bytes_max(self) -> usize {
        match self {
            Self::Raft | Self::Forward | Self::Snapshot | Self::Service => frame::BYTES_MAX,
            Self::Control | Self::Join => frame::GREETING_BYTES_MAX,
        }
    }
}

/// The first frame of a connection.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Hello {
    pub(crate) protocol: u16,
    pub(crate) oldest: u16,
    pub(crate) cluster: ClusterId,
    /// 0 for a stranger.
    pub(crate) node: u64,
    pub(crate) channel: Channel,
}

/// The answer to it.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Welcome {
    /// With the protocol to be spoken.
    Come(u16),
    Refused(Unwelcome),
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum Unwelcome {
    #[error("it speaks protocol {0} at least")]
    Protocol(u16),
    #[error("it belongs to another cluster")]
    OtherCluster,
    #[error("to it this node is no member: it was removed")]
    NotMember,
    #[error("it wants another certificate of this node")]
    Certificate,
}

#[derive(Serialize, Deserialize, Debug)]
pub(crate) enum Request {
    Append(AppendEntriesRequest<TypeConfig>),
    Vote(VoteRequest<u64>),
    /// So many commands to be decided in this order: the encoding of one, or of the batch of all.
    Forward {
        commands: u32,
        encoded: Blob,
    },
    /// From which entry on a read sees everything that was acknowledged before the question.
    ReadIndex,
    Ping,
    Join(Join),
    /// [`Request::ReadIndex`], and the asking node wants its lease.
    Lease,
}

#[derive(Serialize, Deserialize, Debug)]
pub(crate) enum Response {
    Append(AppendEntriesResponse<u64>),
    Vote(VoteResponse<u64>),
    Forwarded(Decided),
    /// Surely not decided here.
    NotLeader,
    /// May have been decided.
    Unknown,
    ReadIndex(Option<LogId>),
    Pong(Pong),
    Joined(Joined),
    /// One sentence for the operator.
    Refused(String),
}

/// What became of forwarded commands: one entry holds them all.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub(crate) struct Decided {
    pub(crate) index: u64,
    pub(crate) at: Timestamp,
    pub(crate) outcomes: Vec<Outcome>,
}

/// How a node stands.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Pong {
    /// Milliseconds since the epoch by its own machine.
    pub(crate) wall_ms: u64,
    pub(crate) epoch: u64,
    pub(crate) applied: u64,
    pub(crate) version: String,
    /// Of its state, newest last.
    pub(crate) state_hashes: Vec<StateHash>,
}

/// "Let me in": asked once, by a node without a certificate.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Join {
    pub(crate) secret: Vec<u8>,
    pub(crate) public_key: Vec<u8>,
    /// `host:port` on which other nodes will reach it.
    pub(crate) address: String,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Joined {
    pub(crate) cluster: ClusterId,
    pub(crate) node: u64,
    /// PEM.
    pub(crate) certificate: String,
    pub(crate) authority: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::codec;

    /// Beside the commands in `tests/wire.rs`. A row is never changed, unless the oldest protocol is.
    #[test]
    fn bytes_of_questions_are_pinned() {
        let forward = Request::Forward { commands: 2, encoded: Blob(vec![7, 8, 9]) };
        assert_eq!(codec::encode(&forward), [2, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 7, 8, 9]);
        for (question, position) in [(Request::ReadIndex, 3), (Request::Ping, 4), (Request::Lease, 6)] {
            assert_eq!(codec::encode(&question), [position, 0, 0, 0]);
        }
    }
}
