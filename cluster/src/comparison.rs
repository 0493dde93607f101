//! Whether this node's state is the one that is wrong.
//!
//! Equal logs give equal states. Where they do not, a machine's memory or disk has failed, or the program is wrong; a node
//! cannot go on then, because it would answer otherwise than the rest.

use std::collections::BTreeMap;

use crate::store::state_hash::StateHash;

/// The entry at which this node's state differs from the one that most others have, or from the leader's where most do not
/// agree. `None` = it differs nowhere that can be seen.
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
    for (node, hashes) in others {
        let Some(hash) = hashes.iter().find(|hash| hash.index == own.index) else { continue };
        *votes.entry(hash).or_default() += 1;
        if leader == Some(*node) {
            of_leader = Some(hash);
        }
    }
    let majority = votes.into_iter().find(|(_, count)| *count > members / 2).map(|(hash, _)| hash);
    majority.or(of_leader).is_some_and(|right| right != own)
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
        assert_eq!(deviation(&[hash(10, 9)], &others(&[(2, 1)]), 3, None), None);
    }

    #[test]
    fn only_equal_entries_are_compared() {
        assert_eq!(deviation(&[hash(11, 9)], &others(&[(2, 1), (3, 1)]), 3, Some(2)), None);
        assert_eq!(deviation(&[hash(9, 9), hash(10, 1)], &others(&[(2, 1), (3, 1)]), 3, Some(2)), None);
    }
}
