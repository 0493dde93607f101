//! The one mail-log record of an end of DATA.

use std::time::Instant;

use mail_parser::parsers::MessageStream;
use outgate_cluster::command::{LimitUnit, LockState};
use outgate_cluster::{Admission, AdmissionVerdict, Applied, Charge, Class, Scope};

use super::judge::{Judged, contained};
use super::{Client, Incoming, Line};
use crate::check::Check;
use crate::clock::now_ms;
use crate::mail::{Envelope, Message, MessageId};
use crate::maillog::record::Submission;
use crate::maillog::{Event, Record, Status};
use crate::smtp::{Fault, Reply};

/// Characters of a header field that the log keeps.
const FIELD_LENGTH_MAX: usize = 256;
/// Recipients that the log names; all of them are in the envelope.
const RECIPIENTS_MAX: usize = 1_000;

/// How an end of DATA ended.
pub(super) struct Outcome {
    reply: Reply,
    status: Status,
    /// `None` = what the content was.
    class: Option<Class>,
    admission: Option<Applied<Admission>>,
}

impl Outcome {
    pub(super) fn new(reply: Reply, status: Status) -> Self {
        Self { reply, status, class: None, admission: None }
    }

    pub(super) fn of_class(mut self, class: Class) -> Self {
        self.class = Some(class);
        self
    }

    pub(super) fn decided_by(mut self, admission: Option<Applied<Admission>>) -> Self {
        self.admission = admission;
        self
    }
}

/// Logs and counts; returns the reply.
pub(super) fn finish(
    line: &Line,
    incoming: &Incoming,
    judged: Option<&Judged>,
    outcome: Outcome,
    started: Instant,
) -> Reply {
    let Outcome { reply, status, class, admission } = outcome;
    let class = class.or(judged.map(|judged| judged.verdict.class)).unwrap_or(Class::Blocked);
    let elapsed = started.elapsed();
    line.metrics.submission_seconds.observe(elapsed.as_secs_f64());
    let blank = blank(line, &incoming.client, &incoming.envelope, incoming.message.size() as u64, &reply);
    let submission = Submission {
        domain: judged.map_or(blank.domain, |judged| judged.user.domain.as_str().to_owned()),
        identity: judged.and_then(|judged| judged.identity.clone()),
        header_from: field(&incoming.message, "From"),
        subject: subject(&incoming.message),
        message_id: field(&incoming.message, "Message-ID"),
        class: class_name(class).to_owned(),
        score: judged.map_or(0.0, |judged| f32::from(judged.verdict.score) / 1000.0),
        evidence: judged.map(|judged| judged.evidence.clone()).unwrap_or_default(),
        status,
        log_index: admission.as_ref().map(|admission| admission.index),
        counters: admission.as_ref().map(|admission| counters(&admission.outcome.charges)).unwrap_or_default(),
        cost: admission.as_ref().map_or(0, |admission| cost(incoming, &admission.outcome)),
        lock: admission.as_ref().map_or("", |admission| lock_name(&admission.outcome)).to_owned(),
        micros: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
        ..blank
    };
    write(line, incoming.id, class, &reply, submission);
    reply
}

/// Logs and counts an end of DATA that never became a whole message; returns the reply.
pub(super) fn refused(
    line: &Line,
    id: MessageId,
    client: &Client,
    envelope: &Envelope,
    size: u64,
    fault: Fault,
) -> Reply {
    let structure = |what| (Check::Structure, what, Reply::structure(id, what), Class::Blocked);
    let (check, text, reply, class) = match fault {
        Fault::TooLarge { limit } => (Check::Size, "too large", Reply::too_large(limit), Class::Oversize),
        Fault::BareCr => structure("a CR without LF"),
        Fault::BareLf => structure("an LF without CR"),
        Fault::Nul => structure("a NUL octet"),
        Fault::NoRoom => (Check::Content, "no memory for it", Reply::undecided(), Class::Blocked),
    };
    let submission = Submission {
        class: class_name(class).to_owned(),
        evidence: vec![format!("{}: {text}", check.name())],
        ..blank(line, client, envelope, size, &reply)
    };
    write(line, id, class, &reply, submission);
    reply
}

