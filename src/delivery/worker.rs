//! The owner of one connection to a next hop: takes jobs one by one until none comes for a while.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ractor::ActorRef;
use tokio::sync::mpsc;

use super::connect::{self, Failure};
use super::connection::Connection;
use super::hop::{DeliveryMessage, WorkerId};
use super::transaction::{self, Ended, Parcel};
use super::{Answer, Fate, Host, Job, NextHop, Outcome, RECIPIENTS_MAX, Shared};
use crate::mail::Message;
use crate::smtp::client::CleanBody;

/// Addresses that are tried for one message in one attempt (RFC 5321 section 5.1 asks for at least two).
const ADDRESSES_MAX: usize = 10;

pub(super) struct Worker {
    pub(super) id: WorkerId,
    pub(super) hop: Arc<NextHop>,
    pub(super) shared: Arc<Shared>,
    pub(super) actor: ActorRef<DeliveryMessage>,
    pub(super) kept: Option<Connection>,
}

/// Tells the actor that the worker is gone, even if it panics.
impl Drop for Worker {
    fn drop(&mut self) {
        self.tell(DeliveryMessage::Gone(self.id));
    }
}

impl Worker {
    pub(super) async fn run(mut self, first: Box<Job>, mut jobs: mpsc::Receiver<Box<Job>>) {
        let connections = Arc::clone(&self.shared.connections);
        let Ok(_permit) = connections.acquire_owned().await else { return };
        let idle = Duration::from_secs(self.shared.config.delivery.idle_timeout_s);
        let mut job = first;
        loop {
            let outcomes = self.attempt(&job).await;
            job.finish(outcomes);
            self.tell(DeliveryMessage::Idle(self.id));
            let next = match tokio::time::timeout(idle, jobs.recv()).await {
                Ok(next) => next,
                Err(_) => {
                    self.leave().await;
                    // Closed by the actor, unless it has sent a job meanwhile.
                    jobs.recv().await
                }
            };
            let Some(next) = next else { break };
            job = next;
        }
        self.leave().await;
    }

    async fn leave(&mut self) {
        if let Some(connection) = self.kept.take() {
            connection.quit().await;
        }
        self.tell(DeliveryMessage::Leaving(self.id));
    }

    fn tell(&self, message: DeliveryMessage) {
        if self.actor.cast(message).is_err() {
            tracing::debug!("the delivery actor has ended");
        }
    }

    async fn attempt(&mut self, job: &Job) -> Vec<Outcome> {
        let message = match self.message(job).await {
            Ok(message) => message,
            Err(answer) => return answer.for_all(&job.recipients, Fate::Deferred),
        };
        let body = match CleanBody::check(message.bytes()) {
            Ok(body) => body,
            Err(unclean) => {
                return Answer::local("", "5.6.0", &unclean.to_string()).for_all(&job.recipients, Fate::Bounced);
            }
        };
        let mut outcomes = Vec::with_capacity(job.recipients.len());
        for recipients in job.recipients.chunks(RECIPIENTS_MAX) {
            let parcel = Parcel {
                envelope: &job.envelope,
                recipients,
                header_section: message.header_section(),
                size: message.size(),
                body,
                begun: &AtomicBool::new(false),
            };
            let shared = Arc::clone(&self.shared);
            tokio::select! {
                biased;
                () = stopped_before(&shared, parcel.begun) => {}
                sent = self.send(job, &parcel) => outcomes.extend(sent),
            }
        }
        outcomes
    }

