//! Disk and cluster: the message is stored while its admission is decided.

use std::time::Instant;

use outgate_cluster::{
    Admission, AdmissionId, AdmissionVerdict, Admit, Applied, Cluster, DomainName, ProposeError, Wish,
};

use super::judge::{Judged, recipient_hash};
use super::record::class_name;
use super::{Incoming, Line};
use crate::clock::now_ms;
use crate::mail::{Address, Message};
use crate::policy::sender::may_sign_for;
use crate::policy::{Disposition, disposition};
use crate::queue::{AdmissionTag, NewMessage, Stored};
use crate::smtp::Reply;
use crate::spool::SpoolError;
use crate::stamp::{self, Peer, Stamp};

/// Proposals with the same admission id before the client is told to try later.
const PROPOSALS_MAX: u32 = 2;
const DAY_MS: u64 = 24 * 3600 * 1000;

/// What disk and cluster said.
pub(super) struct Decided {
    /// `Err` = no decision: the reply that says so.
    pub(super) disposition: Result<Disposition, Reply>,
    pub(super) admission: Option<Applied<Admission>>,
    /// Only beside [`Disposition::Deliver`].
    pub(super) stored: Option<(Stored, Unsettled)>,
}

/// An admission id whose outcome still matters to somebody. Settles it when dropped.
pub(super) struct Unsettled {
    cluster: Cluster,
    id: AdmissionId,
    kept: bool,
}

impl Unsettled {
    fn new(cluster: &Cluster) -> Self {
        Self { cluster: cluster.clone(), id: cluster.next_admission(), kept: false }
    }

    fn tag(&self) -> AdmissionTag {
        AdmissionTag { node: self.id.node, epoch: self.id.epoch, sequence: self.id.sequence }
    }

    /// The queue settles it from here on.
    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        if !self.kept {
            self.cluster.settle(self.id);
        }
    }
}

pub(super) async fn decide(line: &Line, incoming: &Incoming, judged: &Judged) -> Decided {
    let Some(wish) = judged.wish() else {
        return Decided { disposition: Ok(content_refusal(judged)), admission: None, stored: None };
    };
    let unsettled = Unsettled::new(&line.cluster);
    let owner_epoch = line.cluster.owner_epoch();
    let admit = admit(line, admission(incoming, judged, wish, unsettled.id));
    let (early, admission) = if judged.stores_early() {
        let (stored, admission) = tokio::join!(store(line, incoming, judged, unsettled.tag()), admit);
        (Some(stored), admission)
    } else {
        (None, admit.await)
    };
    let admission = match admission {
        Ok(admission) => admission,
        Err(error) => {
            discard(line, early);
            return Decided { disposition: Err(undecided(&error)), admission: None, stored: None };
        }
    };
    if line.cluster.owner_epoch() != owner_epoch {
        // Mirrors sorted what this node had when it was declared down, perhaps before this decision.
        discard(line, early);
        return Decided { disposition: Err(Reply::undecided()), admission: Some(admission), stored: None };
    }
    let disposition = disposition(judged.intent.clone(), &admission.outcome.verdict, &judged.user.settings);
    if disposition != Disposition::Deliver {
        discard(line, early);
        return Decided { disposition: Ok(disposition), admission: Some(admission), stored: None };
    }
    let stored = match early {
        Some(stored) => stored,
        None => store(line, incoming, judged, unsettled.tag()).await,
    };
    match stored {
        Ok(stored) => {
            Decided { disposition: Ok(disposition), admission: Some(admission), stored: Some((stored, unsettled)) }
        }
        Err(error) => Decided { disposition: Err(not_stored(&error)), admission: Some(admission), stored: None },
    }
}

/// The message as it leaves.
pub(super) async fn stamped(line: &Line, incoming: &Incoming, judged: &Judged) -> Message {
    let message = with_fields(line, incoming, judged);
    let keys = signing_keys(line, incoming, judged);
    if keys.is_empty() {
        return message;
    }
    let unsigned = message.clone();
    let signed = tokio::task::spawn_blocking(move || stamp::dkim::sign(&message, &keys));
    signed.await.unwrap_or_else(|error| {
        tracing::error!(%error, "signing panicked, message leaves unsigned");
        unsigned
    })
}

fn content_refusal(judged: &Judged) -> Disposition {
    disposition(judged.intent.clone(), &AdmissionVerdict::Recorded, &judged.user.settings)
}

fn admission(incoming: &Incoming, judged: &Judged, wish: Wish, id: AdmissionId) -> Admit {
    Admit {
        id,
        settled_below: 0,
        user: judged.user.id,
        identity: judged.identity.clone(),
        wish,
        class: judged.verdict.class,
        score: judged.verdict.score,
        recipients: incoming.envelope.recipients.iter().map(|to| recipient_hash(&to.address)).collect(),
        null_sender: incoming.envelope.reverse_path.is_null(),
        to_contact: judged.to_contact,
        message: incoming.id.to_string(),
    }
}

