//! What nodes ask each other about mail. Append-only like commands: bincode writes the position of a variant.

use std::collections::BTreeMap;

use bincode::Options;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::mail::MessageId;

/// Of one question or answer; the cluster's connections take no more.
const BYTES_MAX: u64 = 16 << 20;
/// Of a message's bytes in one question; what is longer goes in parts.
pub(super) const PART_MAX_BYTES: usize = 1 << 20;
/// Ids in one question or answer.
pub(super) const IDS_MAX: usize = 100_000;

/// A message id as bytes.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Id([u8; 16]);

#[derive(Serialize, Deserialize, Debug)]
pub(super) enum Question {
    /// The bytes of a message from `offset` on; the last of them come with [`Question::Store`].
    Part {
        id: Id,
        offset: u64,
        bytes: Bytes,
    },
    /// Keep a copy of my message.
    Store(Store),
    /// This became of my messages; in order.
    Marks(Vec<Mark>),
    /// Which of my messages do you keep, behind this id?
    Inventory {
        after: Option<Id>,
    },
    /// Which of this node's messages are somebody else's by now, as far as you know?
    Claims {
        of: u64,
        ids: Vec<Id>,
    },
    /// What have you taken from me?
    Taken,
    /// Keep a copy of what I hold.
    Hold(Hold),
    /// I do not hold these any more.
    LetOut {
        ids: Vec<Id>,
    },
    /// What of mine do you hold a copy of, behind this id?
    HeldInventory {
        after: Option<Id>,
    },
    /// What of my quarantine have you taken?
    HeldTaken,
    Log(LogQuestion),
    /// How many sessions has each User with you?
    Sessions,
    /// My disk has lost these: what of them you keep is yours.
    Yours {
        ids: Vec<Id>,
    },
    /// I am about to own mail again, or do since a moment ago: from now on take nothing of mine.
    Returning,
}

#[derive(Serialize, Deserialize, Debug)]
pub(super) enum LogQuestion {
    /// How long are the segments that you keep of my log?
    Lengths,
    /// Keep this of a segment of my log, in place of what you have from there on.
    Append { segment: u64, offset: u64, bytes: Bytes },
    /// What do your log and your copies of logs of nodes that are down say? As JSON.
    Search { query: Bytes },
    /// What do your copies of the logs of these nodes say, which do not answer? As JSON.
    SearchCopies { of: Vec<u64>, query: Bytes },
}

#[derive(Serialize, Deserialize, Debug)]
pub(super) struct Store {
    /// Under which the asker owns mail.
    pub(super) owner_epoch: u64,
    pub(super) id: Id,
    pub(super) accepted: bool,
    pub(super) meta: Bytes,
    pub(super) progress: Option<Bytes>,
    /// Where `bytes` begin; what is before came in parts.
    pub(super) offset: u64,
    pub(super) bytes: Bytes,
}

#[derive(Serialize, Deserialize, Debug)]
pub(super) struct Hold {
    pub(super) owner_epoch: u64,
    /// What is known of the message, as JSON.
    pub(super) entry: Bytes,
    /// Where `bytes` begin; what is before came in parts.
    pub(super) offset: u64,
    pub(super) bytes: Bytes,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub(super) struct Mark {
    pub(super) id: Id,
    pub(super) what: What,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub(super) enum What {
    Accepted,
    /// The whole state of the recipients.
    Progress(Bytes),
    Done,
}

#[derive(Serialize, Deserialize, Debug)]
pub(super) enum Answer {
    /// It is on disk.
    Done,
    /// One sentence for the log.
    Refused(String),
    /// With whether it is known to be accepted; as many as fit.
    Inventory(Vec<(Id, bool)>),
    Ids(Vec<Id>),
    /// Of the segments of a log, by their names.
    Lengths(BTreeMap<u64, u64>),
    /// As JSON.
    Records(Bytes),
    /// User id and count, without the Users that have none.
    Sessions(Vec<(u64, u64)>),
    /// Of the messages that were asked for, those that are or were in this node's hands.
    Claims(Vec<(Id, Claim)>),
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Claim {
    /// I own it.
    Mine,
    /// I had taken it over and am done with it.
    Done,
    /// Like you I keep a copy, and I take it over: my number is the smaller one.
    Soon,
}

impl Answer {
    /// Why this is not the answer that was asked for; another one comes from a node that is out of step.
    pub(super) fn refusal(self) -> String {
        match self {
            Self::Refused(why) => why,
            Self::Done
            | Self::Inventory(_)
            | Self::Ids(_)
            | Self::Lengths(_)
            | Self::Records(_)
            | Self::Sessions(_)
            | Self::Claims(_) => "it answered another question".to_owned(),
        }
    }
}

impl From<MessageId> for Id {
    fn from(id: MessageId) -> Self {
        Self(id.to_bytes())
    }
}

impl From<Id> for MessageId {
    fn from(id: Id) -> Self {
        Self::from_bytes(id.0)
    }
}

fn codec() -> impl Options {
    bincode::DefaultOptions::new().with_limit(BYTES_MAX)
}

pub(super) fn encode(letter: &impl Serialize) -> bincode::Result<Vec<u8>> {
    codec().serialize(letter)
}

pub(super) fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> bincode::Result<T> {
    codec().deserialize(bytes)
}
