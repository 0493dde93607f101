//! The owner of one connection to a next hop: takes jobs one by one until none comes for a while.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ractor::ActorRef;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::connect::{self, Failure, Target};
use super::connection::Connection;
use super::hop::{DeliveryMessage, WorkerId};
use super::seats::Seat;
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
    /// When the transaction under way must be over.
    pub(super) deadline: Instant,
}

/// Tells the actor that the worker is gone, even if it panics.
impl Drop for Worker {
    fn drop(&mut self) {
        self.tell(DeliveryMessage::Gone(self.id));
    }
}

impl Worker {
    pub(super) async fn run(mut self, first: Box<Job>, mut jobs: mpsc::Receiver<Box<Job>>) {
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
        let patience = Duration::from_secs(self.shared.config.delivery.transaction_timeout_s);
        for recipients in job.recipients.chunks(RECIPIENTS_MAX) {
            if !outcomes.is_empty() && self.is_late() {
                let answer = Answer::local("", "4.4.7", "the hop was too slow with the message's other recipients");
                outcomes.extend(answer.for_all(recipients, Fate::Deferred));
                continue;
            }
            self.deadline = Instant::now() + patience;
            let shared = Arc::clone(&self.shared);
            let parcel = Parcel {
                envelope: &job.envelope,
                recipients,
                header_section: message.header_section(),
                size: message.size(),
                needs_eight_bit: self.shared.config.delivery.eight_bit_strict && !message.bytes().is_ascii(),
                body,
                begun: &AtomicBool::new(false),
                may_deliver: &|| (shared.may_deliver)() && !job.let_go.is_set(),
            };
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
        match self.shared.disks.read(job.id).await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => {
                self.shared.disks.cannot_read(job.id);
                Err(failed("the message is not in the spool"))
            }
            Err(error) => {
                self.shared.disks.cannot_read(job.id);
                tracing::error!(id = %job.id, %error, "cannot read a queued message");
                Err(failed("the message cannot be read"))
            }
        }
    }

    fn is_late(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// Over the kept connection, else over fresh ones until a hop has answered for good.
    async fn send(&mut self, job: &Job, parcel: &Parcel<'_>) -> Vec<Outcome> {
        if let Some(mut connection) = self.kept.take() {
            self.count("reused");
            connection.deadline = self.deadline;
            if let Ok(outcomes) = self.transact(connection, parcel).await {
                return outcomes;
            }
        }
        let mut failure = None;
        let mut tried = 0;
        for host in job.hosts.iter() {
            for address in self.addresses(host, &mut failure).await {
                if tried == ADDRESSES_MAX || (tried > 0 && self.is_late()) {
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
        let (permanent, answer) = match self.shared.dns.addresses(&host.name).await {
            Ok(found) if found.is_empty() => (false, Answer::local(&host.name, "4.4.4", "the host has no address")),
            Ok(mut found) => {
                found.retain(|&ip| self.hop.configured || self.shared.config.delivery.local_addresses || !is_local(ip));
                if !found.is_empty() {
                    return found.into_iter().map(|ip| SocketAddr::new(ip, host.port)).collect();
                }
                (true, Answer::local(&host.name, "5.4.4", "the host has a local address only, where no mail goes"))
            }
            Err(error) => (false, Answer::local(&host.name, "4.4.3", &error.to_string())),
        };
        *failure = Some(worse(failure.take(), Failure { permanent, answer }));
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
        let seat = self.seat(address).await;
        // After the wait, in which others may have found out.
        if let Some(answer) = self.shared.failures.recent(address).filter(|_| !job.force) {
            return Err(Failure { permanent: false, answer });
        }
        let (shared, auth, deadline) = (&*self.shared, self.hop.auth.as_ref(), self.deadline);
        let target = Target { shared, host, ip: address.ip(), auth, deadline, seat };
        match Box::pin(connect::connect(&target)).await {
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

    /// Waiting for a seat is not the hop's fault and does not count against the deadline.
    async fn seat(&mut self, address: SocketAddr) -> Arc<Seat> {
        let begun = Instant::now();
        let seat = self.shared.seats.take(address.ip()).await;
        self.deadline += begun.elapsed();
        Arc::new(seat)
    }

    /// Keeps the connection if it may be used again and nobody waits for its seat.
    async fn transact(&mut self, mut connection: Connection, parcel: &Parcel<'_>) -> Result<Vec<Outcome>, Failure> {
        match transaction::run(&mut connection, parcel).await {
            Ended::Done { outcomes, reusable } => {
                let messages_max = self.shared.config.delivery.messages_per_connection_max;
                if reusable && connection.messages < messages_max && !connection.seat.is_wanted() {
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

/// This machine itself or its link: whoever may send must not reach services there.
fn is_local(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.octets()[0] == 0 || v4.is_loopback() || v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unspecified() || v6.is_loopback() || v6.is_unicast_link_local(),
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn local_addresses_are_known_in_every_form() {
        for ip in ["127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "169.254.169.254", "255.255.255.255", "::", "::1"] {
            assert!(is_local(ip.parse().unwrap()), "{ip}");
        }
        for ip in ["fe80::1", "::ffff:127.0.0.1", "::ffff:169.254.1.1", "::ffff:0.0.0.0"] {
            assert!(is_local(ip.parse().unwrap()), "{ip}");
        }
        for ip in ["192.0.2.1", "10.0.0.1", "128.0.0.1", "2001:db8::1", "fd00::1", "::ffff:192.0.2.1"] {
            assert!(!is_local(ip.parse().unwrap()), "{ip}");
        }
    }
}
