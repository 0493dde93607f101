//! Delivery to next hops: one `Delivery` actor for each set of hosts, with connections that are kept for the next
//! message.
//!
//! - A `Job` is one message and those of its recipients that go to one next hop. It is answered exactly once, with
//!   one `Outcome` for each recipient, whatever happens: a job that is dropped defers its recipients. Only after
//!   `Shared::stop` recipients may come back without one: they were not tried.
//! - A reply decides only over what it answers. What a hop did not surely take is tried again, what it surely refused
//!   bounces: deliveries are at-least-once. The one window for a duplicate is a connection cut behind the final dot.
//! - A connection that was kept may have been closed by the other side: a failure before the body went out is then
//!   no failure, the message goes over a fresh connection.
//! - Nothing is sent, and no message is ended, while this node may not deliver: others may be at it.
//! - A message with octets above 127 goes as it is to a hop without 8BITMIME, as every large sender does: hops that
//!   mangle them are extinct, and refusing would bounce mail that arrives.

mod connect;
mod connection;
mod failures;
mod hop;
mod seats;
mod tls;
mod transaction;
mod worker;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::config::Config;
use crate::dns::Dns;
use crate::mail::{Envelope, Message, MessageId};
use crate::metrics::Metrics;
use crate::mirror::Disks;
use failures::Failures;
pub(crate) use hop::{Delivery, DeliveryMessage};
use seats::Seats;

/// Recipients in one transaction (RFC 5321 section 4.5.3.1.8: every server takes 100).
const RECIPIENTS_MAX: usize = 100;

/// Whether this node may hand mail to next hops now; others may have taken over what it has.
pub type MayDeliver = Arc<dyn Fn() -> bool + Send + Sync>;

/// Whether a message is another node's by now; shared with whoever is about to send it.
#[derive(Clone, Default, Debug)]
pub(crate) struct LetGo(Arc<AtomicBool>);

impl LetGo {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A host and port that mail is handed to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Host {
    /// A name, or an address as text.
    pub(crate) name: String,
    pub(crate) port: u16,
}

/// The key of a [`Delivery`]: hosts in order of name, how to log in there, and who named them.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct NextHop {
    pub(crate) hosts: Vec<Host>,
    pub(crate) auth: Option<(String, String)>,
    /// Named by the operator, not by DNS or by who wrote the recipient's address: trusted.
    pub(crate) configured: bool,
}

/// Takes what became of a job; must not block.
pub(crate) type Report = Arc<dyn Fn(Finished) + Send + Sync>;

/// One message for one next hop.
pub(crate) struct Job {
    pub(crate) id: MessageId,
    pub(crate) hop: Arc<NextHop>,
    pub(crate) envelope: Arc<Envelope>,
    /// Read from the spool when its turn comes where it is `None`.
    pub(crate) message: Option<Message>,
    /// Positions in the envelope.
    pub(crate) recipients: Vec<usize>,
    /// In the order to try.
    pub(crate) hosts: Arc<[Host]>,
    /// An operator asked: tries hosts that failed a moment ago as well.
    pub(crate) force: bool,
    pub(crate) let_go: LetGo,
    pub(crate) report: Report,
    pub(crate) answered: bool,
}

/// The answer to a job.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) id: MessageId,
    pub(crate) hop: Arc<NextHop>,
    pub(crate) outcomes: Vec<Outcome>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    Delivered,
    Deferred,
    Bounced,
}

/// What became of one recipient in one attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Outcome {
    /// Position in the envelope.
    pub(crate) recipient: usize,
    pub(crate) fate: Fate,
    pub(crate) answer: Answer,
    /// The hop takes over the duty to send notices (RFC 3461 section 5.2.3).
    pub(crate) dsn_passed_on: bool,
}

/// Who said what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Answer {
    pub(crate) host: String,
    pub(crate) address: Option<IpAddr>,
    /// The reply line of the hop, or what happened instead.
    pub(crate) reply: String,
    /// `2.0.0`, `5.1.1`, … (RFC 3463).
    pub(crate) status: String,
    /// Whether `reply` came from the hop.
    pub(crate) remote: bool,
    /// Version and cipher suite.
    pub(crate) tls: Option<Arc<str>>,
}

/// What all deliveries share.
pub(crate) struct Shared {
    pub(crate) config: Arc<Config>,
    pub(crate) helo: String,
    pub(crate) dns: Dns,
    pub(crate) disks: Disks,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) may_deliver: MayDeliver,
    tls: tls::Tls,
    seats: Seats,
    failures: Failures,
    stopping: watch::Sender<bool>,
}

impl Shared {
    pub(crate) fn new(
        config: Arc<Config>,
        helo: String,
        dns: Dns,
        disks: Disks,
        metrics: Arc<Metrics>,
        may_deliver: MayDeliver,
    ) -> Self {
        let seats = Seats::new(&config.delivery);
        let dns = dns.with_own_bound();
        let failures = Failures::new(Duration::from_secs(config.delivery.retry.interval_s));
        let stopping = watch::Sender::new(false);
        Self { tls: tls::Tls::new(), config, helo, dns, disks, metrics, may_deliver, seats, failures, stopping }
    }

    /// From now on no message is begun to be sent; one whose text is on its way already is finished. What was not
    /// begun comes back without an outcome.
    pub(crate) fn stop(&self) {
        self.stopping.send_replace(true);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    async fn stopped(&self) {
        // Fails only without a sender, and we hold one.
        if self.stopping.subscribe().wait_for(|&stopping| stopping).await.is_err() {
            tracing::debug!("nobody can stop the deliveries any more");
        }
    }

    /// Whether an address is one of our own listeners: delivering there would be a loop.
    fn is_ours(&self, to: SocketAddr) -> bool {
        let local = |own: IpAddr| own == to.ip() || (own.is_unspecified() && to.ip().is_loopback());
        self.config.listener.iter().any(|listener| listener.address.port() == to.port() && local(listener.address.ip()))
    }
}

impl Job {
    pub(crate) fn finish(mut self, outcomes: Vec<Outcome>) {
        self.answer(outcomes);
    }

    fn answer(&mut self, outcomes: Vec<Outcome>) {
        self.answered = true;
        (self.report)(Finished { id: self.id, hop: Arc::clone(&self.hop), outcomes });
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.answered {
            let answer = Answer::local("", "4.3.0", "the attempt was interrupted");
            let recipients = std::mem::take(&mut self.recipients);
            self.answer(answer.for_all(&recipients, Fate::Deferred));
        }
    }
}

impl Answer {
    /// Not the words of the hop, but ours.
    pub(crate) fn local(host: &str, status: &str, reply: &str) -> Self {
        Self {
            host: host.to_owned(),
            address: None,
            reply: reply.to_owned(),
            status: status.to_owned(),
            remote: false,
            tls: None,
        }
    }

    pub(crate) fn for_all(&self, recipients: &[usize], fate: Fate) -> Vec<Outcome> {
        recipients.iter().map(|&recipient| self.for_one(recipient, fate)).collect()
    }

    pub(crate) fn for_one(&self, recipient: usize, fate: Fate) -> Outcome {
        Outcome { recipient, fate, answer: self.clone(), dsn_passed_on: false }
    }
}

#[cfg(test)]
pub(crate) mod sink;
#[cfg(test)]
pub(crate) mod tests;
