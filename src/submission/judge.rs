//! Everything that is known of a message before the cluster is asked.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use outgate_cluster::Wish;
use outgate_cluster::state::settings::{ScannerFailure, Settings};
use outgate_cluster::state::{Advice, UserView};

use super::{Client, Incoming, Line};
use crate::check::{self, Check, Effect, Facts, Finding, HeaderFrom, Refusal};
use crate::clock::now_ms;
use crate::mail::{Address, Message};
use crate::policy::identity::{Traits, identity};
use crate::policy::{self, Bands, Intent, Verdict, sender};

/// Larger messages are checked on a thread that may block: decoding them takes milliseconds.
const CHECKED_INLINE_MAX: usize = 256 << 10;

/// The checks of the content: [`check::run`].
pub(super) type Checks = fn(&Facts, &Message) -> Vec<Finding>;

/// A judged message.
pub(super) struct Judged {
    pub(super) user: Arc<UserView>,
    pub(super) identity: Option<String>,
    pub(super) from: HeaderFrom,
    /// One line for each finding.
    pub(super) evidence: Vec<String>,
    pub(super) verdict: Verdict,
    pub(super) intent: Intent,
    /// The admin contact of the User's domain.
    pub(super) contact: Option<String>,
    /// The only recipient is that contact: passes a lock.
    pub(super) to_contact: bool,
    /// By this replica the User is locked: the message is not stored before the cluster has decided.
    pub(super) looks_locked: bool,
}

pub(super) async fn judge(line: &Line, user: Arc<UserView>, incoming: &Incoming, checks: Checks) -> Judged {
    let settings = Arc::clone(&user.settings);
    let traits = Traits {
        reverse_path: &incoming.envelope.reverse_path,
        authentication_user: incoming.client.user.authentication_user.as_deref(),
        message: Some(&incoming.message),
    };
    let identity = identity(&settings, traits);
    let (contact, advice) = surroundings(line, &user, identity.as_deref());
    let (from, found) = content(&incoming.message, &settings, checks).await;
    let mut findings = vec![authentication(&incoming.client)];
    findings.extend(found);
    findings.extend(sender::header_from(&settings, &from));
    let verdict = policy::judge(&findings, Bands::from(&*settings));
    let intent = policy::intent(&verdict, &settings);
    Judged {
        to_contact: is_to_contact(incoming, contact.as_deref()),
        looks_locked: matches!(advice, Advice::Locked { .. }),
        evidence: findings.iter().map(ToString::to_string).collect(),
        user,
        identity,
        from,
        verdict,
        intent,
        contact,
    }
}

impl Judged {
    /// Whether the message goes to disk while the cluster decides, or waits for the decision.
    pub(super) fn stores_early(&self) -> bool {
        self.intent == Intent::Deliver && (self.to_contact || !self.looks_locked)
    }

    pub(super) fn wish(&self) -> Option<Wish> {
        self.intent.wish()
    }
}

/// The same value on every node and for ever, or different recipients would be counted twice; not a secret, only a
/// domain of its own.
pub fn recipient_hash(address: &Address) -> u64 {
    const CONTEXT: &str = "outgate 2026 distinct recipients v1";
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(address.as_str().to_lowercase().as_bytes());
    let mut first = [0; 8];
    hasher.finalize_xof().fill(&mut first);
    u64::from_le_bytes(first)
}

fn surroundings(line: &Line, user: &UserView, identity: Option<&str>) -> (Option<String>, Advice) {
    let now = line.cluster.now();
    line.cluster.read(|state| {
        let contact = state.domain(&user.domain).and_then(|domain| domain.contact);
        (contact, state.advise(user.id, identity, now))
    })
}

fn is_to_contact(incoming: &Incoming, contact: Option<&str>) -> bool {
    match incoming.envelope.recipients.as_slice() {
        [only] => contact.is_some_and(|contact| only.address.as_str().eq_ignore_ascii_case(contact)),
        _ => false,
    }
}

/// How the client proved who it is: a note for the log.
fn authentication(client: &Client) -> Finding {
    let view = &client.user.view;
    let how = if client.user.authentication_user.is_some() { "password" } else { "address" };
    let tls = client.tls.as_ref().map_or("clear text", |tls| tls.version.as_str());
    let text = format!("{} by {how}, {tls}", view.login);
    Finding { check: Check::Authentication, effect: Effect::Note, text }
}

/// Whoever wrote the message may have found a way to make a check panic: then nothing is known of the content, and
/// `scanner_failure` says what follows.
async fn content(message: &Message, settings: &Settings, checks: Checks) -> (HeaderFrom, Vec<Finding>) {
    let now_s = i64::try_from(now_ms() / 1000).unwrap_or(i64::MAX);
    let facts = Facts { now_s, max_message_size: settings.max_message_size };
    let inline = message.size() <= CHECKED_INLINE_MAX;
    let message = message.clone();
    let read = move || (contained(|| check::header_from(&message)), contained(|| checks(&facts, &message)));
    let (from, found) = if inline { read() } else { tokio::task::spawn_blocking(read).await.unwrap_or_default() };
    match (from, found) {
        (Some(from), Some(found)) => (from, found),
        (from, _) => {
            tracing::error!(consequence = ?settings.scanner_failure, "the checks of a message panicked");
            (from.unwrap_or(HeaderFrom::Unreadable), vec![failed(settings.scanner_failure)])
        }
    }
}

fn failed(consequence: ScannerFailure) -> Finding {
    let effect = match consequence {
        ScannerFailure::Defer => Effect::Refuse(Refusal::ScannerFailure),
        ScannerFailure::Accept => Effect::Note,
    };
    Finding { check: Check::Content, effect, text: "the checks failed, nothing is known of the content".to_owned() }
}

/// `None` = `work` panicked. It must own or only read what it works on.
pub(super) fn contained<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}
