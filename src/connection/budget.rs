//! The memory that the contents of all messages may take together.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What is counted at once; the semaphore counts in these.
const UNIT: usize = 1024;

/// The budget of a node. Cheap to clone.
#[derive(Clone)]
pub(super) struct Budget {
    units: Arc<Semaphore>,
    total: u32,
}

/// What one connection holds of the budget.
pub(super) struct Held {
    budget: Budget,
    permit: Option<OwnedSemaphorePermit>,
}

/// Others hold the memory for too long.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Exhausted;

impl Budget {
    pub(super) fn new(octets_max: u64) -> Self {
        let total = u32::try_from(octets_max / UNIT as u64).unwrap_or(u32::MAX).max(1);
        Self { units: Arc::new(Semaphore::new(total as usize)), total }
    }

    pub(super) fn hold_nothing(&self) -> Held {
        Held { budget: self.clone(), permit: None }
    }
}

impl Held {
    /// Waits until `octets` are held. A message larger than the whole budget gets all of it.
    pub(super) async fn grow_to(&mut self, octets: usize, patience: Duration) -> Result<(), Exhausted> {
        let wanted = u32::try_from(octets.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.budget.total);
        let held = self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = wanted.saturating_sub(u32::try_from(held).unwrap_or(u32::MAX));
        if more == 0 {
            return Ok(());
        }
        let wait = Arc::clone(&self.budget.units).acquire_many_owned(more);
        let got = tokio::time::timeout(patience, wait).await.map_err(|_| Exhausted)?.map_err(|_| Exhausted)?;
        match &mut self.permit {
            Some(permit) => permit.merge(got),
            None => self.permit = Some(got),
        }
        Ok(())
    }

    pub(super) fn release(&mut self) {
        self.permit = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn messages_wait_for_each_other() {
        let budget = Budget::new(10 * 1024);
        let (mut first, mut second) = (budget.hold_nothing(), budget.hold_nothing());
        assert_eq!(first.grow_to(1, PATIENCE).await, Ok(()));
        assert_eq!(first.grow_to(8 * 1024, PATIENCE).await, Ok(()));
        assert_eq!(budget.units.available_permits(), 2);
        assert_eq!(second.grow_to(3 * 1024, PATIENCE).await, Err(Exhausted));
        first.release();
        assert_eq!(second.grow_to(u32::MAX as usize, PATIENCE).await, Ok(()), "no message is larger than the budget");
        assert_eq!(budget.units.available_permits(), 0);
        drop(second);
        assert_eq!(budget.units.available_permits(), 10);
    }
}
