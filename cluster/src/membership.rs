//! Raft's membership follows the state's table of nodes, step by step; the leader sees to it.
//!
//! The table says who is a member; which members vote follows from it here: 1, 3, 5 or 7 of them (2 where there are no
//! more), those that vote already first, and new ones once they have caught up. The others are learners: they know
//! everything, decide nothing and take mail like all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::{BasicNode, ChangeMembers, RaftMetrics};
use tokio::time::timeout;

use crate::raft::Raft;
use crate::state::NodeView;

/// A learner this close behind the log's end may vote.
const CAUGHT_UP_ENTRIES: u64 = 256;
/// How long one step may take; an unfinished one goes on by itself or is begun again.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// What has to be changed next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    AddLearner(u64, String),
    Vote(BTreeSet<u64>),
    Remove(BTreeSet<u64>),
}

/// Takes one step, if there is one to take.
pub(crate) async fn follow(raft: &Raft, nodes: &[NodeView]) {
    let metrics = raft.metrics().borrow().clone();
    let Some(step) = next_step(&metrics, nodes) else { return };
    tracing::info!(?step, "the membership changes");
    let taken = timeout(STEP_TIMEOUT, take(raft, step.clone())).await;
    match taken {
        Ok(Ok(())) => tell_of_two(&step),
        Ok(Err(error)) => tracing::warn!(?step, error, "the membership could not be changed yet"),
        Err(_) => tracing::warn!(?step, "the membership is not changed yet"),
    }
}

fn tell_of_two(step: &Step) {
    if matches!(step, Step::Vote(voters) if voters.len() == 2) {
        tracing::warn!("this cluster has two nodes and stops when either of them stops: add a third");
    }
}

async fn take(raft: &Raft, step: Step) -> Result<(), String> {
    let result = match step {
        Step::AddLearner(node, address) => raft.add_learner(node, BasicNode::new(address), false).await,
        Step::Vote(voters) => raft.change_membership(voters, true).await,
        Step::Remove(nodes) => raft.change_membership(ChangeMembers::RemoveNodes(nodes), false).await,
    };
    result.map(drop).map_err(|error| error.to_string())
}

fn next_step(metrics: &RaftMetrics<u64, BasicNode>, nodes: &[NodeView]) -> Option<Step> {
    let membership = metrics.membership_config.membership();
    if let [_, .., new] = membership.get_joint_config().as_slice() {
        // Half a step: whoever began it may be gone, and nobody else ends it.
        return Some(Step::Vote(new.clone()));
    }
    let known: BTreeMap<u64, &BasicNode> = membership.nodes().map(|(id, node)| (*id, node)).collect();
    let voters: BTreeSet<u64> = membership.voter_ids().collect();
    if let Some(new) = nodes.iter().find(|node| !known.contains_key(&node.id)) {
        return Some(Step::AddLearner(new.id, new.address.clone()));
    }
    let end = metrics.last_log_index.unwrap_or(0);
    let caught_up = |id: u64| {
        let matched = metrics.replication.as_ref().and_then(|all| all.get(&id).copied().flatten());
        id == metrics.id || matched.is_some_and(|matched| matched.index + CAUGHT_UP_ENTRIES >= end)
    };
    let wanted = wanted_voters(metrics.id, nodes, &voters, caught_up);
    if wanted != voters {
        return Some(Step::Vote(wanted));
    }
    let gone: BTreeSet<u64> = known.keys().copied().filter(|id| !nodes.iter().any(|node| node.id == *id)).collect();
    (!gone.is_empty()).then_some(Step::Remove(gone))
}

fn wanted_voters(
    leader: u64,
    nodes: &[NodeView],
    voters: &BTreeSet<u64>,
    caught_up: impl Fn(u64) -> bool,
) -> BTreeSet<u64> {
    let mut eligible: Vec<u64> =
        nodes.iter().map(|node| node.id).filter(|id| voters.contains(id) || caught_up(*id)).collect();
    eligible.sort_by_key(|id| (*id != leader, !voters.contains(id), *id));
    let count = match (nodes.len(), eligible.len()) {
        // The third is on its way: two voters would stop when either stops.
        (3.., 2) if voters.len() < 2 => 1,
        (_, count @ 0..=2) => count,
        (_, 3 | 4) => 3,
        (_, 5 | 6) => 5,
        (_, _) => 7,
    };
    eligible.into_iter().take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Timestamp;
    use crate::state::Ownership;

    fn nodes(ids: &[u64]) -> Vec<NodeView> {
        let node = |id: &u64| NodeView {
            id: *id,
            address: String::new(),
            joined: Timestamp(0),
            draining: false,
            ownership: Ownership::default(),
        };
        ids.iter().map(node).collect()
    }

    fn wanted(leader: u64, ids: &[u64], voters: &[u64], caught_up: &[u64]) -> Vec<u64> {
        let voters = voters.iter().copied().collect();
        wanted_voters(leader, &nodes(ids), &voters, |id| caught_up.contains(&id)).into_iter().collect()
    }

    #[test]
    fn half_a_step_is_ended_by_whoever_leads() {
        let known: BTreeMap<u64, BasicNode> = (1..=3).map(|id| (id, BasicNode::new(""))).collect();
        let joint = openraft::Membership::new(vec![BTreeSet::from([1]), BTreeSet::from([1, 2, 3])], known);
        let mut metrics = RaftMetrics::new_initial(2);
        metrics.membership_config = std::sync::Arc::new(openraft::StoredMembership::new(None, joint));
        assert_eq!(next_step(&metrics, &nodes(&[1, 2, 3])), Some(Step::Vote(BTreeSet::from([1, 2, 3]))));
    }

    #[test]
    fn an_odd_number_of_nodes_votes() {
        assert_eq!(wanted(1, &[1], &[1], &[1]), [1]);
        assert_eq!(wanted(1, &[1, 2], &[1], &[1]), [1]);
        assert_eq!(wanted(1, &[1, 2], &[1], &[1, 2]), [1, 2]);
        assert_eq!(wanted(1, &[1, 2, 3], &[1], &[1, 2]), [1]);
        assert_eq!(wanted(1, &[1, 2, 3], &[1, 2], &[1, 2]), [1, 2]);
        assert_eq!(wanted(1, &[1, 2, 3], &[1], &[1, 2, 3]), [1, 2, 3]);
        assert_eq!(wanted(1, &[1, 2, 3, 4], &[1, 2, 3], &[1, 2, 3, 4]), [1, 2, 3]);
        assert_eq!(wanted(2, &[1, 2, 3, 4, 5], &[1, 2, 3], &[1, 2, 3, 4, 5]), [1, 2, 3, 4, 5]);
        assert_eq!(wanted(1, &[1, 2, 3, 4, 5, 6, 7, 8, 9], &[1], &[1, 2, 3, 4, 5, 6, 7, 8, 9]).len(), 7);
    }

    #[test]
    fn a_voter_that_is_gone_is_replaced_and_one_that_is_behind_stays() {
        assert_eq!(wanted(1, &[1, 2, 4], &[1, 2, 3], &[1, 2, 4]), [1, 2, 4]);
        assert_eq!(wanted(1, &[1, 2, 3, 4], &[1, 2, 3], &[1, 4]), [1, 2, 3]);
        assert_eq!(wanted(4, &[1, 2, 3, 4], &[1, 2, 3, 4, 5], &[1, 2, 3, 4]), [1, 2, 4]);
    }
}
