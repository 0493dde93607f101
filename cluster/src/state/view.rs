//! What the state tells to the outside: owned values, so that no reader holds the state's lock.

use std::sync::Arc;

use crate::command::{Charge, DkimAlgorithm, LockChange, LockState, Scope};
use crate::name::{DomainName, Login, Timestamp, UserId};
use crate::state::Ownership;
use crate::state::settings::Settings;

#[derive(Clone, Debug)]
pub struct UserView {
    pub id: UserId,
    pub login: Login,
    /// Under which the User's mail is logged and limited.
    pub domain: DomainName,
    /// The User's own switch.
    pub enabled: bool,
    /// The domain's switch.
    pub domain_enabled: bool,
    /// PHC form; `None` for a network User without a password.
    pub password_hash: Option<String>,
    /// Grows with each change of the User, its domain or the defaults: caches compare it.
    pub version: u64,
    pub settings: Arc<Settings>,
}

#[derive(Clone, Debug)]
pub struct DomainView {
    pub name: DomainName,
    pub enabled: bool,
    pub contact: Option<String>,
    pub route: Option<String>,
    pub route_auth: Option<String>,
    pub users: u64,
}

#[derive(Clone, Debug)]
pub struct LockView {
    pub state: LockState,
    pub unlocks_used: u32,
    /// The cause of the present state, as one sentence; `None` while unlocked.
    pub reason: Option<String>,
    pub history: Vec<LockChange>,
}

#[derive(Clone, Debug)]
pub struct LimitsView {
    /// Minute, hour, day, week, month, in this order; User (or identity) first, then domain.
    pub windows: Vec<Charge>,
    pub distinct_recipients: u64,
    pub invalid_recipients: u64,
}

#[derive(Clone, Debug)]
pub struct IdentityView {
    pub identity: String,
    pub lock: LockState,
    pub unlocks_used: u32,
    pub last_seen: Timestamp,
}

/// What a node may tell a client early, at MAIL; only Admit decides.
#[derive(Clone, Debug)]
pub enum Advice {
    Pass,
    Limit {
        scope: Scope,
        window: crate::command::Window,
        unit: crate::command::LimitUnit,
        limit: u64,
        retry_after_s: u64,
    },
    Locked {
        scope: Scope,
        state: LockState,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AuthGate {
    Open,
    /// Answer the next attempt after this many milliseconds.
    Delay {
        millis: u64,
    },
    /// On the authentication block list.
    Blocked {
        until: Timestamp,
    },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeView {
    pub id: u64,
    /// `host:port` on which other nodes reach it.
    pub address: String,
    pub joined: Timestamp,
    /// It takes no mail.
    pub draining: bool,
    pub ownership: Ownership,
}

#[derive(Clone)]
pub struct DkimKey {
    pub domain: DomainName,
    pub selector: String,
    pub algorithm: DkimAlgorithm,
    /// PKCS#8 PEM.
    pub private_key: String,
    pub created: Timestamp,
}
