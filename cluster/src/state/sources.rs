//! Failed logins: per source a list of recent ones and perhaps a block, per User a growing delay.
//!
//! A source is an IPv4 address or an IPv6 /64. Failures count for an hour. Bounds: as many times
//! per source as the block needs, [`SOURCES_MAX`] sources; beyond it the one that would expire
//! first gives way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::name::Timestamp;

const SOURCES_MAX: usize = 100_000;
const MEMORY_MS: u64 = 60 * 60_000;
const DELAY_FIRST_MS: u64 = 500;
const DELAY_MAX_MS: u64 = 10_000;

/// All sources with recent failures, and when each is forgotten.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Sources {
    by_address: BTreeMap<IpAddr, Source>,
    by_expiry: BTreeSet<(Timestamp, IpAddr)>,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
pub(super) struct Source {
    /// Times of failures, oldest first.
    failures: Vec<Timestamp>,
    blocked_until: Option<Timestamp>,
}

/// A User's failures since the last success.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Debug, Default)]
pub(super) struct Failures {
    pub(super) count: u32,
    last: Timestamp,
}

/// The address as it is counted: IPv4 as it is, IPv6 by its /64.
pub(super) fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
    }
}

impl Sources {
    /// Counts a failure; the end of the block where there is one now. `evicted` gets the source that gave way.
    pub(super) fn fail(
        &mut self,
        address: IpAddr,
        at: Timestamp,
        failures_max: u64,
        block_ms: u64,
    ) -> (Option<Timestamp>, Option<IpAddr>) {
        let mut source = self.take(address).unwrap_or_default();
        let evicted =
            if self.by_address.len() >= SOURCES_MAX { self.by_expiry.first().map(|(_, oldest)| *oldest) } else { None };
        if let Some(oldest) = evicted {
            self.take(oldest);
        }
        if source.blocked_until.is_none() {
            source.failures.retain(|failure| at.millis_since(*failure) < MEMORY_MS);
            source.failures.push(at);
            if u64::try_from(source.failures.len()).is_ok_and(|count| count >= failures_max) {
                source.failures = Vec::new();
                source.blocked_until = Some(at.plus_millis(block_ms));
            }
        }
        let blocked_until = source.blocked_until;
        self.put(address, source);
        (blocked_until, evicted)
    }

    pub(super) fn put(&mut self, address: IpAddr, source: Source) {
        self.take(address);
        self.by_expiry.insert((source.expires(), address));
        self.by_address.insert(address, source);
    }

    pub(super) fn take(&mut self, address: IpAddr) -> Option<Source> {
        let source = self.by_address.remove(&address)?;
        self.by_expiry.remove(&(source.expires(), address));
        Some(source)
    }

    /// Takes out one source whose failures or block are over.
    pub(super) fn pop_expired(&mut self, at: Timestamp) -> Option<IpAddr> {
        let (expires, address) = *self.by_expiry.first()?;
        if expires > at {
            return None;
        }
        self.take(address).map(|_| address)
    }

    pub(super) fn get(&self, address: IpAddr) -> Option<&Source> {
        self.by_address.get(&address)
    }

    pub(super) fn blocked_until(&self, address: IpAddr, at: Timestamp) -> Option<Timestamp> {
        self.get(address)?.blocked_until.filter(|until| *until > at)
    }

    pub(super) fn blocks(&self) -> impl Iterator<Item = (IpAddr, Timestamp)> + '_ {
        self.by_address.iter().filter_map(|(address, source)| Some((*address, source.blocked_until?)))
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.by_address.keys().copied()
    }

    /// Milliseconds that the next attempt from this source has to wait for its answer.
    pub(super) fn delay_ms(&self, address: IpAddr, at: Timestamp) -> u64 {
        let recent =
            |source: &Source| source.failures.iter().filter(|failure| at.millis_since(**failure) < MEMORY_MS).count();
        delay_ms(self.get(address).map_or(0, |source| u32::try_from(recent(source)).unwrap_or(u32::MAX)))
    }
}

impl Source {
    fn expires(&self) -> Timestamp {
        self.blocked_until.unwrap_or_else(|| self.failures.last().copied().unwrap_or_default().plus_millis(MEMORY_MS))
    }
}

impl Failures {
    pub(super) fn add(&mut self, at: Timestamp) {
        self.count = self.recent(at).saturating_add(1);
        self.last = at;
    }

    pub(super) fn delay_ms(self, at: Timestamp) -> u64 {
        delay_ms(self.recent(at))
    }

    fn recent(self, at: Timestamp) -> u32 {
        if at.millis_since(self.last) < MEMORY_MS { self.count } else { 0 }
    }
}

/// Nothing for a first slip, then doubling.
fn delay_ms(failures: u32) -> u64 {
    match failures {
        0 | 1 => 0,
        more => DELAY_FIRST_MS.checked_shl((more - 2).min(16)).unwrap_or(DELAY_MAX_MS).min(DELAY_MAX_MS),
    }
}