    async fn message(&self, job: &Job) -> Result<Message, Answer> {
        if let Some(message) = &job.message {
            return Ok(message.clone());
        }
        let failed = |what: &str| Answer::local("", "4.3.0", what);
        match self.shared.spool.read(job.id).await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(failed("the message is not in the spool")),
            Err(error) => {
                tracing::error!(id = %job.id, %error, "cannot read a queued message");
                Err(failed("the message cannot be read"))
            }
        }
    }

    /// Over the kept connection, else over fresh ones until a hop has answered for good.
    async fn send(&mut self, job: &Job, parcel: &Parcel<'_>) -> Vec<Outcome> {
        if let Some(connection) = self.kept.take() {
            self.count("reused");
            if let Ok(outcomes) = self.transact(connection, parcel).await {
                return outcomes;
            }
        }
        let mut failure = None;
        let mut tried = 0;
        for host in job.hosts.iter() {
            for address in self.addresses(host, &mut failure).await {
                if tried == ADDRESSES_MAX {
                    break;
                }
                tried += 1;
                match self.send_to(job, host, address, parcel).await {
                    Ok(outcomes) => return outcomes,
                    Err(next) => failure = Some(worse(failure, next)),
                }
            }
        }
        let failure = failure.unwrap_or_else(|| Failure {
            permanent: false,
            answer: Answer::local("", "4.4.4", "the next hop has no address"),
        });
        failure.answer.for_all(parcel.recipients, if failure.permanent { Fate::Bounced } else { Fate::Deferred })
    }

    async fn addresses(&self, host: &Host, failure: &mut Option<Failure>) -> Vec<SocketAddr> {
        let found = self.shared.dns.addresses(&host.name).await;
        let problem = match &found {
            Ok(found) if found.is_empty() => Answer::local(&host.name, "4.4.4", "the host has no address"),
            Ok(_) => return found.into_iter().flatten().map(|ip| SocketAddr::new(ip, host.port)).collect(),
            Err(error) => Answer::local(&host.name, "4.4.3", &error.to_string()),
        };
        *failure = Some(worse(failure.take(), Failure { permanent: false, answer: problem }));
        Vec::new()
    }

    async fn send_to(
        &mut self,
        job: &Job,
        host: &Host,
        address: SocketAddr,
        parcel: &Parcel<'_>,
    ) -> Result<Vec<Outcome>, Failure> {
        if self.shared.is_ours(address) {
            let answer = Answer::local(&host.name, "5.4.6", "mail loops back to this host");
            return Err(Failure { permanent: true, answer });
        }
        if let Some(answer) = self.shared.failures.recent(address).filter(|_| !job.force) {
            return Err(Failure { permanent: false, answer });
        }
        match Box::pin(connect::connect(&self.shared, host, address.ip(), self.hop.auth.as_ref())).await {
            Ok(connection) => {
                self.count("opened");
                self.shared.failures.clear(address);
                self.transact(connection, parcel).await
            }
            Err(failure) => {
                self.count("failed");
                if !failure.permanent {
                    self.shared.failures.note(address, &failure.answer);
                }
                Err(failure)
            }
        }
    }

    /// Keeps the connection if it may be used again.
    async fn transact(&mut self, mut connection: Connection, parcel: &Parcel<'_>) -> Result<Vec<Outcome>, Failure> {
        match transaction::run(&mut connection, parcel).await {
            Ended::Done { outcomes, reusable } => {
                if reusable && connection.messages < self.shared.config.delivery.messages_per_connection_max {
                    self.kept = Some(connection);
                } else if reusable {
                    connection.quit().await;
                }
                Ok(outcomes)
            }
            Ended::NotTaken(failure) => Err(failure),
        }
    }

    fn count(&self, kind: &'static str) {
        self.shared.metrics.delivery_connections.get_or_create(&kind.into()).inc();
    }
}

/// Resolves at the stop unless the text of the message is on its way by then: only its reply tells who has it.
async fn stopped_before(shared: &Shared, begun: &AtomicBool) {
    shared.stopped().await;
    if begun.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

/// Mail bounces only if every host refuses it: a temporary failure outweighs.
fn worse(first: Option<Failure>, second: Failure) -> Failure {
    match first {
        Some(first) if !first.permanent && second.permanent => first,
        Some(_) | None => second,
    }
}
