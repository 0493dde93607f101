//! The pure machine: what it answers depends only on the commands that it was given, in order.
//!
//! Reading order: [`settings`] (what can be set), `user` (what is kept), `admit` (the decision that
//! everything is for), `meter`, `recipients`, `conduct`, `lock` (the parts of it), `directory`,
//! `locks`, `import`, `logins`, `dkim`, `nodes` (the other commands), `record` (how all of it is stored),
//! `read` and [`view`] (what is told to the outside).
//!
//! Invariants:
//! * Equal commands with equal stamps give equal outcomes and equal records, on every node and
//!   after any restart. So: ordered maps only, no clock, no randomness, no I/O.
//! * Time is the leader's stamp and never runs backwards: a stamp from the past counts as now.
//! * What is due by now (lock timeouts, blocks, old imports) happens before the command is looked at.
//! * A refusal is an outcome and changes nothing.
//! * Every collection that a client can make grow has a bound.

mod admissions;
mod admit;
mod conduct;
mod directory;
mod dirty;
mod dkim;
mod due;
mod import;
mod lock;
mod locks;
mod logins;
mod meter;
mod nodes;
mod read;
mod recipients;
mod record;
pub mod settings;
mod sources;
mod user;
pub mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::command::{Command, DkimAlgorithm, Outcome, Refusal};
use crate::name::{DomainName, Login, Timestamp, UserId};

use admissions::{Horizon, NodeAdmissions};
use dirty::Dirty;
use due::Due;
use import::Import;
use nodes::{Formation, Node, Token};
use sources::Sources;
use user::{Defaults, Dkim, Domain, Identity, Networks, User};

pub use nodes::Ownership;
pub use record::Key;
pub use user::{DomainId, IdentityId};
pub use view::{Advice, AuthGate, DkimKey, DomainView, IdentityView, LimitsView, LockView, NodeView, UserView};

/// Everything that all nodes agree on.
#[derive(Default)]
pub struct State {
    clock: Clock,
    defaults: Defaults,
    domains: BTreeMap<DomainId, Box<Domain>>,
    domain_names: BTreeMap<DomainName, DomainId>,
    users: BTreeMap<UserId, Box<User>>,
    logins: BTreeMap<Arc<Login>, UserId>,
    networks: Networks,
    identities: BTreeMap<IdentityId, Box<Identity>>,
    admissions: BTreeMap<u64, NodeAdmissions>,
    sources: Sources,
    dkim: BTreeMap<(DomainId, String, DkimAlgorithm), Dkim>,
    imports: BTreeMap<u64, Import>,
    formation: Formation,
    nodes: BTreeMap<u64, Node>,
    ownership: BTreeMap<u64, Ownership>,
    tokens: BTreeMap<[u8; 32], Token>,
    /// What time alone will change, in the order in which it does. Follows from the records.
    due: BTreeSet<(Timestamp, Due)>,
    dirty: Dirty,
    /// Nobody hears the answers: what only informs is left out of them.
    unheard: bool,
}

/// Time, and the numbers that are given out.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
struct Clock {
    seen: Timestamp,
    /// Grows with each change of a User, a domain or the defaults.
    version: u64,
    last_domain: u64,
    last_user: u64,
    last_identity: u64,
}

impl State {
    /// The only way in which the state changes. `at` is the leader's stamp; time never runs backwards here.
    pub fn apply(&mut self, at: Timestamp, command: Command) -> Outcome {
        if at > self.clock.seen {
            self.clock.seen = at;
            self.touch(Key::Clock);
            self.run_due();
        }
        if let Command::Batch(commands) = command {
            return Outcome::Batch(commands.into_iter().map(|command| self.apply_one(command)).collect());
        }
        self.apply_one(command)
    }

    /// [`State::apply`] where nobody waits for the answer: it changes the state alike and tells nothing beside the decision.
    pub fn apply_unheard(&mut self, at: Timestamp, command: Command) -> Outcome {
        self.unheard = true;
        let outcome = self.apply(at, command);
        self.unheard = false;
        outcome
    }

    fn apply_one(&mut self, command: Command) -> Outcome {
        self.answer(command).unwrap_or_else(Outcome::Refused)
    }

    fn answer(&mut self, command: Command) -> Result<Outcome, Refusal> {
        match command {
            Command::Batch(_) => Err(Refusal::NestedBatch),
            Command::Tick | Command::StateHash => Ok(Outcome::Done),
            Command::Admit(admit) => Ok(Outcome::Admission(self.admit(&admit))),
            Command::Settle { node, epoch } => {
                self.move_horizon(node, Horizon { epoch: epoch.saturating_add(1), sequence: 0 });
                Ok(Outcome::Done)
            }
            Command::DomainAdd { name, patch } => self.domain_add(name, patch),
            Command::DomainSet { name, patch } => self.domain_set(&name, patch),
            Command::DomainRemove { name } => self.domain_remove(&name),
            Command::UserAdd { user } => self.user_add(user).map(Outcome::UserAdded),
            Command::UserSet { login, patch } => self.user_set(&login, patch),
            Command::UserRemove { login } => self.user_remove(&login),
            Command::ImportStage { import, users } => self.import_stage(import, users),
            Command::ImportCommit { import, strict } => self.import_commit(import, strict),
            Command::DefaultsSet { patch } => self.defaults_set(patch),
            Command::Lock { subject, actor, reason } => self.lock_by_hand(&subject, actor, reason),
            Command::Unlock { subject, actor } => self.unlock_by_hand(&subject, actor),
            Command::Reset { subject, actor } => self.reset_by_hand(&subject, actor),
            Command::AuthFailed { user, address } => Ok(self.auth_failed(user, address)),
            Command::AuthSucceeded { user, address: _ } => Ok(self.auth_succeeded(user)),
            Command::AuthUnblock { address, actor: _ } => self.auth_unblock(address),
            Command::InvalidRecipients { user, identity, count } => {
                Ok(self.invalid_recipients(user, identity.as_deref(), count))
            }
            Command::DkimPut { domain, selector, algorithm, private_key } => {
                self.dkim_put(&domain, selector, algorithm, private_key)
            }
            Command::DkimRemove { domain, selector } => self.dkim_remove(domain, selector),
            Command::Form { authority, address } => self.form(authority, address),
            Command::TokenPut { token, valid_ms, actor: _ } => self.token_put(token, valid_ms),
            Command::Join { token, key, address } => self.join(token, key, address),
            Command::NodeSet { node, address, draining } => self.node_set(node, address, draining),
            Command::NodeRemove { node, actor: _ } => self.node_remove(node),
            Command::NodeDown { node, owner_epoch } => self.node_down(node, owner_epoch),
            Command::NodeUp { node, owner_epoch } => self.node_up(node, owner_epoch),
            Command::Restore { records } => self.take_in(records),
        }
    }

    /// The time up to which the state has seen the log.
    pub fn now(&self) -> Timestamp {
        self.clock.seen
    }

    fn touch(&mut self, key: Key) {
        self.dirty.insert(key);
    }

    /// A version that is newer than all others.
    fn next_version(&mut self) -> u64 {
        self.clock.version += 1;
        self.touch(Key::Clock);
        self.clock.version
    }

    fn move_horizon(&mut self, node: u64, to: Horizon) {
        let dirty = &mut self.dirty;
        let memory = self.admissions.entry(node).or_default();
        let forgotten = |sequence| {
            dirty.insert(Key::admission_block(node, sequence));
        };
        if memory.advance(to, forgotten) {
            self.touch(Key::Admissions { node });
        }
    }
}
