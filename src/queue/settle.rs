//! What follows from the outcomes of a round: final states, notices, the next attempt.

use std::sync::Arc;
use std::time::Duration;

use super::entry::{Action, Entry, RecipientStatus, Reported};
use super::notice;
use super::owner::{OwnerState, QueueMessage, answer, send};
use super::schedule::next_attempt_ms;
use crate::clock::now_ms;
use crate::delivery::{self, Answer, Fate, Outcome};
use crate::mail::{Message, MessageId};
use crate::maillog::record::Attempt;
use crate::maillog::{Event, Record, Status};
use crate::spool::{SpoolError, Then};

const NOTICE_RETRY: Duration = Duration::from_secs(5);

impl OwnerState {
    pub(super) fn note_outcomes(&mut self, id: MessageId, outcomes: Vec<Outcome>) {
        let took_some = outcomes.iter().any(|outcome| outcome.fate == Fate::Delivered);
        for outcome in outcomes {
            let Some(entry) = self.entries.get_mut(&id) else { return };
            let Outcome { recipient, fate, answer, dsn_passed_on } = outcome;
            let (status, name) = match fate {
                Fate::Delivered => (Status::Delivered, "delivered"),
                Fate::Deferred => (Status::Deferred, "deferred"),
                Fate::Bounced => (Status::Bounced, "bounced"),
            };
            self.delivery.metrics.deliveries.get_or_create(&name.into()).inc();
            self.maillog.record(attempt_record(entry, recipient, status, &answer));
            if fate == Fate::Delivered {
                if entry.let_go.is_set() {
                    self.delivery.metrics.duplicates.inc();
                }
                let wanted = entry.envelope.recipients.get(recipient).is_some_and(|to| to.notify.success);
                if wanted && !dsn_passed_on {
                    entry.relayed.push((recipient, answer.clone()));
                }
                entry.set(recipient, RecipientStatus::Delivered, Some(&answer));
            } else {
                entry.untried |= took_some && is_too_many(&answer);
                entry.set(recipient, RecipientStatus::Deferred, Some(&answer));
                entry.round.push((recipient, fate, answer));
            }
        }
    }

    /// One of the things under way is over; settles the message with the last.
    pub(super) fn came_back(&mut self, id: MessageId) {
        self.under_way = self.under_way.saturating_sub(1);
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.under_way = entry.under_way.saturating_sub(1);
        if entry.under_way > 0 {
            return;
        }
        if entry.message.take().is_some() {
            self.memory_bytes = self.memory_bytes.saturating_sub(entry.size);
        }
        if entry.let_go.is_set() {
            self.take_out(id);
        } else {
            self.settle(id);
        }
    }

    pub(super) fn settle(&mut self, id: MessageId) {
        let now = now_ms();
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.untried |= entry.pending().len() > entry.round.len();
        let gives_up = now >= entry.expires_ms || entry.round.iter().any(|(_, fate, _)| *fate == Fate::Bounced);
        if entry.envelope.reverse_path.is_null() && gives_up && !entry.round.is_empty() {
            for (recipient, fate, _) in std::mem::take(&mut entry.round) {
                if fate == Fate::Bounced {
                    entry.set(recipient, RecipientStatus::Refused, None);
                }
            }
            self.set_frozen(id, true, "a notice that cannot be delivered is frozen");
            return;
        }
        let reported = self.take_report(id, now);
        if reported.is_empty() {
            self.close_or_schedule(id);
            return;
        }
        self.note_progress(id);
        self.tell_sender(id, reported, now);
    }

    /// What the sender is to hear of this round, and what it did not ask to hear of as well: the state follows both.
    pub(super) fn take_report(&mut self, id: MessageId, now: u64) -> Vec<Reported> {
        let Some(entry) = self.entries.get_mut(&id) else { return Vec::new() };
        let expired = now >= entry.expires_ms;
        let retry = &self.delivery.config.delivery.retry;
        let late = retry.delay_notice_s > 0 && now.saturating_sub(entry.arrived_ms) >= retry.delay_notice_s * 1000;
        let late = late && !expired && !entry.progress.delay_notified && !entry.envelope.reverse_path.is_null();
        let mut reported = Vec::new();
        for (recipient, fate, answer) in std::mem::take(&mut entry.round) {
            let notify = entry.envelope.recipients.get(recipient).map(|to| to.notify).unwrap_or_default();
            let action = match fate {
                Fate::Bounced => Action::Failed,
                Fate::Deferred if expired => Action::Expired,
                Fate::Deferred if late && notify.delay => Action::Delayed,
                Fate::Deferred | Fate::Delivered => continue,
            };
            reported.push(Reported { recipient, action, answer });
        }
        let relayed = std::mem::take(&mut entry.relayed).into_iter();
        reported.extend(relayed.map(|(recipient, answer)| Reported { recipient, action: Action::Relayed, answer }));
        reported
    }

