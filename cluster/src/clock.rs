//! The leader's clock: the median of the members' clocks when it was last compared, and the monotonic clock from there.
//!
//! One machine whose clock is wrong by hours must not let limits and locks expire: the median of a majority is not wrong
//! as long as most clocks are not. Log time never runs backwards; where the log is ahead of the median (an earlier
//! leader knew no better), it goes on from there at its own pace.

#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "the one place that reads a clock, for the stamp"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::name::Timestamp;

/// Cheap to clone; every clone tells the same time.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    anchored: Instant,
    base_ms: u64,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    correction_ms: AtomicI64,
    is_set: AtomicBool,
}

impl Clock {
    /// Anchors at the machine's time.
    pub(crate) fn anchored() -> Self {
        Self { anchored: Instant::now(), base_ms: Self::wall_ms(), shared: Arc::default() }
    }

    /// Milliseconds since the epoch by this machine now.
    pub(crate) fn wall_ms() -> u64 {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn now(&self) -> Timestamp {
        let correction = self.shared.correction_ms.load(Ordering::Relaxed);
        Timestamp(self.raw_ms().saturating_add_signed(correction))
    }

    /// Without correction: what others are compared with.
    pub(crate) fn raw_ms(&self) -> u64 {
        self.base_ms.saturating_add(u64::try_from(self.anchored.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Whether it may stamp: a node that has company compares clocks first.
    pub(crate) fn is_set(&self) -> bool {
        self.shared.is_set.load(Ordering::Acquire)
    }

    /// Takes over the median, `offset_ms` off this machine's clock, unless the log is ahead of it already.
    pub(crate) fn follow(&self, offset_ms: i64, seen: Timestamp) {
        if self.raw_ms().saturating_add_signed(offset_ms) >= seen.0 {
            self.shared.correction_ms.store(offset_ms, Ordering::Relaxed);
        }
        self.catch_up(seen);
        self.shared.is_set.store(true, Ordering::Release);
    }

    /// Goes on from what the log has seen where that is later.
    pub(crate) fn catch_up(&self, seen: Timestamp) {
        let behind = seen.millis_since(self.now());
        if behind > 0 {
            self.shared.correction_ms.fetch_add(i64::try_from(behind).unwrap_or(i64::MAX), Ordering::Relaxed);
        }
    }
}

/// The middle one; the earlier of two.
pub(crate) fn median(mut offsets_ms: Vec<i64>) -> Option<i64> {
    offsets_ms.sort_unstable();
    offsets_ms.get(offsets_ms.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    #[test]
    fn it_never_runs_behind_what_the_log_has_seen() {
        let clock = Clock::anchored();
        let future = clock.now().plus_millis(HOUR_MS);
        clock.catch_up(future);
        assert!(clock.now() >= future);
        clock.follow(0, future);
        assert!(clock.now() >= future && clock.now() < future.plus_millis(60_000));
    }

    #[test]
    fn one_wrong_clock_of_three_is_not_followed() {
        let hour = 3_600_000;
        assert_eq!(median(vec![0, hour, 5]), Some(5));
        assert_eq!(median(vec![0, -hour, -5]), Some(-5));
        assert_eq!(median(vec![0, 8]), Some(0));
        assert_eq!(median(Vec::new()), None);
        // The wrong one itself sees the two others an hour behind.
        let wrong = Clock::anchored();
        wrong.follow(-hour, Timestamp(0));
        let offset = wrong.raw_ms() - wrong.now().0;
        assert_eq!(offset, HOUR_MS);
    }
}
