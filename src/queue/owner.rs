//! The Queue actor: owns every entry and the schedule, hands jobs to deliveries, draws the consequences.
//!
//! A message is under way from its attempt until every job, and the notice that may follow, has come back; then it is
//! settled: forgotten if nothing is left, else noted and scheduled. What an attempt delivered is noted before anything
//! else is waited for, so a crash never repeats it. A recipient that failed counts as deferred on disk until the
//! notice to the sender is on disk as well, so a crash repeats the attempt and never loses the notice.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

use super::entry::{Action, Entry, RecipientStatus, Reported};
use super::plan::{self, Leg, Plan};
use super::schedule::next_attempt_ms;
use super::{FindRoute, QueueEntry, QueueError, Route, notice, now_ms};
use crate::delivery::{self, Answer, Delivery, DeliveryMessage, Fate, Finished, Host, Job, NextHop, Outcome};
use crate::mail::{Message, MessageId};
use crate::maillog::record::Attempt;
use crate::maillog::{Event, Maillog, Record, Status};
use crate::spool::SpoolError;

/// Jobs that are handed out at once; the rest waits in the schedule.
const UNDER_WAY_MAX: usize = 50_000;
/// Bytes of messages kept in memory for their first attempt; above, they are read from the spool.
const MEMORY_MAX_BYTES: u64 = 128 << 20;
pub(crate) const TICK: Duration = Duration::from_millis(200);
/// Hops without work for so many ticks are stopped.
const HOP_IDLE_TICKS_MAX: u32 = 300;
const ROUTES_MAX: usize = 1000;
const NOTICE_RETRY: Duration = Duration::from_secs(5);

pub(crate) struct Owner;

/// What an operator may do to one message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    Retry,
    Freeze,
    Thaw,
    Remove { notify: bool },
}

pub(crate) enum QueueMessage {
    Start,
    Add(Box<Entry>),
    Tick,
    Planned {
        id: MessageId,
        plan: Plan,
        force: bool,
    },
    Finished(Finished),
    /// The notice for `of` is on disk, and is to be delivered.
    Noticed {
        of: MessageId,
        told: Vec<Reported>,
        notice: Option<Box<Entry>>,
    },
    List {
        after: Option<MessageId>,
        count: usize,
        reply: oneshot::Sender<Vec<QueueEntry>>,
    },
    Show {
        id: MessageId,
        reply: oneshot::Sender<Result<QueueEntry, QueueError>>,
    },
    Operate {
        id: MessageId,
        operation: Operation,
        reply: oneshot::Sender<Result<(), QueueError>>,
    },
    /// Nothing new begins; answered when nothing is under way.
    Stop(oneshot::Sender<()>),
}

/// What the actor is started with.
pub(crate) struct Parts {
    pub(crate) delivery: Arc<delivery::Shared>,
    pub(crate) hostname: String,
    pub(crate) maillog: Maillog,
    pub(crate) find_route: FindRoute,
    /// Takes all mail whose domain has no route.
    pub(crate) relay: Option<Route>,
    pub(crate) entries: Vec<Entry>,
}

struct Hop {
    actor: ActorRef<DeliveryMessage>,
    under_way: usize,
    idle_ticks: u32,
}

pub(crate) struct OwnerState {
    delivery: Arc<delivery::Shared>,
    hostname: Arc<str>,
    maillog: Maillog,
    find_route: FindRoute,
    relay: Option<Route>,
    myself: ActorRef<QueueMessage>,
    report: delivery::Report,
    entries: BTreeMap<MessageId, Entry>,
    due: BTreeSet<(u64, MessageId)>,
    hops: HashMap<Arc<NextHop>, Hop>,
    routes: HashMap<Route, (Arc<NextHop>, Arc<[Host]>)>,
    under_way: usize,
    memory_bytes: u64,
    started: bool,
    stopping: Vec<oneshot::Sender<()>>,
}

impl Actor for Owner {
    type Msg = QueueMessage;
    type State = OwnerState;
    type Arguments = Parts;

    async fn pre_start(&self, myself: ActorRef<QueueMessage>, parts: Parts) -> Result<OwnerState, ActorProcessingErr> {
        let actor = myself.clone();
        let mut state = OwnerState {
            delivery: parts.delivery,
            hostname: parts.hostname.into(),
            maillog: parts.maillog,
            find_route: parts.find_route,
            relay: parts.relay,
            report: Arc::new(move |finished| send(&actor, QueueMessage::Finished(finished))),
            entries: BTreeMap::new(),
            due: BTreeSet::new(),
            hops: HashMap::new(),
            routes: HashMap::new(),
            under_way: 0,
            memory_bytes: 0,
            started: false,
            stopping: Vec::new(),
            myself,
        };
        parts.entries.into_iter().for_each(|entry| state.add(entry));
        Ok(state)
    }

