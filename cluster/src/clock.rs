//! The leader's clock: it anchors at the machine's time once and then runs with the monotonic clock.

#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "the one place that reads a clock, for the stamp"
)]

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::name::Timestamp;

/// Cheap to copy; every copy tells the same time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    anchored: Instant,
    base: Timestamp,
}

impl Clock {
    /// Anchors at the machine's time, or at `seen` where that is later: a clock that was set back is not followed.
    pub(crate) fn anchored(seen: Timestamp) -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = Timestamp(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX));
        Self { anchored: Instant::now(), base: wall.max(seen) }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.base.plus_millis(u64::try_from(self.anchored.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_starts_before_what_the_log_has_seen() {
        let future = Clock::anchored(Timestamp(0)).now().plus_millis(3_600_000);
        assert!(Clock::anchored(future).now() >= future);
    }
}
