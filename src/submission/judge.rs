//! Everything that is known of a message before the cluster is asked.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use outgate_cluster::Wish;
use outgate_cluster::state::{Advice, UserView};

use super::{Client, Incoming, Line};
use crate::check::{self, Check, Effect, Facts, Finding, HeaderFrom};
use crate::mail::{Address, Message};
use crate::policy::identity::{Traits, identity};
use crate::policy::{self, Bands, Intent, Verdict, sender};

/// Larger messages are checked on a thread that may block: decoding them takes milliseconds.
const CHECKED_INLINE_MAX: usize = 256 << 10;

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

pub(super) async fn judge(line: &Line, user: Arc<UserView>, incoming: &Incoming) -> Judged {
    let settings = Arc::clone(&user.settings);
    let traits = Traits {
        reverse_path: &incoming.envelope.reverse_path,
        authentication_user: incoming.client.user.authentication_user.as_deref(),
        message: Some(&incoming.message),
    };
    let identity = identity(&settings, traits);
    let (contact, advice) = surroundings(line, &user, identity.as_deref());
    let from = check::header_from(&incoming.message);
    let mut findings = vec![authentication(&incoming.client)];
    findings.extend(sender::header_from(&settings, &from));
    findings.extend(checked(&incoming.message, settings.max_message_size).await);
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

async fn checked(message: &Message, max_message_size: u64) -> Vec<Finding> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let facts = Facts { now_s: i64::try_from(now.as_secs()).unwrap_or(i64::MAX), max_message_size };
    if message.size() <= CHECKED_INLINE_MAX {
        return check::run(&facts, message);
    }
    let message = message.clone();
    let checks = tokio::task::spawn_blocking(move || check::run(&facts, &message));
    checks.await.unwrap_or_else(|error| {
        tracing::error!(%error, "the checks of a message panicked");
        Vec::new()
    })
}
