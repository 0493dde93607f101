//! What became of the admissions that a node may still ask about, so that a retry never counts twice.
//!
//! A node numbers its admissions within an epoch (one life of its process) and says with each one
//! below which number it needs no answer any more. Outcomes below that, and all of older epochs,
//! are forgotten; an id from there is stale: never counted, never delivered.
//!
//! Bound: [`UNSETTLED_MAX`] outcomes per node. A node that settles nothing gets only stale answers
//! beyond it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::command::{AdmissionId, AdmissionVerdict, LockChange};

const UNSETTLED_MAX: usize = 1 << 17;
/// Outcomes per record of the checkpoint: neighbours change together.
pub(super) const BLOCK: u64 = 128;

/// A decision as it is remembered; its charges are told anew.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub(super) enum Remembered {
    Accepted,
    Other(Box<(AdmissionVerdict, Option<LockChange>)>),
}

/// One node's memory.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct NodeAdmissions {
    pub(super) horizon: Horizon,
    pub(super) outcomes: BTreeMap<u64, Remembered>,
}

/// Below it every id is stale.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct Horizon {
    pub(super) epoch: u64,
    pub(super) sequence: u64,
}

/// What the memory says to an id.
pub(super) enum Known {
    New,
    Stale,
    Again(Remembered),
}

impl NodeAdmissions {
    pub(super) fn look_up(&self, id: AdmissionId) -> Known {
        if (id.epoch, id.sequence) < (self.horizon.epoch, self.horizon.sequence) {
            return Known::Stale;
        }
        if id.epoch > self.horizon.epoch {
            return Known::New;
        }
        match self.outcomes.get(&id.sequence) {
            Some(remembered) => Known::Again(remembered.clone()),
            None if self.outcomes.len() >= UNSETTLED_MAX => Known::Stale,
            None => Known::New,
        }
    }

    /// Moves the horizon; gives the sequence numbers that were forgotten to `forgotten`.
    pub(super) fn advance(&mut self, to: Horizon, mut forgotten: impl FnMut(u64)) -> bool {
        if to <= self.horizon {
            return false;
        }
        let same_epoch = to.epoch == self.horizon.epoch;
        while let Some(oldest) = self.outcomes.first_entry() {
            if same_epoch && *oldest.key() >= to.sequence {
                break;
            }
            forgotten(*oldest.key());
            oldest.remove();
        }
        self.horizon = to;
        true
    }

    /// The outcomes of one block, as its record has them.
    pub(super) fn block(&self, block: u64) -> Vec<(u64, &Remembered)> {
        let start = block.saturating_mul(BLOCK);
        let range = self.outcomes.range(start..=start.saturating_add(BLOCK - 1));
        range.map(|(sequence, remembered)| (*sequence, remembered)).collect()
    }

    /// The numbers of all blocks that have outcomes, in order.
    pub(super) fn blocks(&self) -> impl Iterator<Item = u64> + '_ {
        let mut next = 0;
        std::iter::from_fn(move || {
            let (sequence, _) = self.outcomes.range(next..).next()?;
            let block = sequence / BLOCK;
            next = (block + 1).saturating_mul(BLOCK);
            Some(block)
        })
    }
}
