//! Who leads, and whether this node can count on it.
//!
//! openraft 0.9 tells who led last, not whether the leader still has a majority: a leader that was cut off goes on leading
//! nobody, and a learner that was cut off never notices. So a leader looks at how long ago a majority answered it, and
//! everybody else at how long ago the leader spoke.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::{BasicNode, RaftMetrics};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::clock::Clock;

/// Without a word for this long there is no majority on this side. Longer than an election, so that the change of a leader
/// does not turn clients away; listeners close within a second.
const SILENCE_MAX_MS: u64 = 700;

#[derive(Clone)]
pub(crate) struct Leadership {
    node: u64,
    clock: Clock,
    metrics: watch::Receiver<RaftMetrics<u64, BasicNode>>,
    /// When, by the uncorrected clock: a correction must not make an old word a new one.
    heard_ms: Arc<AtomicU64>,
}

impl Leadership {
    pub(crate) fn new(node: u64, clock: Clock, metrics: watch::Receiver<RaftMetrics<u64, BasicNode>>) -> Self {
        Self { node, clock, metrics, heard_ms: Arc::default() }
    }

    /// The leader spoke.
    pub(crate) fn note_word(&self) {
        self.heard_ms.store(self.clock.raw_ms(), Ordering::Relaxed);
    }

    pub(crate) fn leader(&self) -> Option<u64> {
        self.metrics.borrow().current_leader
    }

    pub(crate) fn leads(&self) -> bool {
        self.leader() == Some(self.node)
    }

    /// The term in which this node leads, where it does.
    pub(crate) fn term_led(&self) -> Option<u64> {
        let metrics = self.metrics.borrow();
        (metrics.current_leader == Some(self.node)).then_some(metrics.current_term)
    }

    /// A leader with a majority is there.
    pub(crate) fn has_quorum(&self) -> bool {
        let metrics = self.metrics.borrow();
        if metrics.running_state.is_err() {
            return false;
        }
        match metrics.current_leader {
            None => false,
            Some(leader) if leader == self.node => {
                let alone = metrics.membership_config.membership().voter_ids().count() == 1;
                alone || metrics.millis_since_quorum_ack.is_some_and(|silence| silence <= SILENCE_MAX_MS)
            }
            Some(_) => {
                let heard_ms = self.heard_ms.load(Ordering::Relaxed);
                self.clock.raw_ms().saturating_sub(heard_ms) <= SILENCE_MAX_MS
            }
        }
    }

    /// The next leader that is known; `None` where there is none for `patience`.
    pub(crate) async fn wait_for_leader(&self, patience: Duration) -> Option<u64> {
        let mut metrics = self.metrics.clone();
        let known = timeout(patience, metrics.wait_for(|metrics| metrics.current_leader.is_some())).await;
        known.ok()?.ok()?.current_leader
    }

    /// Waits until another leader is known than `old`, for at most `patience`.
    pub(crate) async fn wait_for_other(&self, old: u64, patience: Duration) {
        let mut metrics = self.metrics.clone();
        let other = |metrics: &RaftMetrics<u64, BasicNode>| metrics.current_leader.is_some_and(|leader| leader != old);
        drop(timeout(patience, metrics.wait_for(other)).await);
    }

    /// Waits until this node has applied the entry; false where it did not within `patience`.
    pub(crate) async fn wait_for_applied(&self, index: u64, patience: Duration) -> bool {
        let mut metrics = self.metrics.clone();
        let applied =
            |metrics: &RaftMetrics<u64, BasicNode>| metrics.last_applied.is_some_and(|applied| applied.index >= index);
        timeout(patience, metrics.wait_for(applied)).await.is_ok_and(|waited| waited.is_ok())
    }
}
