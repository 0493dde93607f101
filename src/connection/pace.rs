//! How fast the content of a message comes, judged over recent time, and how long it may take altogether.

use std::time::Duration;

use tokio::time::Instant;

/// The pace of one content, from its first octet.
pub(super) struct Pace {
    until: Instant,
    window_since: Instant,
    window_octets: u64,
}

impl Pace {
    /// A content that must be over at `until`.
    pub(super) fn new(now: Instant, until: Instant) -> Self {
        Self { until, window_since: now, window_octets: 0 }
    }

    pub(super) fn until(&self) -> Instant {
        self.until
    }

    pub(super) fn take(&mut self, octets: usize) {
        self.window_octets = self.window_octets.saturating_add(octets as u64);
    }

    /// Whether fewer than `octets_per_s` came in a window that ends now. Within a window nothing is judged: slow start,
    /// a short stall and the like.
    pub(super) fn is_too_slow(&mut self, now: Instant, window: Duration, octets_per_s: u64) -> bool {
        let elapsed = now.saturating_duration_since(self.window_since);
        if elapsed < window {
            return false;
        }
        let wanted = u128::from(octets_per_s) * elapsed.as_millis() / 1000;
        let slow = u128::from(self.window_octets) < wanted;
        (self.window_since, self.window_octets) = (now, 0);
        slow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(60);

    #[test]
    fn a_fast_beginning_does_not_pay_for_a_slow_end() {
        let start = Instant::now();
        let mut pace = Pace::new(start, start + WINDOW * 60);
        pace.take(16 << 20);
        assert!(!pace.is_too_slow(start + WINDOW, WINDOW, 100));
        pace.take(1);
        assert!(!pace.is_too_slow(start + WINDOW * 2 - Duration::from_secs(1), WINDOW, 100), "judged too early");
        assert!(pace.is_too_slow(start + WINDOW * 2, WINDOW, 100));
    }

    #[test]
    fn the_rate_itself_is_fast_enough() {
        let start = Instant::now();
        let mut pace = Pace::new(start, start + WINDOW * 60);
        pace.take(6_000);
        assert!(!pace.is_too_slow(start + WINDOW, WINDOW, 100));
        pace.take(5_999);
        assert!(pace.is_too_slow(start + WINDOW * 2, WINDOW, 100));
        assert!(!pace.is_too_slow(start + WINDOW * 3, WINDOW, 0), "0 = any pace");
    }
}
