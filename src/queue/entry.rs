//! A message in the queue, and the two forms in which the spool keeps what belongs to it.

use std::sync::Arc;

use bincode::Options;
use serde::{Deserialize, Serialize};

use super::operate::Done;
use super::{AdmissionTag, NewMessage, QueueEntry, QueueRecipient};
use crate::delivery::{Answer, Fate, LetGo};
use crate::mail::{Envelope, Message, MessageId};
use crate::maillog::Origin;
use crate::spool::Found;

const META_MAX_BYTES: u64 = 16 << 20;
/// Of a reply that is kept with a recipient.
const REPLY_MAX_CHARS: usize = 500;

/// What never changes, beside the bytes.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub(crate) struct Meta {
    pub(crate) envelope: Envelope,
    pub(crate) login: Option<String>,
    pub(crate) domain: String,
    pub(crate) arrived_ms: u64,
    pub(crate) expires_ms: u64,
    pub(crate) admission: Option<AdmissionTag>,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RecipientStatus {
    Queued,
    Deferred,
    Delivered,
    Bounced,
    Expired,
    /// Failed for good, and kept in a frozen notice.
    Refused,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub(crate) struct RecipientState {
    pub(crate) status: RecipientStatus,
    /// `host: reply`.
    pub(crate) last_reply: Option<String>,
}

/// What changes, and is noted after every round of attempts.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Progress {
    pub(crate) attempts: u32,
    pub(crate) frozen: bool,
    pub(crate) next_attempt_ms: u64,
    pub(crate) delay_notified: bool,
    pub(crate) recipients: Vec<RecipientState>,
}

/// What the sender is to hear of a recipient.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    Failed,
    Expired,
    Delayed,
    /// Delivered to a hop that sends no notices of its own.
    Relayed,
}

#[derive(Clone, Debug)]
pub(crate) struct Reported {
    /// Position in the envelope.
    pub(crate) recipient: usize,
    pub(crate) action: Action,
    pub(crate) answer: Answer,
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: MessageId,
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) login: Option<String>,
    pub(crate) domain: String,
    pub(crate) arrived_ms: u64,
    pub(crate) expires_ms: u64,
    pub(crate) admission: Option<AdmissionTag>,
    pub(crate) size: u64,
    /// Kept until the first attempt is over.
    pub(crate) message: Option<Message>,
    pub(crate) progress: Progress,
    /// Jobs that are under way, planning and writing of notices included.
    pub(crate) under_way: usize,
    /// The answers of this round, for those that did not fail for good with their last state in `progress`.
    pub(crate) round: Vec<(usize, Fate, Answer)>,
    /// Successes of this round that the sender asked to hear of.
    pub(crate) relayed: Vec<(usize, Answer)>,
    /// Some recipients were not really tried in this round: the node stops, or the hop takes a few at a time.
    pub(crate) untried: bool,
    /// Others have taken it over: it is here only until what was under way comes back.
    pub(crate) let_go: LetGo,
    /// The administrator who removes it waits for this.
    pub(crate) removal: Option<Done>,
}

fn codec() -> impl Options {
    bincode::DefaultOptions::new().with_limit(META_MAX_BYTES)
}

impl Entry {
    pub(crate) fn new(new: NewMessage, arrived_ms: u64) -> Self {
        let size = new.message.size() as u64;
        let meta = Meta {
            envelope: new.envelope,
            login: new.login,
            domain: new.domain,
            arrived_ms,
            expires_ms: new.expires_ms,
            admission: new.admission,
        };
        Self { message: Some(new.message), ..Self::from_meta(new.id, meta, size) }
    }

    fn from_meta(id: MessageId, meta: Meta, size: u64) -> Self {
        let fresh = RecipientState { status: RecipientStatus::Queued, last_reply: None };
        let progress = Progress {
            attempts: 0,
            frozen: false,
            next_attempt_ms: meta.arrived_ms,
            delay_notified: false,
            recipients: vec![fresh; meta.envelope.recipients.len()],
        };
        Self {
            id,
            envelope: Arc::new(meta.envelope),
            login: meta.login,
            domain: meta.domain,
            arrived_ms: meta.arrived_ms,
            expires_ms: meta.expires_ms,
            admission: meta.admission,
            size,
            message: None,
            progress,
            under_way: 0,
            round: Vec::new(),
            relayed: Vec::new(),
            untried: false,
            let_go: LetGo::default(),
            removal: None,
        }
    }

