//! What the mail log keeps.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::mail::MessageId;

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Record {
    pub at_ms: u64,
    pub id: MessageId,
    pub event: Event,
}

impl Record {
    /// In the journey of its message, which begins with its arrival: the nodes that it passes may have different clocks.
    pub(crate) fn place(&self) -> (bool, u64) {
        (!matches!(self.event, Event::Submission(_)), self.at_ms)
    }
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The answer to an end of DATA; exactly one for each.
    Submission(Box<Submission>),
    /// The outcome of one recipient in one attempt.
    Attempt(Attempt),
    /// What the queue, the quarantine or an admin did with the message.
    Change {
        #[serde(flatten)]
        origin: Origin,
        status: Status,
        by: String,
        detail: String,
    },
}

/// Whose message it is, in the words of its submission's record.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(default)]
pub struct Origin {
    pub user: String,
    pub domain: String,
    pub sender: String,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Submission {
    pub node: u64,
    pub domain: String,
    pub user: String,
    pub identity: Option<String>,
    pub sender: String,
    pub recipients: Vec<String>,
    pub header_from: String,
    pub subject: String,
    /// The Message-ID field.
    pub message_id: String,
    pub client: IpAddr,
    pub helo: String,
    pub size: u64,
    pub class: String,
    pub score: f32,
    /// One line for each finding.
    pub evidence: Vec<String>,
    /// The whole reply line(s).
    pub reply: String,
    pub status: Status,
    /// Index of the log entry that decided; `None` where the message never came so far.
    pub log_index: Option<u64>,
    /// The windows after the decision, `scope/window used/limit`.
    pub counters: Vec<String>,
    /// What it added to each of the User's windows: 0 where it was not accepted.
    #[serde(default)]
    pub cost: u64,
    /// `unlocked`, `locked`, … at the decision.
    pub lock: String,
    /// From the end of DATA to the reply.
    pub micros: u64,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Attempt {
    #[serde(flatten)]
    pub origin: Origin,
    pub recipient: String,
    /// `delivered`, `deferred`, `bounced` or `expired`.
    pub status: Status,
    pub host: String,
    pub address: Option<IpAddr>,
    pub reply: String,
    pub tls: Option<String>,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Accepted,
    Queued,
    Delivered,
    Deferred,
    Bounced,
    Expired,
    Frozen,
    Removed,
    Quarantined,
    Released,
    /// Not taken for who sends, or not now: a lock, a limit, a User that is gone, no decision.
    Rejected,
    /// Not taken for what it is: form, size, author, content that could not be held.
    Refused,
    /// Answered with 250 and dropped (`locked_response = discard`).
    Discarded,
}

/// Filters are joined by "and"; `None` = any. User and domain match as a whole, the text as a part, all without case;
/// `*` is a wildcard in them. The class matches as it is.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(default, deny_unknown_fields)]
pub struct Query {
    pub id: Option<MessageId>,
    pub user: Option<String>,
    pub domain: Option<String>,
    pub class: Option<String>,
    pub status: Option<Status>,
    /// Searched in sender, recipients, subject, Message-ID, reply and evidence.
    pub text: Option<String>,
    /// Only answers to an end of DATA.
    pub submissions: bool,
    pub since_ms: Option<u64>,
    pub until_ms: Option<u64>,
    pub count: Option<usize>,
}
