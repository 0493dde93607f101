//! What the lock machine answers: states, causes, steps.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Actor, Scope, Window};
use crate::name::Timestamp;

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
pub enum LockState {
    Unlocked,
    Locked { until: Timestamp },
    LockedPermanently,
    LockedManually,
}

/// What moved a lock, with its evidence.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub enum LockCause {
    Virus,
    Phish {
        count: u32,
        minutes: u32,
    },
    Spam {
        count: u32,
        minutes: u32,
    },
    /// Mean score in thousandths over `count` messages in `minutes`.
    MeanScore {
        mean: u16,
        count: u32,
        minutes: u32,
    },
    InvalidRecipients {
        count: u32,
    },
    Limit {
        window: Window,
        limit: u64,
    },
    Timeout,
    Manual {
        actor: Actor,
        reason: String,
    },
}

/// One step of the lock machine; the history of a subject is a list of them.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct LockChange {
    pub at: Timestamp,
    pub scope: Scope,
    pub from: LockState,
    pub to: LockState,
    pub unlocks_used: u32,
    pub cause: LockCause,
    /// Ids of the messages that count as evidence, newest last, at most 20.
    pub messages: Vec<String>,
}

impl fmt::Display for LockCause {
    /// One sentence without a full stop, such as `5 spam messages within 10 minutes`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Virus => f.write_str("a virus"),
            Self::Phish { count, minutes } => {
                write!(f, "{} within {}", counted(*count, "phish message"), period(*minutes))
            }
            Self::Spam { count, minutes } => {
                write!(f, "{} within {}", counted(*count, "spam message"), period(*minutes))
            }
            Self::MeanScore { mean, count, minutes } => {
                let (whole, rest) = (mean / 1_000, mean % 1_000);
                write!(
                    f,
                    "mean score {whole}.{rest:03} over {} within {}",
                    counted(*count, "message"),
                    period(*minutes)
                )
            }
            Self::InvalidRecipients { count } => write!(f, "{} within 24 hours", counted(*count, "invalid recipient")),
            Self::Limit { window, limit } => write!(f, "limit of {limit} per {} exceeded", window.as_str()),
            Self::Timeout => f.write_str("the lock timed out"),
            Self::Manual { actor, reason } if reason.is_empty() => write!(f, "by {}", actor.0),
            Self::Manual { actor, reason } => write!(f, "{reason} (by {})", actor.0),
        }
    }
}

fn counted(count: u32, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

fn period(minutes: u32) -> String {
    match minutes {
        1 => "a minute".to_owned(),
        60 => "an hour".to_owned(),
        hours if hours % 60 == 0 => format!("{} hours", hours / 60),
        minutes => format!("{minutes} minutes"),
    }
}
