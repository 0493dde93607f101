//! The lock of a User or identity.
//!
//! ```text
//!             abuse                       timeout, unlocks_used = max_unlocks
//! unlocked ──────────► locked until t ─────────────────────────────────► locked permanently
//!    ▲ ▲                   │   timeout, unlocks_used < max_unlocks: + 1          │
//!    │ └───────────────────┘                                                     │
//!    └──── unlock by an Admin: counter to 0 ◄──── locked manually ◄──── lock by an Admin, from anywhere
//! ```
//!
//! Invariant: only [`LockState::Locked`] has a timer; a manual lock is never released by one.

use serde::{Deserialize, Serialize};

use crate::command::{LockCause, LockChange, LockState, Scope};
use crate::name::Timestamp;

const HISTORY_MAX: usize = 100;

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub(super) struct Lock {
    pub(super) state: LockState,
    pub(super) unlocks_used: u32,
    /// Newest last.
    pub(super) history: Vec<LockChange>,
}

impl Default for Lock {
    fn default() -> Self {
        Self { state: LockState::Unlocked, unlocks_used: 0, history: Vec::new() }
    }
}

impl Lock {
    /// What the state will be at `at`, if nothing but time intervenes.
    pub(super) fn state_at(&self, at: Timestamp, max_unlocks: u64) -> LockState {
        match self.state {
            LockState::Locked { until } if until <= at => self.after_timeout(max_unlocks),
            LockState::Locked { .. }
            | LockState::Unlocked
            | LockState::LockedPermanently
            | LockState::LockedManually => self.state,
        }
    }

    pub(super) fn after_timeout(&self, max_unlocks: u64) -> LockState {
        if u64::from(self.unlocks_used) < max_unlocks { LockState::Unlocked } else { LockState::LockedPermanently }
    }

    /// Takes a step and keeps it in the history.
    pub(super) fn step(&mut self, step: Step) -> LockChange {
        let change = LockChange {
            at: step.at,
            scope: step.scope,
            from: self.state,
            to: step.to,
            unlocks_used: step.unlocks_used,
            cause: step.cause,
            messages: step.messages,
        };
        self.state = step.to;
        self.unlocks_used = step.unlocks_used;
        if self.history.len() >= HISTORY_MAX {
            self.history.remove(0);
        }
        self.history.push(change.clone());
        change
    }

    /// Why it is locked, as one sentence.
    pub(super) fn reason(&self) -> Option<String> {
        if self.state == LockState::Unlocked {
            return None;
        }
        let caused = self.history.iter().rev().find(|change| match &change.cause {
            LockCause::Timeout => false,
            // A reset moves nothing and gives no reason.
            LockCause::Manual { reason, .. } => change.from != change.to || !reason.is_empty(),
            LockCause::Virus
            | LockCause::Phish { .. }
            | LockCause::Spam { .. }
            | LockCause::MeanScore { .. }
            | LockCause::InvalidRecipients { .. }
            | LockCause::Limit { .. } => true,
        })?;
        Some(caused.cause.to_string())
    }
}

/// A change of a lock on its way.
pub(super) struct Step {
    pub(super) at: Timestamp,
    pub(super) scope: Scope,
    pub(super) to: LockState,
    pub(super) unlocks_used: u32,
    pub(super) cause: LockCause,
    pub(super) messages: Vec<String>,
}
