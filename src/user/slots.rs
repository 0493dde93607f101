//! A few slots for each source network, so that logins of one cannot keep others waiting.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::{IpNet, Ipv6Net};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::LoginError;

/// The network of an address that shares its fate: itself, or the /64 of an IPv6 address.
pub fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => Ipv6Net::new(v6, 64).map_or(address, |network| IpNet::V6(network).network()),
    }
}

/// Slots by source. Cheap to clone.
#[derive(Clone)]
pub(super) struct Slots {
    sources: Arc<Mutex<HashMap<IpAddr, Arc<Semaphore>>>>,
    /// Slots of each source.
    slots: usize,
    /// Holders and waiters of each source, beyond which it is refused.
    users_max: usize,
    /// For a slot.
    patience: Duration,
}

/// A slot of a source, or a wait for one.
pub(super) struct Slot {
    permit: Option<OwnedSemaphorePermit>,
    source: IpAddr,
    slots: Slots,
}

impl Slots {
    pub(super) fn new(slots: usize, users_max: usize, patience: Duration) -> Self {
        Self { sources: Arc::default(), slots, users_max, patience }
    }

    /// Waits its turn among the logins of the same source.
    pub(super) async fn enter(&self, address: IpAddr) -> Result<Slot, LoginError> {
        let source = source(address);
        let semaphore = {
            let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
            let semaphore = sources.entry(source).or_insert_with(|| Arc::new(Semaphore::new(self.slots)));
            // One reference is the table's own.
            if Arc::strong_count(semaphore) > self.users_max {
                return Err(LoginError::Unavailable);
            }
            Arc::clone(semaphore)
        };
        // Made before the wait, so that the table is tidied however the wait ends.
        let mut slot = Slot { permit: None, source, slots: self.clone() };
        let permit = tokio::time::timeout(self.patience, semaphore.acquire_owned()).await;
        slot.permit = permit.ok().and_then(Result::ok);
        if slot.permit.is_none() {
            return Err(LoginError::Unavailable);
        }
        Ok(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        drop(self.permit.take());
        let mut sources = self.slots.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if sources.get(&self.source).is_some_and(|semaphore| Arc::strong_count(semaphore) == 1) {
            sources.remove(&self.source);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[tokio::test]
    async fn one_source_cannot_take_the_slots_of_another() {
        let slots = Slots::new(1, 2, Duration::from_secs(10));
        let here: IpAddr = "192.0.2.1".parse().unwrap();
        let first = slots.enter(here).await.unwrap();
        let second = slots.clone();
        let waiter = tokio::spawn(async move { second.enter(here).await.map(drop) });
        while Arc::strong_count(slots.sources.lock().unwrap().get(&here).unwrap()) < 3 {
            tokio::task::yield_now().await;
        }
        assert!(matches!(slots.enter(here).await, Err(LoginError::Unavailable)), "a third is one too many");
        drop(slots.enter("192.0.2.2".parse().unwrap()).await.unwrap());
        drop(first);
        waiter.await.unwrap().unwrap();
        assert!(slots.sources.lock().unwrap().is_empty(), "nothing is left behind");
    }

    #[tokio::test]
    async fn nobody_waits_for_a_slot_without_end() {
        let slots = Slots::new(1, 9, Duration::from_millis(20));
        let here: IpAddr = "192.0.2.1".parse().unwrap();
        let held = slots.enter(here).await.unwrap();
        assert!(matches!(slots.enter(here).await, Err(LoginError::Unavailable)));
        drop(held);
        assert!(slots.enter(here).await.is_ok());
        assert!(slots.sources.lock().unwrap().is_empty(), "nothing is left behind");
    }

    #[test]
    fn a_source_is_an_address_or_a_64() {
        let network = |text: &str| source(text.parse().unwrap()).to_string();
        assert_eq!(network("192.0.2.1"), "192.0.2.1");
        assert_eq!(network("::ffff:192.0.2.1"), "192.0.2.1");
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    }
}
