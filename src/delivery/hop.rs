//! The actor of one next hop: jobs wait here for one of its connections.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::seats::per_host_max;
use super::worker::Worker;
use super::{Answer, Fate, Job, NextHop, Shared};

/// Jobs that may wait for one hop that strangers named, so that a slow one does not take all places of the queue.
const WAITING_MAX: usize = 5_000;

/// Number of a worker within its hop.
pub(crate) type WorkerId = u64;

pub(crate) struct Delivery;

pub(crate) enum DeliveryMessage {
    Job(Box<Job>),
    /// The worker can take another job.
    Idle(WorkerId),
    /// The worker has waited long enough.
    Leaving(WorkerId),
    Gone(WorkerId),
    /// After [`Shared::stop`]: what waits goes back, nobody waits for more.
    Stop,
}

pub(crate) struct DeliveryState {
    hop: Arc<NextHop>,
    shared: Arc<Shared>,
    waiting: VecDeque<Box<Job>>,
    workers: HashMap<WorkerId, mpsc::Sender<Box<Job>>>,
    /// The one that was busy last is asked first, so that few connections do the work and the others time out.
    idle: Vec<WorkerId>,
    next_worker: WorkerId,
}

impl Actor for Delivery {
    type Msg = DeliveryMessage;
    type State = DeliveryState;
    type Arguments = (Arc<NextHop>, Arc<Shared>);

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        (hop, shared): Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let (waiting, workers) = (VecDeque::new(), HashMap::new());
        Ok(DeliveryState { hop, shared, waiting, workers, idle: Vec::new(), next_worker: 0 })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            DeliveryMessage::Job(job) => state.take(job, &myself),
            DeliveryMessage::Idle(worker) => state.idle(worker),
            DeliveryMessage::Stop => state.stop(),
            DeliveryMessage::Leaving(worker) => {
                // Dropping the sender ends the worker; if it has got a job meanwhile it stays.
                if let Some(at) = state.idle.iter().position(|&idle| idle == worker) {
                    state.idle.remove(at);
                    state.workers.remove(&worker);
                }
            }
            DeliveryMessage::Gone(worker) => {
                state.idle.retain(|&idle| idle != worker);
                state.workers.remove(&worker);
                if let Some(job) = state.waiting.pop_front() {
                    state.take(job, &myself);
                }
            }
        }
        Ok(())
    }
}

impl DeliveryState {
    fn stop(&mut self) {
        self.waiting.drain(..).for_each(|job| job.finish(Vec::new()));
        self.idle.clear();
        // Without a sender a worker ends as soon as it has nothing to do.
        self.workers.clear();
    }

    fn take(&mut self, job: Box<Job>, myself: &ActorRef<DeliveryMessage>) {
        if self.shared.is_stopping() {
            return job.finish(Vec::new());
        }
        let Some(job) = self.give_to_idle(job) else { return };
        if self.workers.len() >= per_host_max(&self.shared.config.delivery) {
            self.wait(job);
            return;
        }
        let (sender, jobs) = mpsc::channel(1);
        let id = self.next_worker;
        self.next_worker += 1;
        self.workers.insert(id, sender);
        let (hop, shared) = (Arc::clone(&self.hop), Arc::clone(&self.shared));
        let worker = Worker { id, hop, shared, actor: myself.clone(), kept: None, deadline: Instant::now() };
        tokio::spawn(worker.run(job, jobs));
    }

    fn wait(&mut self, job: Box<Job>) {
        if self.waiting.len() < WAITING_MAX || self.hop.configured {
            self.waiting.push_back(job);
            return;
        }
        let answer = Answer::local("", "4.4.5", "too many messages wait for the next hop");
        let outcomes = answer.for_all(&job.recipients, Fate::Deferred);
        job.finish(outcomes);
    }

    /// The job comes back if nobody is idle.
    fn give_to_idle(&mut self, mut job: Box<Job>) -> Option<Box<Job>> {
        while let Some(id) = self.idle.pop() {
            let Some(worker) = self.workers.get(&id) else { continue };
            match worker.try_send(job) {
                Ok(()) => return None,
                Err(mpsc::error::TrySendError::Full(back) | mpsc::error::TrySendError::Closed(back)) => job = back,
            }
        }
        Some(job)
    }

    fn idle(&mut self, worker: WorkerId) {
        self.idle.push(worker);
        if let Some(job) = self.waiting.pop_front()
            && let Some(job) = self.give_to_idle(job)
        {
            self.waiting.push_front(job);
        }
    }
}