    /// What an earlier life left; `None` if it cannot be read.
    pub(crate) fn recover(found: &Found) -> Option<Self> {
        let meta: Meta = codec().deserialize(&found.meta).ok()?;
        let mut entry = Self::from_meta(found.id, meta, found.size);
        if let Some(progress) = &found.progress {
            let progress: Progress = codec().deserialize(progress).ok()?;
            if progress.recipients.len() != entry.envelope.recipients.len() {
                return None;
            }
            entry.progress = progress;
        }
        Some(entry)
    }

    pub(crate) fn meta_bytes(&self) -> bincode::Result<Vec<u8>> {
        codec().serialize(&Meta {
            envelope: Envelope::clone(&self.envelope),
            login: self.login.clone(),
            domain: self.domain.clone(),
            arrived_ms: self.arrived_ms,
            expires_ms: self.expires_ms,
            admission: self.admission,
        })
    }

    pub(crate) fn progress_bytes(&self) -> bincode::Result<Vec<u8>> {
        codec().serialize(&self.progress)
    }

    /// A copy for a notice, without the bytes.
    pub(crate) fn without_message(&self) -> Self {
        Self {
            id: self.id,
            envelope: Arc::clone(&self.envelope),
            login: self.login.clone(),
            domain: self.domain.clone(),
            progress: self.progress.clone(),
            message: None,
            round: Vec::new(),
            relayed: Vec::new(),
            let_go: self.let_go.clone(),
            removal: None,
            ..*self
        }
    }

    /// Positions of the recipients that still need an attempt.
    pub(crate) fn pending(&self) -> Vec<usize> {
        let states = self.progress.recipients.iter().enumerate();
        states.filter_map(|(at, state)| state.status.is_open().then_some(at)).collect()
    }

    /// For the log.
    pub(crate) fn origin(&self) -> Origin {
        Origin {
            user: self.login.clone().unwrap_or_default(),
            domain: self.domain.clone(),
            sender: self.envelope.reverse_path.to_string(),
        }
    }

    pub(crate) fn recipient(&self, at: usize) -> &str {
        self.envelope.recipients.get(at).map_or("", |recipient| recipient.address.as_str())
    }

    pub(crate) fn set(&mut self, at: usize, status: RecipientStatus, answer: Option<&Answer>) {
        let Some(state) = self.progress.recipients.get_mut(at) else { return };
        state.status = status;
        if let Some(answer) = answer {
            state.last_reply = Some(one_line(answer));
        }
    }

    pub(crate) fn show(&self) -> QueueEntry {
        let recipients = self.envelope.recipients.iter().zip(&self.progress.recipients);
        QueueEntry {
            id: self.id,
            sender: self.envelope.reverse_path.to_string(),
            login: self.login.clone(),
            domain: self.domain.clone(),
            size: self.size,
            arrived_ms: self.arrived_ms,
            next_attempt_ms: self.progress.next_attempt_ms,
            attempts: self.progress.attempts,
            frozen: self.progress.frozen,
            recipients: recipients
                .map(|(recipient, state)| QueueRecipient {
                    address: recipient.address.to_string(),
                    status: state.status.name().to_owned(),
                    last_reply: state.last_reply.clone(),
                })
                .collect(),
        }
    }
}

impl Progress {
    /// What became of recipients elsewhere is final here as well.
    pub(crate) fn add(&mut self, other: &Self) {
        for (state, other) in self.recipients.iter_mut().zip(&other.recipients) {
            if !other.status.is_open() {
                state.clone_from(other);
            }
        }
        self.delay_notified |= other.delay_notified;
    }
}

impl RecipientStatus {
    fn is_open(self) -> bool {
        match self {
            Self::Queued | Self::Deferred | Self::Refused => true,
            Self::Delivered | Self::Bounced | Self::Expired => false,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Deferred => "deferred",
            Self::Delivered => "delivered",
            Self::Bounced | Self::Refused => "bounced",
            Self::Expired => "expired",
        }
    }
}

fn one_line(answer: &Answer) -> String {
    let reply: String = answer.reply.chars().take(REPLY_MAX_CHARS).collect();
    if answer.host.is_empty() { reply } else { format!("{}: {reply}", answer.host) }
}
