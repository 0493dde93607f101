//! How much of what locked Users send is kept a day. Counted in memory: a restart begins anew.

use std::collections::HashMap;

/// Of one User a day, by number and octets.
const USER_MAX: Amount = Amount { copies: 100, octets: 100 << 20 };
/// Of all together a day.
const TOTAL_MAX: Amount = Amount { copies: 10_000, octets: 10 << 30 };

#[derive(Clone, Copy, Default)]
struct Amount {
    copies: u64,
    octets: u64,
}

/// What was kept on one day.
#[derive(Default)]
pub(super) struct Quota {
    day: u64,
    total: Amount,
    users: HashMap<String, Amount>,
}

impl Quota {
    /// Whether one more copy fits.
    pub(super) fn has_room(&mut self, day: u64, user: &str, octets: u64) -> bool {
        if day > self.day {
            *self = Self { day, ..Self::default() };
        }
        let of_user = self.users.get(user).copied().unwrap_or_default();
        self.total.plus(octets).is_within(TOTAL_MAX) && of_user.plus(octets).is_within(USER_MAX)
    }

    pub(super) fn charge(&mut self, user: &str, octets: u64) {
        self.total = self.total.plus(octets);
        let of_user = self.users.entry(user.to_owned()).or_default();
        *of_user = of_user.plus(octets);
    }
}

impl Amount {
    const fn plus(self, octets: u64) -> Self {
        Self { copies: self.copies + 1, octets: self.octets.saturating_add(octets) }
    }

    const fn is_within(self, max: Self) -> bool {
        self.copies <= max.copies && self.octets <= max.octets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_and_all_users_have_a_measure_for_the_day() {
        let mut quota = Quota::default();
        let mut keep = |day, user: &str, octets| {
            let has_room = quota.has_room(day, user, octets);
            if has_room {
                quota.charge(user, octets);
            }
            has_room
        };
        assert_eq!((0..150).filter(|_| keep(7, "alice", 1_000)).count(), 100);
        assert_eq!((0..10).filter(|_| keep(7, "bob", 30 << 20)).count(), 3);
        assert!(keep(7, "bob", 10 << 20) && !keep(7, "bob", 1));
        assert_eq!((0..200_000).filter(|n| keep(7, &format!("user {}", n / 100), 0)).count(), 10_000 - 104);
        assert!(!keep(6, "carol", 1), "a clock that goes back gives nothing");
        assert!(keep(8, "alice", 1_000));
    }
}
