//! How many connections there are, in total and from each address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::user::source;

/// The counts of a node. Cheap to clone.
#[derive(Clone)]
pub struct Counts {
    inner: Arc<Inner>,
}

struct Inner {
    total: watch::Sender<usize>,
    total_max: usize,
    addresses: Mutex<HashMap<IpAddr, usize>>,
    per_address_max: usize,
}

/// A place among the connections; dropping it frees the place.
pub struct Seat {
    inner: Arc<Inner>,
    /// The source that is counted, or the total.
    source: Option<IpAddr>,
}

impl Counts {
    pub(super) fn new(total_max: usize, per_address_max: usize) -> Self {
        let inner = Inner { total: watch::Sender::new(0), total_max, addresses: Mutex::default(), per_address_max };
        Self { inner: Arc::new(inner) }
    }

    /// A place among all connections; `None` if there is none left.
    pub fn enter_total(&self) -> Option<Seat> {
        let Inner { total, total_max, .. } = &*self.inner;
        let entered = total.send_if_modified(|count| {
            let room = *count < *total_max;
            *count += usize::from(room);
            room
        });
        entered.then(|| Seat { inner: Arc::clone(&self.inner), source: None })
    }

    /// A place among the connections of one address (or of an IPv6 /64).
    pub(super) fn enter(&self, address: IpAddr) -> Option<Seat> {
        let source = source(address);
        let mut addresses = self.inner.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let count = addresses.entry(source).or_default();
        // A bound of 0 must not leave an empty entry behind.
        if *count >= self.inner.per_address_max.max(1) {
            return None;
        }
        *count += 1;
        Some(Seat { inner: Arc::clone(&self.inner), source: Some(source) })
    }

    /// Returns once no connection is left.
    pub async fn none_left(&self) {
        // The sender lives in `inner`, so the wait cannot fail.
        if self.inner.total.subscribe().wait_for(|&count| count == 0).await.is_err() {
            tracing::debug!("the count of connections is gone");
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some(source) = self.source else {
            self.inner.total.send_modify(|count| *count -= 1);
            return;
        };
        let mut addresses = self.inner.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = addresses.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[tokio::test]
    async fn places_are_bounded_and_come_back() {
        let counts = Counts::new(2, 1);
        let (first, second) = (counts.enter_total().unwrap(), counts.enter_total().unwrap());
        assert!(counts.enter_total().is_none());
        drop(first);
        let third = counts.enter_total();
        assert!(third.is_some());
        drop((second, third));
        counts.none_left().await;
    }

    #[test]
    fn each_address_has_its_own_bound() {
        let counts = Counts::new(9, 1);
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let seat = counts.enter(address("192.0.2.1")).unwrap();
        assert!(counts.enter(address("192.0.2.1")).is_none());
        assert!(counts.enter(address("192.0.2.2")).is_some());
        drop(seat);
        assert!(counts.enter(address("192.0.2.1")).is_some());
        assert!(counts.inner.addresses.lock().unwrap().is_empty());
    }
}
