//! The Queue actor: owns every entry and the schedule, hands jobs to deliveries, draws the consequences.
//!
//! A message is under way from its attempt until every job, and the notice that may follow, has come back; then it is
//! settled: forgotten if nothing is left, else noted and scheduled. What an attempt delivered is noted before anything
//! else is waited for, so a crash never repeats it. A recipient that failed counts as deferred on disk until the
//! notice to the sender is on disk as well, so a crash repeats the attempt and never loses the notice.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, MessagingErr};
use tokio::sync::{mpsc, oneshot};

use super::entry::{Entry, Reported};
use super::operate::{Done, Operation};
use super::plan::{self, Leg, Plan};
use super::take_over::Yielded;
use super::{FindRoute, QueueEntry, QueueError, Route};
use crate::clock::now_ms;
use crate::delivery::{self, Delivery, DeliveryMessage, Finished, Host, Job, NextHop};
use crate::mail::MessageId;
use crate::maillog::{Event, Maillog, Record, Status};
use crate::mirror::Handed;

/// Jobs that are handed out at once; the rest waits in the schedule.
const UNDER_WAY_MAX: usize = 50_000;
/// Bytes of messages kept in memory for their first attempt; above, they are read from the spool.
const MEMORY_MAX_BYTES: u64 = 128 << 20;
pub(crate) const TICK: Duration = Duration::from_millis(200);
/// Hops without work for so many ticks are stopped.
const HOP_IDLE_TICKS_MAX: u32 = 300;
const ROUTES_MAX: usize = 1000;

pub(crate) struct Owner;

pub(crate) enum QueueMessage {
    Start,
    Add(Box<Entry>),
    /// It is ours from now on.
    TakeOver(Box<Entry>),
    /// Others have taken these over; `noted` is dropped when that is on disk.
    LetGo {
        handed: Handed,
        noted: mpsc::Sender<()>,
    },
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
        reply: Done,
    },
    /// Nothing new begins, what has not begun comes back; answered when nothing is under way.
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
    pub(super) delivery: Arc<delivery::Shared>,
    pub(super) hostname: Arc<str>,
    pub(super) maillog: Maillog,
    pub(super) find_route: FindRoute,
    pub(super) relay: Option<Route>,
    pub(super) myself: ActorRef<QueueMessage>,
    report: delivery::Report,
    pub(super) entries: BTreeMap<MessageId, Entry>,
    pub(super) due: BTreeSet<(u64, MessageId)>,
    hops: HashMap<Arc<NextHop>, Hop>,
    routes: HashMap<Route, (Arc<NextHop>, Arc<[Host]>)>,
    pub(super) under_way: usize,
    pub(super) memory_bytes: u64,
    pub(super) started: bool,
    pub(super) stopping: Vec<oneshot::Sender<()>>,
    pub(super) yielded: Yielded,
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
            yielded: Yielded::default(),
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
            QueueMessage::TakeOver(entry) => state.take_over(*entry),
            QueueMessage::LetGo { handed, noted } => state.let_go(handed, &noted),
            QueueMessage::Tick => state.tick(),
            QueueMessage::Planned { id, plan, force } => state.planned(id, plan, force).await,
            QueueMessage::Finished(finished) => state.finished(finished),
            QueueMessage::Noticed { of, told, notice } => state.noticed(of, &told, notice),
            QueueMessage::List { after, count, reply } => answer(reply, state.list(after, count)),
            QueueMessage::Show { id, reply } => {
                answer(reply, state.entries.get(&id).map(Entry::show).ok_or(QueueError::Unknown(id)));
            }
            QueueMessage::Operate { id, operation, reply } => state.operate(id, operation, reply).await,
            QueueMessage::Stop(reply) => state.stop(reply),
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

