//! When a deferred message is tried again, as a pure function of its age.

use crate::config::RetryConfig;

/// The next attempt (ms since the epoch) of a message that could not be delivered at `now_ms`. Never later than
/// `expires_ms`, when it gets its last chance, and never before `now_ms`.
pub(crate) fn next_attempt_ms(retry: &RetryConfig, arrived_ms: u64, now_ms: u64, expires_ms: u64) -> u64 {
    let age_s = now_ms.saturating_sub(arrived_ms) / 1000;
    let wait_s = if age_s < retry.interval_for_s {
        retry.interval_s
    } else if age_s < retry.factor_until_s {
        growing_wait_s(retry, age_s)
    } else {
        retry.later_interval_s
    };
    let next_ms = now_ms.saturating_add(wait_s.max(1).saturating_mul(1000));
    if now_ms < expires_ms { next_ms.min(expires_ms) } else { next_ms }
}

/// Waits grow by the factor from attempt to attempt, the first of them behind `interval_for_s`. A late attempt joins in.
fn growing_wait_s(retry: &RetryConfig, age_s: u64) -> u64 {
    let factor = retry.factor.max(1.01);
    let longest = retry.later_interval_s.max(retry.interval_s);
    let mut at_s = retry.interval_for_s;
    let mut step_s = scaled(retry.interval_s.max(1), factor, longest);
    while at_s + step_s <= age_s {
        at_s += step_s;
        step_s = scaled(step_s, factor, longest).max(step_s);
    }
    step_s
}

/// Rounded down in thousandths, so that no float is cut to an integer.
fn scaled(seconds: u64, factor: f64, longest: u64) -> u64 {
    std::time::Duration::from_secs(seconds.min(1 << 32)).mul_f64(factor.min(1000.0)).as_secs().min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_S: u64 = 3600;

    /// Ages in seconds at which a message is tried whose attempts take no time.
    fn ages(retry: &RetryConfig, days: u64) -> Vec<u64> {
        let expires_ms = days * 24 * HOUR_S * 1000;
        let mut ages = vec![0];
        let mut now_ms = 0;
        while now_ms < expires_ms {
            now_ms = next_attempt_ms(retry, 0, now_ms, expires_ms);
            ages.push(now_ms / 1000);
        }
        ages
    }

    #[test]
    fn quarter_hours_then_growing_then_six_hours_then_the_end() {
        let ages = ages(&RetryConfig::default(), 4);
        assert_eq!(ages[..9], [0, 900, 1800, 2700, 3600, 4500, 5400, 6300, 7200]);
        let waits: Vec<u64> = ages.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(waits[8..13], [1350, 2025, 3037, 4555, 6832]);
        let late = ages.iter().position(|&age| age >= 16 * HOUR_S).unwrap_or(0);
        assert!(waits[late..waits.len() - 1].iter().all(|&wait| wait == 6 * HOUR_S), "{waits:?}");
        assert_eq!(ages.last(), Some(&(4 * 24 * HOUR_S)));
        assert!(waits.windows(2).take(waits.len() - 2).all(|pair| pair[0] <= pair[1]), "{waits:?}");
    }

    #[test]
    fn the_next_attempt_is_never_now_and_never_behind_the_end() {
        let tiny = RetryConfig { interval_s: 0, factor: 0.0, ..RetryConfig::default() };
        for retry in [tiny, RetryConfig::default()] {
            for age_s in [0, 1, 7199, 7200, 10_000, 57_600, 400_000] {
                let next = next_attempt_ms(&retry, 0, age_s * 1000, 345_600_000);
                assert!(next > age_s * 1000, "{age_s}");
                assert!(next <= 345_600_000 || age_s * 1000 >= 345_600_000, "{age_s}");
            }
        }
    }

    #[test]
    fn a_clock_that_went_back_changes_nothing() {
        assert_eq!(next_attempt_ms(&RetryConfig::default(), 10_000, 5_000, u64::MAX), 5_000 + 900_000);
    }
}
