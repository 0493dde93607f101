//! Seats for outgoing connections: so many for the node, and so many of these at one address.
//!
//! A server that takes its time holds seats of its own addresses only, under however many names it is found: who
//! waits for an address holds no seat of the node.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::DeliveryConfig;

/// Above so many addresses, those without a connection are forgotten.
const ADDRESSES_MAX: usize = 10_000;

pub(super) struct Seats {
    node_max: usize,
    address_max: usize,
    node: Arc<Semaphore>,
    addresses: Mutex<HashMap<IpAddr, Arc<Semaphore>>>,
}

/// Held as long as the connection is open.
pub(super) struct Seat {
    node_max: usize,
    address_max: usize,
    of_node: OwnedSemaphorePermit,
    of_address: OwnedSemaphorePermit,
}

/// Connections to one host or address: one that is slow leaves half of them to the others.
pub(super) fn per_host_max(config: &DeliveryConfig) -> usize {
    config.connections_per_host_max.min(config.connections_max / 2).max(1)
}

impl Seats {
    pub(super) fn new(config: &DeliveryConfig) -> Self {
        let node_max = config.connections_max.clamp(1, Semaphore::MAX_PERMITS);
        let address_max = per_host_max(config);
        Self { node_max, address_max, node: Arc::new(Semaphore::new(node_max)), addresses: Mutex::default() }
    }

    /// Waits for its turn.
    #[expect(clippy::expect_used, reason = "nobody closes the semaphores")]
    pub(super) async fn take(&self, address: IpAddr) -> Seat {
        let of_address = self.of_address(address).acquire_owned().await.expect("an open semaphore");
        let of_node = Arc::clone(&self.node).acquire_owned().await.expect("an open semaphore");
        Seat { node_max: self.node_max, address_max: self.address_max, of_node, of_address }
    }

    fn of_address(&self, address: IpAddr) -> Arc<Semaphore> {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if addresses.len() >= ADDRESSES_MAX {
            addresses.retain(|_, seats| Arc::strong_count(seats) > 1);
        }
        let seats = addresses.entry(address.to_canonical());
        Arc::clone(seats.or_insert_with(|| Arc::new(Semaphore::new(self.address_max))))
    }
}

impl Seat {
    /// Whether somebody waits for it: then a connection is not kept without work. Each permit and each one who waits
    /// holds a count of the semaphore, and `Seats` holds one.
    pub(super) fn is_wanted(&self) -> bool {
        Arc::strong_count(self.of_address.semaphore()) > self.address_max + 1
            || Arc::strong_count(self.of_node.semaphore()) > self.node_max + 1
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::future::{Future, poll_fn};
    use std::pin::pin;

    use super::*;

    fn seats(connections_max: usize, connections_per_host_max: usize) -> Seats {
        Seats::new(&DeliveryConfig { connections_max, connections_per_host_max, ..DeliveryConfig::default() })
    }

    async fn is_ready(future: &mut std::pin::Pin<&mut impl Future>) -> bool {
        poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx).is_ready())).await
    }

    #[tokio::test]
    async fn one_address_never_has_all_seats_and_who_waits_for_it_takes_none() {
        let seats = seats(4, 20);
        let (tarpit, good) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let held = [seats.take(tarpit).await, seats.take(tarpit).await];
        assert!(!held[0].is_wanted());
        let mapped = match tarpit {
            IpAddr::V4(v4) => IpAddr::V6(v4.to_ipv6_mapped()),
            IpAddr::V6(_) => tarpit,
        };
        let mut third = pin!(seats.take(mapped));
        assert!(!is_ready(&mut third).await);
        assert!(held[0].is_wanted());
        let (_a, _b) = (seats.take(good).await, seats.take(good).await);
        drop(held);
        assert!(!third.await.is_wanted());
    }

    #[tokio::test]
    async fn addresses_are_forgotten_once_there_are_many() {
        let seats = seats(4, 2);
        let _held = seats.take(IpAddr::from([10, 0, 0, 0])).await;
        for number in 0..=u32::try_from(ADDRESSES_MAX).unwrap() {
            seats.of_address(std::net::Ipv4Addr::from(number).into());
        }
        let left = seats.addresses.lock().unwrap();
        assert!(left.len() < 10 && left.contains_key(&IpAddr::from([10, 0, 0, 0])), "{}", left.len());
    }
}