/// Starts the hop's actor if there is none, or anew if it has died. A job that cannot be handed out is dropped, which
/// defers it.
async fn hand_to(
    hops: &mut HashMap<Arc<NextHop>, Hop>,
    delivery: &Arc<delivery::Shared>,
    key: Arc<NextHop>,
    job: Box<Job>,
) {
    let mut job = DeliveryMessage::Job(job);
    if let Some(hop) = hops.get_mut(&key) {
        match hop.actor.cast(job) {
            Ok(()) => {
                hop.under_way += 1;
                hop.idle_ticks = 0;
                return;
            }
            Err(MessagingErr::SendErr(back)) => job = back,
            Err(MessagingErr::ChannelClosed | MessagingErr::InvalidActorType) => return,
        }
        tracing::error!(hosts = ?key.hosts, "a delivery has ended before its time and is started again");
        hops.remove(&key);
    }
    match Actor::spawn(None, Delivery, (Arc::clone(&key), Arc::clone(delivery))).await {
        Ok((actor, _)) if actor.cast(job).is_ok() => {
            hops.insert(key, Hop { actor, under_way: 1, idle_ticks: 0 });
        }
        Ok(_) => tracing::error!("a delivery has ended at once"),
        Err(error) => tracing::error!(%error, "cannot start a delivery"),
    }
}

pub(super) fn answer<T>(reply: oneshot::Sender<T>, value: T) {
    if reply.send(value).is_err() {
        tracing::debug!("nobody waited for the queue's answer");
    }
}

impl OwnerState {
    /// A message that is known already stays as it is: it goes out once. So does what others took over meanwhile.
    pub(super) fn add(&mut self, mut entry: Entry) {
        if self.entries.contains_key(&entry.id) {
            tracing::warn!(id = %entry.id, "a message came twice and is queued once");
            return;
        }
        if self.yielded.contains(entry.id) {
            tracing::warn!(id = %entry.id, "another node has taken over a message that comes late");
            return;
        }
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
        if self.delivery.is_stopping() {
            if self.under_way == 0 {
                self.stopping.drain(..).for_each(|reply| answer(reply, ()));
            }
            return;
        }
        let now = now_ms();
        while self.started
            && (self.delivery.may_deliver)()
            && self.under_way < UNDER_WAY_MAX
            && let Some(&(at_ms, id)) = self.due.first()
            && at_ms <= now
        {
            self.due.pop_first();
            self.attempt(id, false).await;
        }
    }

    fn stop(&mut self, reply: oneshot::Sender<()>) {
        self.stopping.push(reply);
        self.delivery.stop();
        for hop in self.hops.values() {
            if hop.actor.cast(DeliveryMessage::Stop).is_err() {
                tracing::debug!("a delivery has ended before");
            }
        }
    }

    pub(super) async fn attempt(&mut self, id: MessageId, force: bool) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if entry.under_way > 0 || entry.progress.frozen {
            return;
        }
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
            if entry.let_go.is_set() {
                break;
            }
            let job = Box::new(Job {
                id,
                hop: Arc::clone(&leg.hop),
                envelope: Arc::clone(&entry.envelope),
                message: entry.message.clone(),
                recipients: leg.recipients,
                hosts: leg.hosts,
                force,
                let_go: entry.let_go.clone(),
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

    async fn hand_out(&mut self, key: Arc<NextHop>, job: Box<Job>) {
        hand_to(&mut self.hops, &self.delivery, key, job).await;
    }

    fn tick(&mut self) {
        self.yielded.forget_old();
        self.stop_idle_hops();
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

    pub(super) fn change(&self, id: MessageId, status: Status, by: &str, detail: &str) {
        let origin = self.entries.get(&id).map(Entry::origin).unwrap_or_default();
        let event = Event::Change { origin, status, by: by.to_owned(), detail: detail.to_owned() };
        self.maillog.record(Record { at_ms: now_ms(), id, event });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::config::DeliveryConfig;
    use crate::delivery::Fate;
    use crate::delivery::sink::{Sink, polite};
    use crate::delivery::tests::{Bench, envelope, host, route};

    #[tokio::test]
    async fn a_hop_whose_actor_died_is_started_again() {
        let sink = Sink::start(polite).await;
        let mut bench = Bench::new(DeliveryConfig::default()).await;
        let (hop, mut hops) = (route(vec![host(&sink)]), HashMap::new());
        for _ in 0..2 {
            let job = bench.job(&hop, envelope("a@from.example", "b@to.example"));
            hand_to(&mut hops, &bench.shared, Arc::clone(&hop), job).await;
            assert_eq!(bench.outcome().await.0, Fate::Delivered);
            hops[&hop].actor.stop_and_wait(None, None).await.unwrap();
        }
    }
}
