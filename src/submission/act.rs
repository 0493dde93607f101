//! Carries the decision out: deliver, hold or refuse; and words the reply.

use outgate_cluster::command::{LimitUnit, Window};
use outgate_cluster::state::settings::{LockedResponse, QuarantineResponse};
use outgate_cluster::{Admission, Applied, LockCause, Scope};

use super::decide::{Decided, stamped};
use super::judge::Judged;
use super::record::{Outcome, class_name, subject};
use super::{Incoming, Line};
use crate::check::{Fault, Refusal};
use crate::clock::now_ms;
use crate::maillog::Status;
use crate::policy::Disposition;
use crate::quarantine::{Held, QuarantineError};
use crate::smtp::Reply;

pub(super) async fn act(line: &Line, incoming: &Incoming, judged: &Judged, decided: Decided) -> Outcome {
    let Decided { disposition, admission, stored } = decided;
    if let Some(admission) = &admission {
        report_lock(line, judged, admission);
    }
    let outcome = match disposition {
        Err(reply) => Outcome::new(reply, Status::Rejected),
        Ok(disposition) => {
            let class = disposition.class(&judged.verdict);
            if let Some((stored, unsettled)) = stored {
                line.queue.deliver(stored);
                unsettled.keep();
            }
            carry_out(line, incoming, judged, disposition).await.of_class(class)
        }
    };
    outcome.decided_by(admission)
}

async fn carry_out(line: &Line, incoming: &Incoming, judged: &Judged, disposition: Disposition) -> Outcome {
    let id = incoming.id;
    match disposition {
        Disposition::Deliver => Outcome::new(Reply::accepted(id), Status::Accepted),
        Disposition::Hold(response) => hold_spam(line, incoming, judged, response).await,
        Disposition::Virus => {
            let held = hold(line, incoming, judged, "virus", false).await;
            Outcome::new(Reply::virus(id), if held.is_ok() { Status::Quarantined } else { Status::Refused })
        }
        Disposition::Refuse(refusal) => refused(incoming, &refusal),
        Disposition::Locked { scope, response } => locked(line, incoming, judged, scope, response).await,
        Disposition::Limit { limit, unit, window, .. } if cost(incoming, unit) > limit => {
            Outcome::new(Reply::over_limit(limit, unit_name(unit), window.as_str()), Status::Refused)
        }
        Disposition::Limit { limit, unit, window, retry_after_s } => {
            Outcome::new(limit_reply(limit, unit, window, retry_after_s), Status::Rejected)
        }
        Disposition::DistinctRecipients { limit } => Outcome::new(Reply::distinct_recipients(limit), Status::Rejected),
        Disposition::NoUser => Outcome::new(Reply::sender_not_permitted(), Status::Rejected),
        Disposition::Undecided => Outcome::new(Reply::undecided(), Status::Rejected),
    }
}

/// With `accepted` the client is told 250 only if the message really is held.
async fn hold_spam(line: &Line, incoming: &Incoming, judged: &Judged, response: QuarantineResponse) -> Outcome {
    let held = hold(line, incoming, judged, class_name(judged.verdict.class), false).await;
    match (response, held) {
        (QuarantineResponse::Rejected, Ok(_)) => Outcome::new(Reply::spam(incoming.id), Status::Quarantined),
        (QuarantineResponse::Rejected, Err(_)) => Outcome::new(Reply::spam(incoming.id), Status::Refused),
        (QuarantineResponse::Accepted, Ok(_)) => Outcome::new(Reply::accepted(incoming.id), Status::Quarantined),
        (QuarantineResponse::Accepted, Err(_)) => Outcome::new(Reply::undecided(), Status::Rejected),
    }
}

/// One copy of each different message is held; a message that is dropped with 250 must have one.
async fn locked(line: &Line, incoming: &Incoming, judged: &Judged, scope: Scope, response: LockedResponse) -> Outcome {
    let held = hold(line, incoming, judged, "locked", true).await;
    let login = judged.user.login.to_string();
    let who = match (scope, &judged.identity) {
        (Scope::Identity, Some(identity)) => identity,
        (Scope::Identity | Scope::User | Scope::Domain | Scope::NullSender, _) => &login,
    };
    let contact = judged.contact.clone().unwrap_or_else(|| format!("postmaster@{}", line.hostname));
    match response {
        LockedResponse::Defer => Outcome::new(Reply::locked_defer(&plain(who), &contact), Status::Rejected),
        LockedResponse::Reject => Outcome::new(Reply::locked_reject(&plain(who), &contact), Status::Rejected),
        LockedResponse::Discard if held.is_ok() => Outcome::new(Reply::accepted(incoming.id), Status::Discarded),
        LockedResponse::Discard => Outcome::new(Reply::undecided(), Status::Rejected),
    }
}

