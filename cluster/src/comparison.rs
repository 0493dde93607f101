//! Whether this node's state is the one that is wrong.
//!
//! Equal logs give equal states. Where they do not, a machine's memory or disk has failed, or the program is wrong; a node
//! cannot go on then, because it would answer otherwise than the rest.

use std::collections::BTreeMap;

use crate::store::state_hash::StateHash;

/// The entry at which this node's state differs from the one that most members have, or from the leader's where no state
/// can have most of them any more. `None` = it differs nowhere that can be seen yet.
pub(crate) fn deviation(
    own: &[StateHash],
    others: &BTreeMap<u64, Vec<StateHash>>,
    members: usize,
    leader: Option<u64>,
) -> Option<u64> {
    own.iter().find(|own| deviates(own, others, members, leader)).map(|own| own.index)
}

fn deviates(own: &StateHash, others: &BTreeMap<u64, Vec<StateHash>>, members: usize, leader: Option<u64>) -> bool {
    let mut votes: BTreeMap<&StateHash, usize> = BTreeMap::from([(own, 1)]);
    let mut of_leader = None;
    let mut told = 1;
    for (node, hashes) in others {
        let Some(hash) = hashes.iter().find(|hash| hash.index == own.index) else { continue };
        *votes.entry(hash).or_default() += 1;
        told += 1;
        if leader == Some(*node) {
            of_leader = Some(hash);
        }
    }
    let Some((first, most)) = votes.into_iter().max_by_key(|(_, count)| *count) else { return false };
    let is_majority = |count: usize| count > members / 2;
    if is_majority(most) {
        return first != own;
    }
    let may_become_one = is_majority(most + members.saturating_sub(told));
    !may_become_one && of_leader.is_some_and(|right| right != own)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(index: u64, sum: u64) -> StateHash {
        StateHash { index, records: 1, sum }
    }

    fn others(sums: &[(u64, u64)]) -> BTreeMap<u64, Vec<StateHash>> {
        sums.iter().map(|(node, sum)| (*node, vec![hash(10, *sum)])).collect()
    }

    #[test]
    fn whoever_is_against_a_majority_is_wrong() {
        assert_eq!(deviation(&[hash(10, 1)], &others(&[(2, 1), (3, 9)]), 3, Some(3)), None);
        assert_eq!(deviation(&[hash(10, 9)], &others(&[(2, 1), (3, 1)]), 3, Some(1)), Some(10));
        assert_eq!(deviation(&[hash(10, 1)], &others(&[(2, 1), (3, 1)]), 3, Some(2)), None);
    }

    #[test]
    fn without_a_majority_the_leader_is_right() {
        assert_eq!(deviation(&[hash(10, 9)], &others(&[(2, 1)]), 2, Some(2)), Some(10));
        assert_eq!(deviation(&[hash(10, 9)], &others(&[(2, 1)]), 2, Some(1)), None);
        assert_eq!(deviation(&[hash(10, 9)], &others(&[(2, 1), (3, 5)]), 3, Some(2)), Some(10));
        assert_eq!(deviation(&[hash(10, 9)], &others(&[(2, 1), (3, 5)]), 3, None), None);
    }

    #[test]
    fn a_wrong_leader_is_not_believed_while_others_may_still_agree_with_this_node() {
        assert_eq!(deviation(&[hash(10, 1)], &others(&[(2, 9)]), 3, Some(2)), None);
        assert_eq!(deviation(&[hash(10, 1)], &others(&[(2, 9), (3, 1)]), 3, Some(2)), None);
        assert_eq!(deviation(&[hash(10, 1)], &others(&[(2, 9), (3, 9)]), 5, Some(2)), None);
    }

    #[test]
    fn only_equal_entries_are_compared() {
        assert_eq!(deviation(&[hash(11, 9)], &others(&[(2, 1), (3, 1)]), 3, Some(2)), None);
        assert_eq!(deviation(&[hash(9, 9), hash(10, 1)], &others(&[(2, 1), (3, 1)]), 3, Some(2)), None);
    }
}