/// A proposal that timed out may have been committed: it goes again under the same id, which counts once at most.
async fn admit(line: &Line, admit: Admit) -> Result<Applied<Admission>, ProposeError> {
    let started = Instant::now();
    let mut proposals = 1;
    let result = loop {
        match line.cluster.admit(admit.clone()).await {
            Err(ProposeError::Timeout) if proposals < PROPOSALS_MAX => proposals += 1,
            other => break other,
        }
    };
    line.metrics.admission_seconds.observe(started.elapsed().as_secs_f64());
    result
}

async fn store(line: &Line, incoming: &Incoming, judged: &Judged, tag: AdmissionTag) -> Result<Stored, SpoolError> {
    let message = stamped(line, incoming, judged).await;
    let keep_ms = judged.user.settings.max_days_to_retry.saturating_mul(DAY_MS);
    let new = NewMessage {
        id: incoming.id,
        envelope: incoming.envelope.clone(),
        message,
        login: Some(judged.user.login.to_string()),
        domain: judged.user.domain.as_str().to_owned(),
        expires_ms: now_ms().saturating_add(keep_ms),
        admission: Some(tag),
    };
    line.queue.store(new).await
}

fn discard(line: &Line, stored: Option<Result<Stored, SpoolError>>) {
    match stored {
        Some(Ok(stored)) => line.queue.discard(stored),
        Some(Err(error)) => tracing::warn!(%error, "message was not stored, and needed not be"),
        None => {}
    }
}

fn undecided(error: &ProposeError) -> Reply {
    tracing::warn!(%error, "no decision on a message");
    match error {
        ProposeError::Timeout | ProposeError::Busy | ProposeError::TooLarge { .. } => Reply::undecided(),
        ProposeError::DiskFull => Reply::disk_full(),
        ProposeError::NoQuorum | ProposeError::Stopped(_) => Reply::not_now(),
    }
}

fn not_stored(error: &SpoolError) -> Reply {
    tracing::error!(%error, "cannot store a message");
    match error {
        SpoolError::Full(_) => Reply::disk_full(),
        SpoolError::Io(..) | SpoolError::Stopped | SpoolError::OfAnother(_) | SpoolError::NoMirror(_) => {
            Reply::undecided()
        }
    }
}

fn with_fields(line: &Line, incoming: &Incoming, judged: &Judged) -> Message {
    let (client, envelope) = (&incoming.client, &incoming.envelope);
    let login = judged.user.login.to_string();
    let contact = judged.contact.clone().unwrap_or_else(|| format!("postmaster@{}", line.hostname));
    let headers = &judged.user.settings.identification_headers;
    let removed: Vec<_> = headers.iter().filter(|header| header.remove).map(|header| header.name.as_str()).collect();
    let stamp = Stamp {
        id: incoming.id,
        at: jiff::Timestamp::now(),
        hostname: &line.hostname,
        client: Peer {
            helo: &client.helo,
            address: client.address,
            tls: client.tls.as_ref().map(|tls| (tls.version.as_str(), tls.cipher.as_str())),
            authenticated: client.user.authentication_user.is_some(),
        },
        smtputf8: envelope.smtputf8,
        recipient: match envelope.recipients.as_slice() {
            [only] => Some(&only.address),
            _ => None,
        },
        domain: judged.user.domain.as_str(),
        login: &login,
        identity: judged.identity.as_deref(),
        class: class_name(judged.verdict.class),
        evidence: &judged.evidence,
        abuse_contact: &contact,
        removed: &removed,
    };
    stamp::stamp(&stamp, &incoming.message)
}

/// The keys of the author's domain under the User's selector, where the User may sign for it; the envelope sender's where
/// header From names nobody.
fn signing_keys(line: &Line, incoming: &Incoming, judged: &Judged) -> Vec<outgate_cluster::state::DkimKey> {
    let author = judged.from.first().or_else(|| incoming.envelope.reverse_path.address());
    let domain = author.and_then(Address::dns_domain).and_then(|domain| DomainName::new(&domain).ok());
    let Some(domain) = domain.filter(|domain| may_sign_for(&judged.user, domain)) else { return Vec::new() };
    let selector = &judged.user.settings.dkim_selector;
    let mut keys = line.cluster.read(|state| state.dkim_keys(Some(&domain)));
    keys.retain(|key| key.selector == *selector || key.selector == key.algorithm.selector_beside(selector));
    keys
}
