//! The replicated brain of outgate.
//!
//! Everything that all nodes must agree on lives here: domains, users, settings, credentials,
//! locks, quota windows, strikes, the authentication block list and signing keys. The crate knows
//! nothing of SMTP, of message bytes or of HTML, and nothing of openraft or sled leaks out of it.
//!
//! Reading order: [`command`] (what can be asked), [`state`] (the pure machine that answers),
//! `store` (how it survives), `network` (how nodes talk), `proposer` and `sequencer` (a command's way to the leader and into
//! the log), `leadership`, `membership` and `pulse` (who decides, who belongs, how the others are), `lease` (who may act for
//! the mail that it owns), [`handle`] (the face), [`backup`].
//!
//! Invariants:
//! * [`state::State::apply`] is pure: no clock, no I/O, no randomness, no hash-map order.
//! * A command's position in its enum is its wire format: variants are only ever appended.
//! * A decision is acknowledged only after its log entry was synced by a majority.

mod assembly;
pub mod backup;
mod clock;
pub mod command;
mod comparison;
pub mod handle;
mod leadership;
mod lease;
mod membership;
pub mod name;
mod network;
mod proposer;
mod pulse;
#[doc(hidden)]
pub mod raft;
mod sequencer;
mod settlement;
pub mod state;
pub mod store;
mod upkeep;

pub use command::{
    Actor, Admission, AdmissionId, AdmissionVerdict, Admit, Charge, Class, Command, LockCause, LockChange, Outcome,
    Refusal, Scope, Subject, Wish,
};
pub use handle::{Applied, Cluster, OpenError, OpenOptions, ProposeError, TokenError};
pub use name::{DomainName, Login, NameError, Timestamp, UserId};
pub use network::join::{JoinError, Token};
pub use network::service::{PeerError, Service};
pub use pulse::Standing;
pub use state::State;
