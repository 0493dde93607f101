//! Sliding windows that never over-admit.
//!
//! A window of length W is 60 buckets of W/60, counted from the epoch. At time t it holds the
//! bucket of t and the 60 before it, the oldest of them fully, although W may end within it. So
//! whatever was accepted in the W before t is counted (never over the limit), and nothing is
//! counted for longer than W + W/60 (at most 1/60 of a window early).
//!
//! A meter keeps all its counters in one sparse vector of `u32` slots, because a million Users
//! have one each: three bits for the counter, six for the bucket (modulo 64, which is unambiguous
//! for 61 buckets beside the time of the last charge), 23 for the count. A bucket that outgrows 23
//! bits gets a second slot.
//!
//! Invariants: every slot was within its window at the time of the last charge; a meter without
//! slots is the default one, since it has no record that could keep its time.

use serde::{Deserialize, Serialize};

use crate::command::Window;
use crate::name::Timestamp;

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const BUCKETS: u64 = 60;
const COUNT_BITS: u32 = 23;
const COUNT_MAX: u32 = (1 << COUNT_BITS) - 1;
const PLACE_MASK: u32 = 63;
/// Vectors of slots grow by so many: doubling would waste a quarter of the state's memory.
const SLOTS_MORE: usize = 8;

/// What a meter counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Counter {
    Minute,
    Hour,
    Day,
    Week,
    Month,
    /// Recipients refused as invalid, over 24 hours.
    Invalid,
    /// Messages with the null reverse-path, over an hour.
    NullSender,
}

pub(super) const COUNTERS: usize = 7;

/// Milliseconds per bucket, in the order of [`Counter`].
const BUCKET_MS: [u64; COUNTERS] = [SECOND, MINUTE, 24 * MINUTE, 168 * MINUTE, 720 * MINUTE, 24 * MINUTE, MINUTE];

/// Counts per [`Counter`].
pub(super) type Counts = [u64; COUNTERS];

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
pub(super) struct Meter {
    /// Time of the last charge.
    last: Timestamp,
    slots: Vec<u32>,
}

impl Counter {
    pub(super) fn of(window: Window) -> Self {
        match window {
            Window::Minute => Self::Minute,
            Window::Hour => Self::Hour,
            Window::Day => Self::Day,
            Window::Week => Self::Week,
            Window::Month => Self::Month,
        }
    }

    pub(super) fn index(self) -> usize {
        match self {
            Self::Minute => 0,
            Self::Hour => 1,
            Self::Day => 2,
            Self::Week => 3,
            Self::Month => 4,
            Self::Invalid => 5,
            Self::NullSender => 6,
        }
    }
}

impl Meter {
    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// What each counter holds at `at`.
    pub(super) fn counts(&self, at: Timestamp) -> Counts {
        let then = buckets(self.last);
        let passed = passed(&then, at.max(self.last));
        let mut counts = [0; COUNTERS];
        for slot in &self.slots {
            let counter = counter_of(*slot);
            if age(*slot, then[counter]) + passed[counter] <= BUCKETS {
                counts[counter] += u64::from(slot & COUNT_MAX);
            }
        }
        counts
    }

    /// Adds to every counter at once and forgets what has left its window.
    pub(super) fn charge(&mut self, at: Timestamp, costs: &Counts) {
        let at = at.max(self.last);
        let then = buckets(self.last);
        let passed = passed(&then, at);
        let mut rest = *costs;
        self.slots.retain_mut(|slot| {
            let counter = counter_of(*slot);
            let age = age(*slot, then[counter]) + passed[counter];
            if age == 0 {
                *slot += take(&mut rest[counter], COUNT_MAX - (*slot & COUNT_MAX));
            }
            age <= BUCKETS
        });
        self.last = at;
        let now = buckets(at);
        for (counter, (rest, now)) in (0_u32..).zip(rest.iter_mut().zip(now)) {
            while *rest > 0 {
                let slot = (counter << (COUNT_BITS + 6)) | (place(now) << COUNT_BITS);
                if self.slots.len() == self.slots.capacity() {
                    self.slots.reserve_exact(SLOTS_MORE);
                }
                self.slots.push(slot | take(rest, COUNT_MAX));
            }
        }
        self.settle();
    }

    pub(super) fn clear(&mut self, counter: Counter) {
        self.slots.retain(|slot| counter_of(*slot) != counter.index());
        self.settle();
    }

    /// Gives back memory that is no longer needed, and keeps the invariant of an empty meter.
    fn settle(&mut self) {
        if self.slots.capacity() > self.slots.len() + 4 * SLOTS_MORE {
            self.slots.shrink_to(self.slots.len() + SLOTS_MORE);
        }
        if self.slots.is_empty() {
            self.last = Timestamp::default();
        }
    }

    /// Milliseconds from `at` until `cost` more fit within `limit`; 0 = now. A cost that never fits waits for an empty window.
    pub(super) fn wait_ms(&self, at: Timestamp, counter: Counter, limit: u64, cost: u64) -> u64 {
        let at = at.max(self.last);
        let width = BUCKET_MS[counter.index()];
        let (then, now) = (self.last.0 / width, at.0 / width);
        let mine = self.slots.iter().filter(|slot| counter_of(**slot) == counter.index());
        let mut held: Vec<(u64, u64)> = mine
            .map(|slot| (age(*slot, then) + (now - then), u64::from(slot & COUNT_MAX)))
            .filter(|(age, _)| *age <= BUCKETS)
            .collect();
        held.sort_unstable();
        let used: u64 = held.iter().map(|(_, count)| count).sum();
        let mut excess = used.saturating_add(cost).saturating_sub(limit);
        let mut wait = 0;
        while excess > 0 {
            let Some((age, count)) = held.pop() else { break };
            excess = excess.saturating_sub(count);
            wait = (BUCKETS + 1 - age) * width - at.0 % width;
        }
        if excess > 0 { wait.max((BUCKETS + 1) * width) } else { wait }
    }
}

/// Takes up to `room` out of `rest`.
fn take(rest: &mut u64, room: u32) -> u32 {
    let taken = u32::try_from(*rest).unwrap_or(u32::MAX).min(room);
    *rest -= u64::from(taken);
    taken
}

/// The number of the present bucket, per counter.
fn buckets(at: Timestamp) -> [u64; COUNTERS] {
    BUCKET_MS.map(|width| at.0 / width)
}

fn passed(then: &[u64; COUNTERS], at: Timestamp) -> [u64; COUNTERS] {
    let mut passed = buckets(at);
    for (passed, then) in passed.iter_mut().zip(then) {
        *passed -= then;
    }
    passed
}

fn place(bucket: u64) -> u32 {
    u32::try_from(bucket & u64::from(PLACE_MASK)).unwrap_or(0)
}

/// Buckets between the slot's and `newest`.
fn age(slot: u32, newest: u64) -> u64 {
    u64::from(place(newest).wrapping_sub(slot >> COUNT_BITS) & PLACE_MASK)
}

fn counter_of(slot: u32) -> usize {
    // Three bits; a slot from a damaged record must not panic, so the eighth value counts as the seventh.
    usize::try_from(slot >> (COUNT_BITS + 6)).map_or(COUNTERS - 1, |counter| counter.min(COUNTERS - 1))
}