    /// Stores the notice, however long that takes, and comes back with [`QueueMessage::Noticed`].
    pub(super) fn tell_sender(&mut self, id: MessageId, reported: Vec<Reported>, now: u64) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let wanted: Vec<Reported> = reported.iter().filter(|about| wants(entry, about)).cloned().collect();
        if wanted.is_empty() || entry.envelope.reverse_path.is_null() {
            self.noticed_now(id, &reported);
            return;
        }
        entry.under_way += 1;
        self.under_way += 1;
        let about = entry.without_message();
        let (delivery, myself, hostname) =
            (Arc::clone(&self.delivery), self.myself.clone(), Arc::clone(&self.hostname));
        tokio::spawn(async move {
            let notice = store_notice(&delivery, &about, &wanted, &hostname, now).await;
            send(&myself, QueueMessage::Noticed { of: about.id, told: reported, notice });
        });
    }

    pub(super) fn noticed(&mut self, of: MessageId, told: &[Reported], notice: Option<Box<Entry>>) {
        self.under_way = self.under_way.saturating_sub(1);
        if let Some(entry) = self.entries.get_mut(&of) {
            entry.under_way = entry.under_way.saturating_sub(1);
        }
        if let Some(notice) = notice {
            let detail = format!("notice {} to {}", notice.id, notice.recipient(0));
            let failed = told.iter().any(|about| matches!(about.action, Action::Failed | Action::Expired));
            self.change(of, if failed { Status::Bounced } else { Status::Queued }, "queue", &detail);
            self.add(*notice);
        }
        self.noticed_now(of, told);
    }

    /// Failures are final now.
    pub(super) fn noticed_now(&mut self, of: MessageId, told: &[Reported]) {
        let Some(entry) = self.entries.get_mut(&of) else { return };
        let mut expired = Vec::new();
        for about in told {
            match about.action {
                Action::Failed => entry.set(about.recipient, RecipientStatus::Bounced, None),
                Action::Expired => {
                    entry.set(about.recipient, RecipientStatus::Expired, None);
                    expired.push(attempt_record(entry, about.recipient, Status::Expired, &about.answer));
                }
                Action::Delayed => entry.progress.delay_notified = true,
                Action::Relayed => {}
            }
        }
        for record in expired {
            self.delivery.metrics.deliveries.get_or_create(&"expired".into()).inc();
            self.maillog.record(record);
        }
        self.close_or_schedule(of);
    }

    pub(super) fn close_or_schedule(&mut self, id: MessageId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if entry.let_go.is_set() {
            self.take_out(id);
            return;
        }
        if entry.pending().is_empty() {
            self.forget(id);
            return;
        }
        let retry = &self.delivery.config.delivery.retry;
        let next_ms = next_attempt_ms(retry, entry.arrived_ms, now_ms(), entry.expires_ms);
        entry.progress.next_attempt_ms = if std::mem::take(&mut entry.untried) { now_ms() } else { next_ms };
        if !entry.progress.frozen {
            self.due.insert((entry.progress.next_attempt_ms, id));
        }
        self.note_progress(id);
    }

    pub(super) fn note_progress(&self, id: MessageId) {
        let Some(entry) = self.entries.get(&id) else { return };
        match entry.progress_bytes() {
            Ok(bytes) => self.delivery.disks.progress(id, bytes),
            Err(error) => tracing::error!(%id, %error, "cannot note the state of a message"),
        }
    }

    /// The message is over.
    pub(super) fn forget(&mut self, id: MessageId) {
        let Some(mut entry) = self.take_out(id) else { return };
        let removal = entry.removal.take();
        let told = removal.map(|reply| -> Then { Box::new(move || answer(reply, Ok(()))) });
        self.delivery.disks.done(id, told);
    }

    pub(super) fn take_out(&mut self, id: MessageId) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        self.due.remove(&(entry.progress.next_attempt_ms, id));
        self.delivery.metrics.queue_messages.dec();
        if entry.progress.frozen {
            self.delivery.metrics.queue_frozen.dec();
        }
        if entry.message.is_some() {
            self.memory_bytes = self.memory_bytes.saturating_sub(entry.size);
        }
        Some(entry)
    }
}

/// The hop takes no more recipients in one transaction, and the others in another at once (RFC 5321 section 4.5.3.1.10).
fn is_too_many(answer: &Answer) -> bool {
    match answer.reply.get(..3) {
        Some("452") => matches!(answer.status.as_str(), "4.5.3" | "4.0.0"),
        Some("552") => answer.status == "5.5.3",
        Some(_) | None => false,
    }
}

/// NOTIFY decides; delays and successes are only reported where it asked for them.
fn wants(entry: &Entry, about: &Reported) -> bool {
    let notify = entry.envelope.recipients.get(about.recipient).map(|to| to.notify).unwrap_or_default();
    match about.action {
        Action::Failed | Action::Expired => notify.failure,
        Action::Delayed => notify.delay,
        Action::Relayed => notify.success,
    }
}

/// Tries until it is on disk; `None` only when the spool has stopped for good.
async fn store_notice(
    delivery: &delivery::Shared,
    about: &Entry,
    reported: &[Reported],
    hostname: &str,
    now: u64,
) -> Option<Box<Entry>> {
    let original: Option<Message> = delivery.disks.read(about.id).await.unwrap_or_else(|error| {
        tracing::error!(id = %about.id, %error, "a notice goes without the message that it speaks of");
        None
    });
    let notice = Entry::new(notice::build(about, original.as_ref(), reported, hostname, now)?, now);
    let meta = notice.meta_bytes().ok()?;
    let body = notice.message.as_ref()?.bytes().clone();
    loop {
        match delivery.disks.store(notice.id, meta.clone(), body.clone(), true).await {
            Ok(()) => return Some(Box::new(notice)),
            Err(SpoolError::Stopped) => return None,
            Err(error) => tracing::warn!(id = %about.id, %error, "cannot store a notice yet"),
        }
        tokio::time::sleep(NOTICE_RETRY).await;
    }
}

fn attempt_record(entry: &Entry, recipient: usize, status: Status, answer: &Answer) -> Record {
    let attempt = Attempt {
        origin: entry.origin(),
        recipient: entry.recipient(recipient).to_owned(),
        status,
        host: answer.host.clone(),
        address: answer.address,
        reply: answer.reply.clone(),
        tls: answer.tls.as_deref().map(str::to_owned),
    };
    Record { at_ms: now_ms(), id: entry.id, event: Event::Attempt(attempt) }
}