    async fn handle(
        &self,
        _myself: ActorRef<QueueMessage>,
        message: QueueMessage,
        state: &mut OwnerState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            QueueMessage::Start => state.started = true,
            QueueMessage::Add(entry) => state.add(*entry),
            QueueMessage::Tick => state.stop_idle_hops(),
            QueueMessage::Planned { id, plan, force } => state.planned(id, plan, force).await,
            QueueMessage::Finished(finished) => state.finished(finished),
            QueueMessage::Noticed { of, told, notice } => state.noticed(of, &told, notice),
            QueueMessage::List { after, count, reply } => answer(reply, state.list(after, count)),
            QueueMessage::Show { id, reply } => {
                answer(reply, state.entries.get(&id).map(Entry::show).ok_or(QueueError::Unknown(id)));
            }
            QueueMessage::Operate { id, operation, reply } => answer(reply, state.operate(id, operation).await),
            QueueMessage::Stop(reply) => state.stopping.push(reply),
        }
        state.go_on().await;
        Ok(())
    }
}

pub(crate) fn send(actor: &ActorRef<QueueMessage>, message: QueueMessage) {
    if actor.cast(message).is_err() {
        tracing::debug!("the queue has stopped");
    }
}

fn answer<T>(reply: oneshot::Sender<T>, value: T) {
    if reply.send(value).is_err() {
        tracing::debug!("nobody waited for the queue's answer");
    }
}

impl OwnerState {
    fn add(&mut self, mut entry: Entry) {
        self.delivery.metrics.queue_messages.inc();
        if entry.progress.frozen {
            self.delivery.metrics.queue_frozen.inc();
        } else {
            self.due.insert((entry.progress.next_attempt_ms, entry.id));
        }
        match &entry.message {
            Some(_) if self.memory_bytes + entry.size > MEMORY_MAX_BYTES => entry.message = None,
            Some(_) => self.memory_bytes += entry.size,
            None => {}
        }
        self.entries.insert(entry.id, entry);
    }

    /// Begins what is due; ends when asked to and nothing is under way.
    async fn go_on(&mut self) {
        if !self.stopping.is_empty() {
            if self.under_way == 0 {
                self.stopping.drain(..).for_each(|reply| answer(reply, ()));
            }
            return;
        }
        let now = now_ms();
        while self.started
            && self.under_way < UNDER_WAY_MAX
            && let Some(&(at_ms, id)) = self.due.first()
            && at_ms <= now
        {
            self.due.pop_first();
            self.attempt(id, false).await;
        }
    }

