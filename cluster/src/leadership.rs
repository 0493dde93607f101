//! Who leads, and whether this node can count on it.
//!
//! openraft 0.9 tells who led last, not whether the leader still has a majority: a leader that was cut off goes on leading
//! nobody, and a learner that was cut off never notices. So a leader looks at how long ago a majority answered it, and
//! everybody else at how long ago the leader spoke. That alone would trust a leader that was cut off together with this node,
//! so that each node looks for itself whether it reaches a majority of the voters.
//!
//! Invariant: a node that reaches no majority says so within a second; one that does, and hears no leader, after three. It
//! says that there is one again only when a leader has spoken.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::{BasicNode, RaftMetrics};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::clock::Clock;
use crate::pulse::Standings;

/// A leader that was silent for longer may be none any more.
const SILENCE_MAX_MS: u64 = 700;
/// How long those who reach a majority of the voters wait for a leader: an election is no reason to turn a client away.
const ELECTION_MAX_MS: u64 = 3_000;
/// A voter that was not heard for longer is not reached; listeners close within a second.
const REACHED_MAX_MS: u64 = 800;

#[derive(Clone)]
pub(crate) struct Leadership {
    node: u64,
    clock: Clock,
    metrics: watch::Receiver<RaftMetrics<u64, BasicNode>>,
    /// When a leader last spoke here, or a majority last followed this one, by the uncorrected clock: a correction must not
    /// make an old word a new one.
    heard_ms: Arc<AtomicU64>,
    standings: Standings,
}

impl Leadership {
    pub(crate) fn new(
        node: u64,
        clock: Clock,
        metrics: watch::Receiver<RaftMetrics<u64, BasicNode>>,
        standings: Standings,
    ) -> Self {
        Self { node, clock, metrics, heard_ms: Arc::default(), standings }
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

    /// A leader with a majority is there.
    pub(crate) fn has_quorum(&self) -> bool {
        self.reaches_majority_and_heard(SILENCE_MAX_MS)
    }

    /// The same, or one is being elected by a majority that this node is part of: what is asked meanwhile waits for its end.
    pub(crate) fn has_majority(&self) -> bool {
        self.reaches_majority_and_heard(ELECTION_MAX_MS)
    }

    fn reaches_majority_and_heard(&self, silence_max_ms: u64) -> bool {
        let metrics = self.metrics.borrow();
        if metrics.running_state.is_err() {
            return false;
        }
        if metrics.current_leader == Some(self.node) {
            let alone = metrics.membership_config.membership().voter_ids().count() == 1;
            let silence_ms = if alone { Some(0) } else { metrics.millis_since_quorum_ack };
            silence_ms.into_iter().for_each(|silence_ms| self.note(silence_ms));
        }
        let silence_ms = self.clock.raw_ms().saturating_sub(self.heard_ms.load(Ordering::Relaxed));
        silence_ms <= silence_max_ms && self.reaches_majority(&metrics)
    }

    fn reaches_majority(&self, metrics: &RaftMetrics<u64, BasicNode>) -> bool {
        let now_ms = self.clock.raw_ms();
        let heard =
            |node| self.standings.of(node).is_some_and(|of| now_ms.saturating_sub(of.heard_ms) <= REACHED_MAX_MS);
        let voters: Vec<u64> = metrics.membership_config.membership().voter_ids().collect();
        let reached = voters.iter().filter(|voter| **voter == self.node || heard(**voter)).count();
        reached * 2 > voters.len()
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

    use std::collections::BTreeMap;

    use openraft::{Membership, StoredMembership};

    use super::*;
    use crate::pulse::Standing;

    /// Node 1 of three.
    struct Voter {
        told: watch::Sender<RaftMetrics<u64, BasicNode>>,
        standings: Standings,
        leadership: Leadership,
    }

    impl Voter {
        fn new() -> Self {
            let mut metrics = RaftMetrics::new_initial(1);
            let nodes: BTreeMap<u64, BasicNode> = (1..=3).map(|id| (id, BasicNode::default())).collect();
            let membership = Membership::new(vec![(1..=3).collect()], nodes);
            metrics.membership_config = Arc::new(StoredMembership::new(None, membership));
            let ((told, metrics), standings) = (watch::channel(metrics), Standings::default());
            let leadership = Leadership::new(1, Clock::anchored(), metrics, standings.clone());
            Self { told, standings, leadership }
        }

        fn has_quorum(&self) -> bool {
            self.leadership.has_quorum()
        }

        fn heard_of(&self, node: u64) {
            let heard_ms = self.leadership.clock.raw_ms();
            let (version, state_hashes) = (String::new(), Vec::new());
            let standing = Standing { heard_ms, clock_offset_ms: 0, applied: 0, epoch: 0, version, state_hashes };
            self.standings.note(node, standing);
        }

        fn hear_leader(&self, ago_ms: u64) {
            self.leadership.heard_ms.store(self.leadership.clock.raw_ms() - ago_ms, Ordering::Relaxed);
        }
    }

    #[test]
    fn an_election_is_no_loss_of_the_majority_unless_it_lasts() {
        let voter = Voter::new();
        voter.heard_of(2);
        assert!(!voter.has_quorum(), "no leader ever spoke");
        voter.leadership.note_word();
        assert!(voter.has_quorum());
        voter.hear_leader(SILENCE_MAX_MS + 1);
        assert!(!voter.has_quorum() && voter.leadership.has_majority(), "two of three elect another");
        voter.hear_leader(ELECTION_MAX_MS + 1);
        assert!(!voter.leadership.has_majority(), "no leader can be elected");
    }

    #[test]
    fn whoever_reaches_no_majority_has_none_whatever_a_leader_says() {
        let voter = Voter::new();
        voter.leadership.note_word();
        assert!(!voter.has_quorum() && !voter.leadership.has_majority(), "it was cut off together with the leader");
        voter.heard_of(3);
        assert!(voter.has_quorum());
        std::thread::sleep(Duration::from_millis(REACHED_MAX_MS + 20));
        voter.leadership.note_word();
        assert!(!voter.has_quorum() && !voter.leadership.has_majority());
    }

    #[test]
    fn a_leader_counts_on_those_who_follow_it() {
        let voter = Voter::new();
        voter.heard_of(2);
        voter.leadership.note_word();
        voter.told.send_modify(|metrics| metrics.current_leader = Some(1));
        assert!(voter.has_quorum(), "the new leader has not been answered yet");
        voter.hear_leader(SILENCE_MAX_MS + 1);
        assert!(!voter.has_quorum(), "nobody answered it");
        voter.told.send_modify(|metrics| metrics.millis_since_quorum_ack = Some(SILENCE_MAX_MS + 1));
        assert!(!voter.has_quorum());
        voter.told.send_modify(|metrics| metrics.millis_since_quorum_ack = Some(0));
        assert!(voter.has_quorum());
        voter.told.send_modify(|metrics| metrics.current_leader = None);
        assert!(voter.has_quorum(), "it led a majority a moment ago");
        voter.told.send_modify(|metrics| metrics.running_state = Err(openraft::error::Fatal::Stopped));
        assert!(!voter.has_quorum());
    }
}