/// Holds the message as it would have left, so that a release is a delivery like any other. False = held before.
async fn hold(
    line: &Line,
    incoming: &Incoming,
    judged: &Judged,
    class: &str,
    once: bool,
) -> Result<bool, QuarantineError> {
    let held = Held {
        id: incoming.id,
        envelope: incoming.envelope.clone(),
        domain: judged.user.domain.as_str().to_owned(),
        user: judged.user.login.to_string(),
        identity: judged.identity.clone(),
        class: class.to_owned(),
        score: f32::from(judged.verdict.score) / 1000.0,
        evidence: judged.evidence.clone(),
        subject: subject(&incoming.message),
        size: incoming.message.size() as u64,
        held_ms: now_ms(),
        max_days_to_retry: judged.user.settings.max_days_to_retry,
    };
    let result = keep(line, incoming, judged, held, once).await;
    match &result {
        Ok(true) => {
            line.metrics.quarantined.inc();
        }
        Ok(false) => {}
        Err(QuarantineError::Full) => tracing::debug!(id = %incoming.id, "no room for a held message"),
        Err(error) => tracing::error!(%error, id = %incoming.id, "cannot hold a message"),
    }
    result
}

/// Stamps and signs only what will be kept; what the spool needs to go on is never spent on quarantine.
async fn keep(
    line: &Line,
    incoming: &Incoming,
    judged: &Judged,
    held: Held,
    once: bool,
) -> Result<bool, QuarantineError> {
    if !line.queue.has_room() {
        return Err(QuarantineError::Full);
    }
    if once && !line.quarantine.wants(held.clone(), incoming.message.clone()).await? {
        return Ok(false);
    }
    let message = stamped(line, incoming, judged).await;
    line.disks.hold(&line.quarantine, held, message, once).await
}

fn refused(incoming: &Incoming, refusal: &Refusal) -> Outcome {
    match refusal {
        Refusal::TooLarge { limit } => Outcome::new(Reply::too_large(*limit), Status::Refused),
        Refusal::Structure(Fault::Loop) => Outcome::new(Reply::routing_loop(incoming.id), Status::Refused),
        Refusal::Structure(fault) => Outcome::new(Reply::structure(incoming.id, &fault.to_string()), Status::Refused),
        Refusal::HeaderFrom => Outcome::new(Reply::from_not_permitted(incoming.id), Status::Refused),
        Refusal::ScannerFailure => Outcome::new(Reply::scanner_failure(), Status::Rejected),
    }
}

/// An identity comes from the client and goes into a reply: one line of printable ASCII.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
}

fn report_lock(line: &Line, judged: &Judged, admission: &Applied<Admission>) {
    let Some(change) = &admission.outcome.lock else { return };
    let kind = cause_name(&change.cause);
    line.metrics.locks.get_or_create(&kind.into()).inc();
    tracing::warn!(
        user = %judged.user.login,
        identity = judged.identity.as_deref().unwrap_or_default(),
        cause = ?change.cause,
        to = ?change.to,
        index = admission.index,
        "locked"
    );
}

const fn cause_name(cause: &LockCause) -> &'static str {
    match cause {
        LockCause::Virus => "virus",
        LockCause::Phish { .. } => "phish",
        LockCause::Spam { .. } => "spam",
        LockCause::MeanScore { .. } => "mean_score",
        LockCause::InvalidRecipients { .. } => "invalid_recipients",
        LockCause::Limit { .. } => "limit",
        LockCause::Timeout => "timeout",
        LockCause::Manual { .. } => "manual",
    }
}

/// At MAIL by advice and at the end of DATA by decision, in the same words.
pub(crate) fn limit_reply(limit: u64, unit: LimitUnit, window: Window, retry_after_s: u64) -> Reply {
    Reply::limit(limit, unit_name(unit), window.as_str(), retry_after_s)
}

/// What the message counts in a window, as the state counts it.
fn cost(incoming: &Incoming, unit: LimitUnit) -> u64 {
    match unit {
        LimitUnit::Messages => 1,
        LimitUnit::Recipients => u64::try_from(incoming.envelope.recipients.len()).unwrap_or(u64::MAX),
    }
}

const fn unit_name(unit: LimitUnit) -> &'static str {
    match unit {
        LimitUnit::Messages => "messages",
        LimitUnit::Recipients => "recipients",
    }
}
