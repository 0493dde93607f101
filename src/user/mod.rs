//! Outgoing users: who is talking, may they log in, how many sessions have they.
//!
//! A login passes the gate of the replicated state (block list, growing delay), then its User's actor, which knows the
//! passwords that were verified lately and counts sessions. Only a password that is not known there costs an argon2id
//! computation, and those run in a bounded pool behind a few slots per source address, so that an address that
//! guesses cannot keep others waiting. A failure is counted in the replicated state before its slot is free again.
//!
//! Invariants:
//! * Unknown, disabled and wrong answer alike and take the same way: one argon2id computation.
//! * A password is never kept: the cache holds keyed hashes, and the key dies with the process.
//! * A change of the User makes every cached proof of it void, a change of its password every session that gave it.
//! * Every wait is bounded: by a number of waiters, or by a time.

mod actor;
mod directory;
mod password;
mod sessions;
mod slots;

use std::sync::Arc;
use std::time::Duration;

use outgate_cluster::state::UserView;

pub use outgate_cluster::UserId;

pub use directory::Directory;
pub use password::{HashError, hash_password};
pub use sessions::{Place, Sessions};
pub use slots::source;

/// A login that gets no answer within this time from where it waits is put off.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// A session's proof of who it is. Lives as long as the session: it holds the session's place among `max_connections`.
#[derive(Clone, Debug)]
pub struct Authenticated {
    /// As it was at login; [`Directory::current`] gives today's.
    pub view: Arc<UserView>,
    /// The name given to AUTH, an identity by `authentication_user`; `None` for a network without a password.
    pub authentication_user: Option<String>,
    /// Among the User's sessions; `None` for what is no session.
    pub place: Option<Arc<Place>>,
}

/// Why a login did not succeed.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
pub enum LoginError {
    /// Unknown, disabled or wrong: the client hears the same for all.
    #[error("credentials are not valid")]
    Failed,
    #[error("the address is on the authentication block list")]
    Blocked,
    #[error("the user has too many sessions")]
    TooManySessions,
    #[error("the store cannot answer")]
    Unavailable,
}
