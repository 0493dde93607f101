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

#[cfg(test)]
mod tests {
    use outgate_cluster::command::LockState;

    use super::*;
    use crate::check::Fault;

    fn verdict(class: Class) -> Verdict {
        let refusal = match class {
            Class::Blocked => Some(Refusal::Structure(Fault::Partial)),
            Class::Oversize => Some(Refusal::TooLarge { limit: 9 }),
            Class::Clean | Class::Unsure | Class::Spam | Class::Phish | Class::Virus | Class::Locked | Class::Limit => {
                None
            }
        };
        Verdict { class, score: 0, refusal }
    }

    #[test]
    fn what_policy_wants() {
        let blocks = Settings { block_spam: true, ..Settings::default() };
        let accepts = Settings { quarantine_response: QuarantineResponse::Accepted, ..blocks.clone() };
        let passes = Settings { block_spam: false, ..Settings::default() };
        let (rejected, accepted) =
            (Intent::Hold(QuarantineResponse::Rejected), Intent::Hold(QuarantineResponse::Accepted));
        for (settings, class, expected, wish) in [
            (&blocks, Class::Clean, Intent::Deliver, Some(Wish::Accept)),
            (&blocks, Class::Unsure, Intent::Deliver, Some(Wish::Accept)),
            (&blocks, Class::Spam, rejected.clone(), Some(Wish::Refuse)),
            (&blocks, Class::Phish, rejected, Some(Wish::Refuse)),
            (&accepts, Class::Spam, accepted, Some(Wish::Accept)),
            (&passes, Class::Spam, Intent::Deliver, Some(Wish::Accept)),
            (&passes, Class::Virus, Intent::Virus, Some(Wish::Refuse)),
            (&accepts, Class::Virus, Intent::Virus, Some(Wish::Refuse)),
            (&blocks, Class::Blocked, Intent::Refuse(Refusal::Structure(Fault::Partial)), None),
            (&blocks, Class::Oversize, Intent::Refuse(Refusal::TooLarge { limit: 9 }), None),
        ] {
            let intent = intent(&verdict(class), settings);
            assert_eq!((&intent, intent.wish()), (&expected, wish), "{class:?}");
        }
    }

    #[test]
    fn what_the_decision_makes_of_it() {
        let settings = Settings { locked_response: LockedResponse::Discard, ..Settings::default() };
        let (unit, window) = (LimitUnit::Messages, Window::Hour);
        let scope = Scope::User;
        let limit = AdmissionVerdict::Limit { scope, window, unit, limit: 5, retry_after_s: 7 };
        let locked = AdmissionVerdict::Locked { scope, state: LockState::LockedManually };
        let held = Intent::Hold(QuarantineResponse::Rejected);
        for (intent, decision, expected, class) in [
            (Intent::Deliver, AdmissionVerdict::Accepted, Disposition::Deliver, Class::Spam),
            (held.clone(), AdmissionVerdict::Recorded, Disposition::Hold(QuarantineResponse::Rejected), Class::Spam),
            (Intent::Virus, AdmissionVerdict::Recorded, Disposition::Virus, Class::Spam),
            (Intent::Deliver, limit, Disposition::Limit { limit: 5, unit, window, retry_after_s: 7 }, Class::Limit),
            (held, locked, Disposition::Locked { scope, response: LockedResponse::Discard }, Class::Locked),
            (
                Intent::Deliver,
                AdmissionVerdict::DistinctRecipients { limit: 3, retry_after_s: 1 },
                Disposition::DistinctRecipients { limit: 3 },
                Class::Limit,
            ),
            (Intent::Deliver, AdmissionVerdict::NoUser, Disposition::NoUser, Class::Spam),
            (Intent::Deliver, AdmissionVerdict::Stale, Disposition::Undecided, Class::Spam),
        ] {
            let disposition = disposition(intent, &decision, &settings);
            assert_eq!((&disposition, disposition.class(&verdict(Class::Spam))), (&expected, class), "{decision:?}");
        }
    }
}