fn write(line: &Line, id: MessageId, class: Class, reply: &Reply, submission: Submission) {
    line.metrics.messages.get_or_create(&class_name(class).into()).inc();
    line.metrics.replies.get_or_create(&reply_kind(reply).into()).inc();
    line.maillog.record(Record { at_ms: now_ms(), id, event: Event::Submission(Box::new(submission)) });
}

/// What is known without a judged message.
fn blank(line: &Line, client: &Client, envelope: &Envelope, size: u64, reply: &Reply) -> Submission {
    Submission {
        node: line.cluster.node_id(),
        domain: client.user.view.domain.as_str().to_owned(),
        user: client.user.view.login.to_string(),
        identity: None,
        sender: envelope.reverse_path.to_string(),
        recipients: envelope.recipients.iter().take(RECIPIENTS_MAX).map(|to| to.address.to_string()).collect(),
        header_from: String::new(),
        subject: String::new(),
        message_id: String::new(),
        client: client.address,
        helo: client.helo.clone(),
        size,
        class: String::new(),
        score: 0.0,
        evidence: Vec::new(),
        reply: reply.to_string(),
        status: Status::Refused,
        log_index: None,
        counters: Vec::new(),
        cost: 0,
        lock: String::new(),
        micros: 0,
    }
}

/// The subject as a reader sees it: encoded words (RFC 2047) decoded.
pub(super) fn subject(message: &Message) -> String {
    let raw = field(message, "Subject");
    if !raw.contains("=?") {
        return raw;
    }
    let line = format!("{raw}\r\n");
    let decoded = contained(|| MessageStream::new(line.as_bytes()).parse_unstructured().into_text());
    decoded.flatten().map_or(raw, |text| bounded(&text))
}

fn field(message: &Message, name: &str) -> String {
    message.named(name).next().map(|header| bounded(&header.text())).unwrap_or_default()
}

fn bounded(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(FIELD_LENGTH_MAX).collect()
}

/// `scope/window used/limit`; windows without a limit say nothing.
fn counters(charges: &[Charge]) -> Vec<String> {
    let limited = charges.iter().filter(|charge| charge.limit > 0);
    let text = |charge: &Charge| {
        let (scope, window) = (scope_name(charge.scope), charge.window.as_str());
        format!("{scope}/{window} {}/{}", charge.used, charge.limit)
    };
    limited.map(text).collect()
}

/// What the User's windows counted.
fn cost(incoming: &Incoming, admission: &Admission) -> u64 {
    match (admission.verdict == AdmissionVerdict::Accepted, incoming.client.user.view.settings.limit_unit) {
        (false, _) => 0,
        (true, LimitUnit::Messages) => 1,
        (true, LimitUnit::Recipients) => incoming.envelope.recipients.len() as u64,
    }
}

fn lock_name(admission: &Admission) -> &'static str {
    let at_decision = match &admission.verdict {
        AdmissionVerdict::Locked { state, .. } => Some(*state),
        AdmissionVerdict::Accepted
        | AdmissionVerdict::Recorded
        | AdmissionVerdict::Limit { .. }
        | AdmissionVerdict::DistinctRecipients { .. }
        | AdmissionVerdict::NoUser
        | AdmissionVerdict::Stale => admission.lock.as_ref().map(|change| change.to),
    };
    match at_decision.unwrap_or(LockState::Unlocked) {
        LockState::Unlocked => "unlocked",
        LockState::Locked { .. } => "locked",
        LockState::LockedPermanently => "locked_permanently",
        LockState::LockedManually => "locked_manually",
    }
}

const fn scope_name(scope: Scope) -> &'static str {
    match scope {
        Scope::User => "user",
        Scope::Identity => "identity",
        Scope::Domain => "domain",
        Scope::NullSender => "null_sender",
    }
}

const fn reply_kind(reply: &Reply) -> &'static str {
    match reply.code {
        200..=299 => "2xx",
        500..=599 => "5xx",
        _ => "4xx",
    }
}

pub(super) const fn class_name(class: Class) -> &'static str {
    match class {
        Class::Clean => "clean",
        Class::Unsure => "unsure",
        Class::Spam => "spam",
        Class::Phish => "phish",
        Class::Virus => "virus",
        Class::Blocked => "blocked",
        Class::Locked => "locked",
        Class::Limit => "limit",
        Class::Oversize => "oversize",
    }
}
