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
    /// When a leader last spoke here, or a majority last followed this one, by the uncorrected clock: a correction must not
    /// make an old word a new one.
    heard_ms: Arc<AtomicU64>,
}

impl Leadership {
    pub(crate) fn new(node: u64, clock: Clock, metrics: watch::Receiver<RaftMetrics<u64, BasicNode>>) -> Self {
        Self { node, clock, metrics, heard_ms: Arc::default() }
    }

    /// The leader spoke.
    pub(crate) fn note_word(&self) {
        self.note(0);
    }

    fn note(&self, silence_ms: u64) {
        self.heard_ms.fetch_max(self.clock.raw_ms().saturating_sub(silence_ms), Ordering::Relaxed);
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

    /// A leader with a majority is there, or was a moment ago: an election takes less than that, and what is asked
    /// meanwhile waits for its end.
    pub(crate) fn has_quorum(&self) -> bool {
        let metrics = self.metrics.borrow();
        if metrics.running_state.is_err() {
            return false;
        }
        if metrics.current_leader == Some(self.node) {
            let alone = metrics.membership_config.membership().voter_ids().count() == 1;
            let silence_ms = if alone { Some(0) } else { metrics.millis_since_quorum_ack };
            silence_ms.into_iter().for_each(|silence_ms| self.note(silence_ms));
        }
        self.clock.raw_ms().saturating_sub(self.heard_ms.load(Ordering::Relaxed)) <= SILENCE_MAX_MS
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    /// Node 1 of three.
    fn leadership() -> (watch::Sender<RaftMetrics<u64, BasicNode>>, Leadership) {
        let (told, metrics) = watch::channel(RaftMetrics::new_initial(1));
        (told, Leadership::new(1, Clock::anchored(), metrics))
    }

    fn wait_out() {
        std::thread::sleep(Duration::from_millis(SILENCE_MAX_MS + 20));
    }

    #[test]
    fn an_election_is_no_loss_of_the_majority_unless_it_lasts() {
        let (told, leadership) = leadership();
        assert!(!leadership.has_quorum(), "nobody ever spoke");
        leadership.note_word();
        assert!(leadership.has_quorum());
        told.send_modify(|metrics| metrics.current_leader = Some(1));
        assert!(leadership.has_quorum(), "the new leader has not been answered yet");
        wait_out();
        assert!(!leadership.has_quorum(), "nobody answered it");
        told.send_modify(|metrics| metrics.millis_since_quorum_ack = Some(SILENCE_MAX_MS / 2));
        assert!(leadership.has_quorum());
        told.send_modify(|metrics| metrics.current_leader = None);
        assert!(leadership.has_quorum(), "it led a majority a moment ago");
        wait_out();
        assert!(!leadership.has_quorum());
    }

    #[test]
    fn old_answers_make_no_majority_and_a_stopped_raft_has_none() {
        let (told, leadership) = leadership();
        told.send_modify(|metrics| {
            (metrics.current_leader, metrics.millis_since_quorum_ack) = (Some(1), Some(SILENCE_MAX_MS + 1));
        });
        assert!(!leadership.has_quorum());
        leadership.note_word();
        assert!(leadership.has_quorum());
        told.send_modify(|metrics| metrics.running_state = Err(openraft::error::Fatal::Stopped));
        assert!(!leadership.has_quorum());
    }
}
