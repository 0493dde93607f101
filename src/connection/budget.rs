//! The memory that the contents of all messages may take together, and a User's share of it.
//!
//! Who finds no room waits for a moment and is then refused. Nobody stands in a line: what fits goes first, and no two
//! messages wait for each other without end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::user::UserId;

/// One User may hold this part of all, or one message of any size.
const USER_SHARE: u64 = 4;
/// How often a message looks for room.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The budget of a node. Cheap to clone.
#[derive(Clone)]
pub(super) struct Budget {
    octets: Arc<Mutex<Octets>>,
    total: u64,
}

struct Octets {
    free: u64,
    /// Users that hold nothing are not in it.
    users: HashMap<UserId, u64>,
}

/// What one connection holds of the budget; gives it back when dropped.
pub(super) struct Held {
    budget: Budget,
    user: Option<UserId>,
    octets: u64,
}

/// Others hold the memory, or other messages of this User.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Exhausted;

impl Budget {
    pub(super) fn new(octets_max: u64) -> Self {
        Self { octets: Arc::new(Mutex::new(Octets { free: octets_max, users: HashMap::new() })), total: octets_max }
    }

    pub(super) fn hold_nothing(&self) -> Held {
        Held { budget: self.clone(), user: None, octets: 0 }
    }

    fn lock(&self) -> MutexGuard<'_, Octets> {
        self.octets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Gives back what is held and claims `octets` for a message of `user`.
    pub(super) async fn claim(&mut self, user: UserId, octets: u64, patience: Duration) -> Result<(), Exhausted> {
        self.release();
        self.user = Some(user);
        self.grow_to(octets, patience).await
    }

    /// Waits until `octets` are held. A message larger than the whole budget gets all of it.
    pub(super) async fn grow_to(&mut self, octets: u64, patience: Duration) -> Result<(), Exhausted> {
        let deadline = Instant::now() + patience;
        while !self.try_grow_to(octets) {
            if Instant::now() >= deadline {
                return Err(Exhausted);
            }
            tokio::time::sleep_until(deadline.min(Instant::now() + LOOK_INTERVAL)).await;
        }
        Ok(())
    }

    fn try_grow_to(&mut self, octets: u64) -> bool {
        let more = octets.min(self.budget.total).saturating_sub(self.octets);
        let Some(user) = self.user.filter(|_| more > 0) else { return true };
        let mut budget = self.budget.lock();
        let others = budget.users.get(&user).copied().unwrap_or(0) - self.octets;
        let in_share = others == 0 || others + self.octets + more <= self.budget.total / USER_SHARE;
        if !in_share || more > budget.free {
            return false;
        }
        budget.free -= more;
        *budget.users.entry(user).or_default() += more;
        self.octets += more;
        true
    }

    pub(super) fn release(&mut self) {
        let octets = std::mem::take(&mut self.octets);
        let Some(user) = self.user.filter(|_| octets > 0) else { return };
        let mut budget = self.budget.lock();
        budget.free += octets;
        if let Some(held) = budget.users.get_mut(&user) {
            *held -= octets;
            if *held == 0 {
                budget.users.remove(&user);
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(20);
    const ALICE: UserId = UserId(1);
    const BOB: UserId = UserId(2);
    const CAROL: UserId = UserId(3);

    #[tokio::test]
    async fn messages_share_the_budget_and_give_it_back() {
        let budget = Budget::new(100);
        let (mut first, mut second) = (budget.hold_nothing(), budget.hold_nothing());
        assert_eq!(first.claim(ALICE, 10, PATIENCE).await, Ok(()));
        assert_eq!(first.grow_to(80, PATIENCE).await, Ok(()), "one message may take more than the share");
        assert_eq!(second.claim(BOB, 30, PATIENCE).await, Err(Exhausted));
        assert_eq!(second.claim(BOB, 20, PATIENCE).await, Ok(()), "a small one is not kept waiting by a large one");
        second.release();
        first.release();
        assert_eq!(second.claim(BOB, u64::MAX, PATIENCE).await, Ok(()), "no message is larger than the budget");
        assert_eq!(budget.lock().free, 0);
        drop(second);
        assert_eq!(budget.lock().free, 100);
        assert!(budget.lock().users.is_empty());
    }

    #[tokio::test]
    async fn one_user_leaves_room_for_others() {
        let budget = Budget::new(100);
        let mut held = [budget.hold_nothing(), budget.hold_nothing(), budget.hold_nothing()];
        assert_eq!(held[0].claim(ALICE, 13, PATIENCE).await, Ok(()));
        assert_eq!(held[1].claim(ALICE, 12, PATIENCE).await, Ok(()));
        assert_eq!(held[2].claim(ALICE, 1, PATIENCE).await, Err(Exhausted));
        assert_eq!(held[1].grow_to(13, PATIENCE).await, Err(Exhausted));
        assert_eq!(held[2].claim(CAROL, 75, PATIENCE).await, Ok(()));
    }

    #[tokio::test]
    async fn room_that_comes_is_found() {
        let budget = Budget::new(100);
        let (mut first, mut second) = (budget.hold_nothing(), budget.hold_nothing());
        assert_eq!(first.claim(ALICE, 100, PATIENCE).await, Ok(()));
        let waiting = tokio::spawn(async move { second.claim(BOB, 100, Duration::from_secs(10)).await });
        tokio::task::yield_now().await;
        drop(first);
        assert_eq!(waiting.await.unwrap(), Ok(()));
    }
}
