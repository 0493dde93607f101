//! How many sessions each User has, here and on the other nodes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use outgate_cluster::UserId;

/// The word of a node that has fallen silent counts for this long: its sessions end with it.
const WORD_LIFE: Duration = Duration::from_secs(2);

/// The counts of this node, and what the others last said of theirs. Cheap to clone.
#[derive(Clone, Default)]
pub struct Sessions {
    counts: Arc<Mutex<Counts>>,
}

#[derive(Default)]
struct Counts {
    here: HashMap<UserId, u64>,
    elsewhere: BTreeMap<u64, Word>,
}

struct Word {
    heard: Instant,
    counts: HashMap<UserId, u64>,
}

/// A place among the sessions of a User; dropping it frees the place.
pub struct Place {
    user: UserId,
    sessions: Sessions,
}

impl Sessions {
    /// A place, where the whole cluster has fewer than `max` sessions of the User; 0 = any number.
    pub(super) fn enter(&self, user: UserId, max: u64) -> Option<Place> {
        let mut counts = self.lock();
        if max > 0 && counts.all(user) >= max {
            return None;
        }
        *counts.here.entry(user).or_default() += 1;
        Some(Place { user, sessions: self.clone() })
    }

    pub(super) fn has_any(&self, user: UserId) -> bool {
        self.lock().here.contains_key(&user)
    }

    /// Of this node, without the Users that have none.
    pub(crate) fn here(&self) -> Vec<(UserId, u64)> {
        self.lock().here.iter().map(|(user, count)| (*user, *count)).collect()
    }

    /// What another node has, in place of what it had.
    pub(crate) fn hear(&self, node: u64, counts: impl IntoIterator<Item = (UserId, u64)>) {
        let word = Word { heard: Instant::now(), counts: counts.into_iter().collect() };
        self.lock().elsewhere.insert(node, word);
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn all(&self, user: UserId) -> u64 {
        let fresh = self.elsewhere.values().filter(|word| word.heard.elapsed() < WORD_LIFE);
        let elsewhere = fresh.filter_map(|word| word.counts.get(&user));
        elsewhere.chain(self.here.get(&user)).fold(0, |sum, count| sum.saturating_add(*count))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.sessions.lock();
        if let Some(count) = counts.here.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                counts.here.remove(&self.user);
            }
        }
    }
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Place").field(&self.user).finish()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const USER: UserId = UserId(7);

    #[test]
    fn places_are_counted_and_come_back() {
        let sessions = Sessions::default();
        let (first, second) = (sessions.enter(USER, 2).unwrap(), sessions.enter(USER, 2).unwrap());
        assert!(sessions.enter(USER, 2).is_none());
        assert!(sessions.enter(UserId(8), 2).is_some(), "another User has its own");
        assert!(sessions.enter(USER, 0).is_some(), "0 is no limit");
        assert_eq!(sessions.here(), [(USER, 2)]);
        drop((first, second));
        assert!(!sessions.has_any(USER));
        assert!(sessions.enter(USER, 1).is_some());
    }

    #[test]
    fn sessions_on_other_nodes_count_until_their_node_is_silent() {
        let sessions = Sessions::default();
        sessions.hear(2, [(USER, 1)]);
        sessions.hear(3, [(USER, 1), (UserId(8), 5)]);
        assert!(sessions.enter(USER, 2).is_none());
        sessions.hear(3, []);
        let held = sessions.enter(USER, 2);
        assert!(held.is_some());
        assert!(sessions.enter(USER, 2).is_none());
        let old = Instant::now().checked_sub(WORD_LIFE).unwrap();
        sessions.lock().elsewhere.get_mut(&2).unwrap().heard = old;
        assert!(sessions.enter(USER, 2).is_some());
    }
}
