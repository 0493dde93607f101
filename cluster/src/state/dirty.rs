//! Which records changed since the last checkpoint.
//!
//! Every admission changes the same few kinds of records; those are kept by number, which is compared in a fraction of the
//! time that a whole [`Key`] takes.

use std::collections::BTreeSet;

use super::record::Key;
use super::user::DomainId;
use crate::name::UserId;

#[derive(Default)]
pub(super) struct Dirty {
    conducts: BTreeSet<UserId>,
    meters: BTreeSet<DomainId>,
    horizons: BTreeSet<u64>,
    /// By node and block.
    blocks: BTreeSet<(u64, u64)>,
    others: BTreeSet<Key>,
}

impl Dirty {
    pub(super) fn insert(&mut self, key: Key) {
        // A key is in exactly one of the sets.
        let _is_new = if let Key::Conduct(user) = key {
            self.conducts.insert(user)
        } else if let Key::DomainMeter(domain) = key {
            self.meters.insert(domain)
        } else if let Key::Admissions { node } = key {
            self.horizons.insert(node)
        } else if let Key::AdmissionBlock { node, block } = key {
            self.blocks.insert((node, block))
        } else {
            self.others.insert(key)
        };
    }

    pub(super) fn extend(&mut self, keys: impl IntoIterator<Item = Key>) {
        keys.into_iter().for_each(|key| self.insert(key));
    }

    /// Each key once, in no order.
    pub(super) fn take(&mut self) -> Vec<Key> {
        let Self { conducts, meters, horizons, blocks, others } = std::mem::take(self);
        conducts
            .into_iter()
            .map(Key::Conduct)
            .chain(meters.into_iter().map(Key::DomainMeter))
            .chain(horizons.into_iter().map(|node| Key::Admissions { node }))
            .chain(blocks.into_iter().map(|(node, block)| Key::AdmissionBlock { node, block }))
            .chain(others)
            .collect()
    }
}
