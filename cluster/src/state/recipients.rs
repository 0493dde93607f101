//! Different recipient addresses per sliding 24 hours, kept only for Users that have such a limit.
//!
//! For each address (its keyed hash) the bucket of its last use is kept; an address counts while
//! that bucket is within the window, the oldest bucket fully, as in `meter`.

use std::collections::{BTreeMap, BTreeSet};

use crate::name::Timestamp;

const BUCKET_MS: u64 = 24 * 60_000;
const BUCKETS: u64 = 60;

#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Recipients {
    last_use: BTreeMap<u64, u64>,
    /// The same, by age.
    by_bucket: BTreeSet<(u64, u64)>,
}

impl Recipients {
    /// Addresses that count at `at`, `hash` among them or not.
    pub(super) fn contains(&self, hash: u64, at: Timestamp) -> bool {
        self.last_use.get(&hash).is_some_and(|bucket| *bucket >= oldest(at))
    }

    pub(super) fn count(&self, at: Timestamp) -> u64 {
        let expired = self.by_bucket.range(..(oldest(at), 0)).count();
        to_u64(self.last_use.len() - expired)
    }

    /// How many of the hashes are new, each counted once.
    pub(super) fn count_new(&self, hashes: &[u64], at: Timestamp) -> u64 {
        if let [one] = hashes {
            return u64::from(!self.contains(*one, at));
        }
        let new: BTreeSet<u64> = hashes.iter().copied().filter(|hash| !self.contains(*hash, at)).collect();
        to_u64(new.len())
    }

    /// Milliseconds until `new` more fit within `limit`.
    pub(super) fn wait_ms(&self, at: Timestamp, limit: u64, new: u64) -> u64 {
        let excess = (self.count(at) + new).saturating_sub(limit);
        let Some(last) = excess.checked_sub(1) else { return 0 };
        let mut live = self.by_bucket.range((oldest(at), 0)..);
        let whole = (BUCKETS + 1) * BUCKET_MS;
        let leaving = usize::try_from(last).ok().and_then(|last| live.nth(last));
        leaving.map_or(whole, |(bucket, _)| ((bucket + BUCKETS + 1) * BUCKET_MS).saturating_sub(at.0))
    }

    /// Notes a use; true where the record of this address changed.
    pub(super) fn note(&mut self, hash: u64, at: Timestamp) -> bool {
        self.put(hash, at.0 / BUCKET_MS)
    }

    /// Puts back what [`Recipients::bucket`] told.
    pub(super) fn put(&mut self, hash: u64, bucket: u64) -> bool {
        let before = self.last_use.insert(hash, bucket);
        if before == Some(bucket) {
            return false;
        }
        if let Some(before) = before {
            self.by_bucket.remove(&(before, hash));
        }
        self.by_bucket.insert((bucket, hash))
    }

    /// Takes out one address that has left the window, if there is one.
    pub(super) fn pop_expired(&mut self, at: Timestamp) -> Option<u64> {
        let (bucket, hash) = *self.by_bucket.first()?;
        if bucket >= oldest(at) {
            return None;
        }
        self.by_bucket.remove(&(bucket, hash));
        self.last_use.remove(&hash);
        Some(hash)
    }

    pub(super) fn bucket(&self, hash: u64) -> Option<u64> {
        self.last_use.get(&hash).copied()
    }

    pub(super) fn hashes(&self) -> impl Iterator<Item = u64> + '_ {
        self.last_use.keys().copied()
    }
}

fn oldest(at: Timestamp) -> u64 {
    (at.0 / BUCKET_MS).saturating_sub(BUCKETS)
}

fn to_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
