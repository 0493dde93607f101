//! Addresses that could not be reached a moment ago, so that a hop that is down is not asked by every message.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Answer;

const MEMORY_MAX: Duration = Duration::from_secs(60);
const ADDRESSES_MAX: usize = 10_000;

pub(super) struct Failures {
    memory: Duration,
    failed: Mutex<HashMap<SocketAddr, (Instant, Answer)>>,
}

impl Failures {
    /// A failure is remembered for half a retry interval at most: the next attempt by schedule is a true one.
    pub(super) fn new(retry_interval: Duration) -> Self {
        Self { memory: MEMORY_MAX.min(retry_interval / 2), failed: Mutex::default() }
    }

    pub(super) fn note(&self, address: SocketAddr, answer: &Answer) {
        let now = Instant::now();
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.len() >= ADDRESSES_MAX {
            failed.retain(|_, (since, _)| now.duration_since(*since) < self.memory);
        }
        if failed.len() < ADDRESSES_MAX {
            failed.insert(address, (now, answer.clone()));
        }
    }

    pub(super) fn clear(&self, address: SocketAddr) {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).remove(&address);
    }

    /// Why the address is not to be asked now.
    pub(super) fn recent(&self, address: SocketAddr) -> Option<Answer> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, answer) = failed.get(&address)?;
        if since.elapsed() < self.memory {
            return Some(answer.clone());
        }
        failed.remove(&address);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_forgotten_in_time_or_at_a_success() {
        let address = SocketAddr::from(([127, 0, 0, 1], 25));
        let failures = Failures::new(Duration::from_secs(900));
        assert_eq!(failures.memory, MEMORY_MAX);
        failures.note(address, &Answer::local("h", "4.4.1", "refused"));
        assert!(failures.recent(address).is_some());
        failures.clear(address);
        assert!(failures.recent(address).is_none());
        let brief = Failures::new(Duration::ZERO);
        brief.note(address, &Answer::local("h", "4.4.1", "refused"));
        assert!(brief.recent(address).is_none());
    }

    #[test]
    fn the_memory_is_bounded() {
        let failures = Failures::new(Duration::from_secs(900));
        let answer = Answer::local("h", "4.4.1", "refused");
        for number in 0..=u32::try_from(ADDRESSES_MAX).unwrap_or(u32::MAX) {
            failures.note(SocketAddr::from((std::net::Ipv4Addr::from(number), 25)), &answer);
        }
        assert_eq!(failures.failed.lock().map(|failed| failed.len()).ok(), Some(ADDRESSES_MAX));
    }
}