    async fn attempt(&mut self, id: MessageId, force: bool) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.progress.attempts += 1;
        entry.under_way = 1;
        self.under_way += 1;
        let pending = entry.pending();
        let Some(route) = (self.find_route)(&entry.domain).or_else(|| self.relay.clone()) else {
            self.look_up(id, pending, force);
            return;
        };
        let (hop, hosts) = self.route(route);
        let legs = vec![Leg { hop, hosts, recipients: pending }];
        self.planned(id, Plan { legs, outcomes: Vec::new() }, force).await;
    }

    fn route(&mut self, route: Route) -> (Arc<NextHop>, Arc<[Host]>) {
        if self.routes.len() >= ROUTES_MAX {
            self.routes.clear();
        }
        let known = self.routes.entry(route).or_insert_with_key(plan::by_route);
        (Arc::clone(&known.0), Arc::clone(&known.1))
    }

    fn look_up(&self, id: MessageId, pending: Vec<usize>, force: bool) {
        let Some(entry) = self.entries.get(&id) else { return };
        let (envelope, delivery) = (Arc::clone(&entry.envelope), Arc::clone(&self.delivery));
        let (myself, hostname) = (self.myself.clone(), Arc::clone(&self.hostname));
        tokio::spawn(async move {
            let port = delivery.config.delivery.port;
            let plan = plan::by_exchangers(&delivery.dns, &envelope, &pending, &hostname, port).await;
            send(&myself, QueueMessage::Planned { id, plan, force });
        });
    }

    /// Hands out the legs; the planning itself is over.
    async fn planned(&mut self, id: MessageId, plan: Plan, force: bool) {
        for leg in plan.legs {
            let Some(entry) = self.entries.get_mut(&id) else { return };
            let job = Box::new(Job {
                id,
                hop: Arc::clone(&leg.hop),
                envelope: Arc::clone(&entry.envelope),
                message: entry.message.clone(),
                recipients: leg.recipients,
                hosts: leg.hosts,
                force,
                report: Arc::clone(&self.report),
                answered: false,
            });
            entry.under_way += 1;
            self.under_way += 1;
            self.hand_out(leg.hop, job).await;
        }
        self.note_outcomes(id, plan.outcomes);
        self.came_back(id);
    }

    /// A job that cannot be handed out is dropped, which defers it.
    async fn hand_out(&mut self, key: Arc<NextHop>, job: Box<Job>) {
        if !self.hops.contains_key(&key) {
            let arguments = (Arc::clone(&key), Arc::clone(&self.delivery));
            match Actor::spawn(None, Delivery, arguments).await {
                Ok((actor, _)) => {
                    self.hops.insert(Arc::clone(&key), Hop { actor, under_way: 0, idle_ticks: 0 });
                }
                Err(error) => tracing::error!(%error, "cannot start a delivery"),
            }
        }
        let Some(hop) = self.hops.get_mut(&key) else { return };
        hop.under_way += 1;
        hop.idle_ticks = 0;
        if hop.actor.cast(DeliveryMessage::Job(job)).is_err() {
            tracing::error!("a delivery has ended before its time");
        }
    }

    fn stop_idle_hops(&mut self) {
        self.hops.retain(|_, hop| {
            hop.idle_ticks = if hop.under_way == 0 { hop.idle_ticks + 1 } else { 0 };
            let stays = hop.idle_ticks <= HOP_IDLE_TICKS_MAX;
            if !stays {
                hop.actor.stop(None);
            }
            stays
        });
    }

    fn finished(&mut self, finished: Finished) {
        if let Some(hop) = self.hops.get_mut(&finished.hop) {
            hop.under_way = hop.under_way.saturating_sub(1);
        }
        self.note_outcomes(finished.id, finished.outcomes);
        self.came_back(finished.id);
    }

    fn note_outcomes(&mut self, id: MessageId, outcomes: Vec<Outcome>) {
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
                let wanted = entry.envelope.recipients.get(recipient).is_some_and(|to| to.notify.success);
                if wanted && !dsn_passed_on {
                    entry.relayed.push((recipient, answer.clone()));
                }
                entry.set(recipient, RecipientStatus::Delivered, Some(&answer));
            } else {
                entry.set(recipient, RecipientStatus::Deferred, Some(&answer));
                entry.round.push((recipient, fate, answer));
            }
        }
    }

    /// One of the things under way is over; settles the message with the last.
    fn came_back(&mut self, id: MessageId) {
        self.under_way = self.under_way.saturating_sub(1);
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.under_way = entry.under_way.saturating_sub(1);
        if entry.under_way > 0 {
            return;
        }
        if entry.message.take().is_some() {
            self.memory_bytes = self.memory_bytes.saturating_sub(entry.size);
        }
        self.settle(id);
    }

    fn settle(&mut self, id: MessageId) {
        let now = now_ms();
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let gives_up = now >= entry.expires_ms || entry.round.iter().any(|(_, fate, _)| *fate == Fate::Bounced);
        if entry.envelope.reverse_path.is_null() && gives_up && !entry.round.is_empty() {
            entry.round.clear();
            self.set_frozen(id, true, "a notice that cannot be delivered is frozen");
            return;
        }
        let reported = self.to_report(id, now);
        if reported.is_empty() {
            self.close_or_schedule(id);
            return;
        }
        self.note_progress(id);
        self.tell_sender(id, reported, now);
    }

    /// What the sender is to hear of this round, and what it did not ask to hear of as well: the state follows both.
    fn to_report(&mut self, id: MessageId, now: u64) -> Vec<Reported> {
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
    fn tell_sender(&mut self, id: MessageId, reported: Vec<Reported>, now: u64) {
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

    fn noticed(&mut self, of: MessageId, told: &[Reported], notice: Option<Box<Entry>>) {
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
    fn noticed_now(&mut self, of: MessageId, told: &[Reported]) {
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

    fn close_or_schedule(&mut self, id: MessageId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if entry.pending().is_empty() {
            self.forget(id);
            return;
        }
        let retry = &self.delivery.config.delivery.retry;
        entry.progress.next_attempt_ms = next_attempt_ms(retry, entry.arrived_ms, now_ms(), entry.expires_ms);
        if !entry.progress.frozen {
            self.due.insert((entry.progress.next_attempt_ms, id));
        }
        self.note_progress(id);
    }

    fn note_progress(&self, id: MessageId) {
        let Some(entry) = self.entries.get(&id) else { return };
        match entry.progress_bytes() {
            Ok(bytes) => self.delivery.spool.progress(id, bytes),
            Err(error) => tracing::error!(%id, %error, "cannot note the state of a message"),
        }
    }

    fn forget(&mut self, id: MessageId) {
        let Some(entry) = self.entries.remove(&id) else { return };
        self.due.remove(&(entry.progress.next_attempt_ms, id));
        self.delivery.metrics.queue_messages.dec();
        if entry.progress.frozen {
            self.delivery.metrics.queue_frozen.dec();
        }
        if entry.message.is_some() {
            self.memory_bytes = self.memory_bytes.saturating_sub(entry.size);
        }
        self.delivery.spool.done(id, None);
    }

    fn list(&self, after: Option<MessageId>, count: usize) -> Vec<QueueEntry> {
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.entries.range((from, Bound::Unbounded)).take(count).map(|(_, entry)| entry.show()).collect()
    }

    async fn operate(&mut self, id: MessageId, operation: Operation) -> Result<(), QueueError> {
        let entry = self.entries.get_mut(&id).ok_or(QueueError::Unknown(id))?;
        if entry.under_way > 0 {
            return Err(QueueError::Busy(id));
        }
        match operation {
            // A frozen message is tried once and stays frozen.
            Operation::Retry if !self.started => return Err(QueueError::Busy(id)),
            Operation::Retry => {
                self.due.remove(&(entry.progress.next_attempt_ms, id));
                self.attempt(id, true).await;
            }
            Operation::Freeze => self.set_frozen(id, true, "frozen by an administrator"),
            Operation::Thaw => {
                entry.progress.next_attempt_ms = now_ms();
                self.set_frozen(id, false, "thawed by an administrator");
            }
            Operation::Remove { notify } => self.remove(id, notify),
        }
        Ok(())
    }

    fn set_frozen(&mut self, id: MessageId, frozen: bool, why: &str) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let was = std::mem::replace(&mut entry.progress.frozen, frozen);
        let place = (entry.progress.next_attempt_ms, id);
        if frozen {
            self.due.remove(&place);
        } else {
            self.due.insert(place);
        }
        match (was, frozen) {
            (false, true) => self.delivery.metrics.queue_frozen.inc(),
            (true, false) => self.delivery.metrics.queue_frozen.dec(),
            (true, true) | (false, false) => return self.note_progress(id),
        };
        self.note_progress(id);
        self.change(id, if frozen { Status::Frozen } else { Status::Queued }, "queue", why);
    }

    fn remove(&mut self, id: MessageId, notify: bool) {
        self.change(id, Status::Removed, "admin", if notify { "the sender is told" } else { "" });
        let Some(entry) = self.entries.get_mut(&id) else { return };
        self.due.remove(&(entry.progress.next_attempt_ms, id));
        let answer = Answer::local("", "5.7.1", "the message was removed from the queue by an administrator");
        let pending = entry.pending().into_iter();
        let reported =
            pending.map(|recipient| Reported { recipient, action: Action::Failed, answer: answer.clone() }).collect();
        if notify {
            self.tell_sender(id, reported, now_ms());
        } else {
            self.forget(id);
        }
    }

    fn change(&self, id: MessageId, status: Status, by: &str, detail: &str) {
        let event = Event::Change { status, by: by.to_owned(), detail: detail.to_owned() };
        self.maillog.record(Record { at_ms: now_ms(), id, event });
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
    let original: Option<Message> = delivery.spool.read(about.id).await.unwrap_or_else(|error| {
        tracing::error!(id = %about.id, %error, "a notice goes without the message that it speaks of");
        None
    });
    let notice = Entry::new(notice::build(about, original.as_ref(), reported, hostname, now)?, now);
    let meta = notice.meta_bytes().ok()?;
    let body = notice.message.as_ref()?.bytes().clone();
    loop {
        match delivery.spool.store(notice.id, meta.clone(), body.clone(), true).await {
            Ok(()) => return Some(Box::new(notice)),
            Err(SpoolError::Stopped) => return None,
            Err(error) => tracing::warn!(id = %about.id, %error, "cannot store a notice yet"),
        }
        tokio::time::sleep(NOTICE_RETRY).await;
    }
}

fn attempt_record(entry: &Entry, recipient: usize, status: Status, answer: &Answer) -> Record {
    let attempt = Attempt {
        recipient: entry.recipient(recipient).to_owned(),
        status,
        host: answer.host.clone(),
        address: answer.address,
        reply: answer.reply.clone(),
        tls: answer.tls.as_deref().map(str::to_owned),
    };
    Record { at_ms: now_ms(), id: entry.id, event: Event::Attempt(attempt) }
}
