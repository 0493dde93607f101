//! What is done with a message: first what policy wants ([`intent`]), then what the cluster's decision makes of it
//! ([`disposition`]).

use outgate_cluster::command::{LimitUnit, Window};
use outgate_cluster::state::settings::{LockedResponse, QuarantineResponse, Settings};
use outgate_cluster::{AdmissionVerdict, Class, Scope, Wish};

use super::Verdict;
use crate::check::Refusal;

/// What policy wants, if neither limit nor lock stands in the way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Intent {
    Deliver,
    /// Spam goes to quarantine, whatever the client hears.
    Hold(QuarantineResponse),
    /// Held for the operator's eyes, refused to the client.
    Virus,
    /// Not taken for its form, size or author. Counts nowhere, so the cluster is not asked.
    Refuse(Refusal),
}

/// What is done, and what the client hears.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Disposition {
    Deliver,
    Hold(QuarantineResponse),
    Virus,
    Refuse(Refusal),
    Locked {
        scope: Scope,
        response: LockedResponse,
    },
    Limit {
        limit: u64,
        unit: LimitUnit,
        window: Window,
        retry_after_s: u64,
    },
    DistinctRecipients {
        limit: u64,
    },
    /// The User is gone or disabled since it logged in.
    NoUser,
    /// The cluster no longer knows the question.
    Undecided,
}

pub fn intent(verdict: &Verdict, settings: &Settings) -> Intent {
    match verdict.class {
        Class::Virus => Intent::Virus,
        Class::Spam | Class::Phish if settings.block_spam => Intent::Hold(settings.quarantine_response),
        Class::Clean | Class::Unsure | Class::Spam | Class::Phish => Intent::Deliver,
        // Locked and limit are the cluster's words: no finding makes them.
        Class::Blocked | Class::Oversize | Class::Locked | Class::Limit => match &verdict.refusal {
            Some(refusal) => Intent::Refuse(refusal.clone()),
            None => Intent::Deliver,
        },
    }
}

impl Intent {
    /// How the cluster is asked; `None` = not at all.
    pub fn wish(&self) -> Option<Wish> {
        match self {
            Self::Deliver | Self::Hold(QuarantineResponse::Accepted) => Some(Wish::Accept),
            Self::Hold(QuarantineResponse::Rejected) | Self::Virus => Some(Wish::Refuse),
            Self::Refuse(_) => None,
        }
    }
}

/// `decision` answers the wish of `intent`.
pub fn disposition(intent: Intent, decision: &AdmissionVerdict, settings: &Settings) -> Disposition {
    match *decision {
        AdmissionVerdict::Accepted | AdmissionVerdict::Recorded => match intent {
            Intent::Deliver => Disposition::Deliver,
            Intent::Hold(response) => Disposition::Hold(response),
            Intent::Virus => Disposition::Virus,
            Intent::Refuse(refusal) => Disposition::Refuse(refusal),
        },
        AdmissionVerdict::Limit { window, unit, limit, retry_after_s, .. } => {
            Disposition::Limit { limit, unit, window, retry_after_s }
        }
        AdmissionVerdict::DistinctRecipients { limit, .. } => Disposition::DistinctRecipients { limit },
        AdmissionVerdict::Locked { scope, .. } => Disposition::Locked { scope, response: settings.locked_response },
        AdmissionVerdict::NoUser => Disposition::NoUser,
        AdmissionVerdict::Stale => Disposition::Undecided,
    }
}

impl Disposition {
    /// The class that the log shows: limits and locks outweigh what the content was.
    pub fn class(&self, verdict: &Verdict) -> Class {
        match self {
            Self::Locked { .. } => Class::Locked,
            Self::Limit { .. } | Self::DistinctRecipients { .. } => Class::Limit,
            Self::Deliver | Self::Hold(_) | Self::Virus | Self::Refuse(_) | Self::NoUser | Self::Undecided => {
                verdict.class
            }
        }
    }
}
