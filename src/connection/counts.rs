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
    total: watch::Sender<Total>,
    total_max: usize,
    addresses: Mutex<HashMap<IpAddr, usize>>,
    per_address_max: usize,
}

#[derive(Clone, Copy, Default)]
struct Total {
    all: usize,
    /// Those of them that have not logged in yet.
    strangers: usize,
}

/// Strangers may take all places but this part.
const KEPT_SHARE: usize = 4;

/// A place among the connections; dropping it frees the place.
pub struct Seat {
    inner: Arc<Inner>,
    is_stranger: bool,
}

/// A place among the connections of one address; dropping it frees the place.
pub(super) struct AddressSeat {
    inner: Arc<Inner>,
    source: IpAddr,
}

impl Counts {
    pub(super) fn new(total_max: usize, per_address_max: usize) -> Self {
        let inner = Inner { total: watch::Sender::default(), total_max, addresses: Mutex::default(), per_address_max };
        Self { inner: Arc::new(inner) }
    }

    /// A stranger's place among all connections; `None` if there is none left.
    pub fn enter_total(&self) -> Option<Seat> {
        let Inner { total, total_max, .. } = &*self.inner;
        let strangers_max = total_max - total_max / KEPT_SHARE;
        let entered = total.send_if_modified(|count| {
            let room = count.all < *total_max && count.strangers < strangers_max;
            count.all += usize::from(room);
            count.strangers += usize::from(room);
            room
        });
        entered.then(|| Seat { inner: Arc::clone(&self.inner), is_stranger: true })
    }

    /// A place among the connections of one address (or of an IPv6 /64).
    pub(super) fn enter(&self, address: IpAddr) -> Option<AddressSeat> {
        let source = source(address);
        let mut addresses = self.inner.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let count = addresses.entry(source).or_default();
        // A bound of 0 must not leave an empty entry behind.
        if *count >= self.inner.per_address_max.max(1) {
            return None;
        }
        *count += 1;
        Some(AddressSeat { inner: Arc::clone(&self.inner), source })
    }

    /// Returns once no connection is left.
    pub async fn none_left(&self) {
        // The sender lives in `inner`, so the wait cannot fail.
        if self.inner.total.subscribe().wait_for(|count| count.all == 0).await.is_err() {
            tracing::debug!("the count of connections is gone");
        }
    }
}

impl Seat {
    /// Whoever sits here has logged in.
    pub(super) fn becomes_known(&mut self) {
        if std::mem::take(&mut self.is_stranger) {
            self.inner.total.send_modify(|count| count.strangers -= 1);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.becomes_known();
        self.inner.total.send_modify(|count| count.all -= 1);
    }
}

impl Drop for AddressSeat {
    fn drop(&mut self) {
        let mut addresses = self.inner.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = addresses.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&self.source);
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

    #[tokio::test]
    async fn strangers_leave_places_to_those_who_log_in() {
        let counts = Counts::new(4, 1);
        let mut seats: Vec<_> = (0..3).map(|_| counts.enter_total().unwrap()).collect();
        assert!(counts.enter_total().is_none(), "the last place is not for a stranger");
        seats[0].becomes_known();
        seats[0].becomes_known();
        seats.push(counts.enter_total().unwrap());
        seats[1].becomes_known();
        assert!(counts.enter_total().is_none(), "there is no fifth place");
        drop(seats);
        counts.none_left().await;
        assert_eq!(counts.inner.total.borrow().strangers, 0);
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
