//! The replicated brain of outgate.
//!
//! Everything that all nodes must agree on lives here: domains, users, settings, credentials,
//! locks, quota windows, strikes, the authentication block list and signing keys. The crate knows
//! nothing of SMTP, of message bytes or of HTML, and nothing of openraft or sled leaks out of it.
//!
//! Reading order: [`command`] (what can be asked), [`state`] (the pure machine that answers),
//! `store` (how it survives), `raft` and `proposer` (how nodes agree), [`handle`] (the face).
//!
//! Invariants:
//! * [`state::State::apply`] is pure: no clock, no I/O, no randomness, no hash-map order.
//! * A command's position in its enum is its wire format: variants are only ever appended.
//! * A decision is acknowledged only after its log entry was synced by a majority.

mod clock;
pub mod command;
pub mod handle;
pub mod name;
mod proposer;
#[doc(hidden)]
pub mod raft;
mod settlement;
pub mod state;
pub mod store;
mod upkeep;

pub use command::{
    Actor, Admission, AdmissionId, AdmissionVerdict, Admit, Charge, Class, Command, LockCause, LockChange, Outcome,
    Refusal, Scope, Subject, Wish,
};
pub use handle::{Applied, Cluster, OpenError, OpenOptions, ProposeError};
pub use name::{DomainName, Login, NameError, Timestamp, UserId};
pub use state::State;
