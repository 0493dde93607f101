//! The pure machine: what it answers depends only on the commands that it was given, in order.

pub mod settings;
pub mod view;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::command::{Command, Outcome};
use crate::name::{DomainName, Login, Timestamp, UserId};

pub use view::{Advice, AuthGate, DkimKey, DomainView, IdentityView, LimitsView, LockView, UserView};

/// Everything that all nodes agree on.
#[derive(Default)]
pub struct State {
    seen: Timestamp,
}

/// The address of one record of the state, in the order in which snapshots carry them.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Key {
    Clock,
}

impl State {
    /// The only way in which the state changes. `at` is the leader's stamp; time never runs backwards here.
    pub fn apply(&mut self, at: Timestamp, command: Command) -> Outcome {
        self.seen = self.seen.max(at);
        drop(command);
        todo!()
    }

    /// The time up to which the state has seen the log.
    pub fn now(&self) -> Timestamp {
        self.seen
    }

    /// Takes the keys whose records changed since the last call, for the checkpoint.
    pub fn take_dirty(&mut self) -> Vec<Key> {
        todo!()
    }

    /// The encoded record under `key`, or `None` where there is none (any more).
    pub fn record(&self, _key: &Key) -> Option<Vec<u8>> {
        todo!()
    }

    /// Puts back a record that [`State::record`] gave out; used to load a checkpoint or a snapshot.
    pub fn restore(&mut self, _key: Key, _record: &[u8]) -> Result<(), crate::store::codec::DecodeError> {
        todo!()
    }

    /// Every key that has a record, in order.
    pub fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        std::iter::empty()
    }

    pub fn user(&self, _login: &Login) -> Option<UserView> {
        todo!()
    }

    pub fn user_by_id(&self, _id: UserId) -> Option<UserView> {
        todo!()
    }

    /// The network User whose range holds the address, by longest prefix; `None` with `ip_authentication` off.
    pub fn network(&self, _address: IpAddr) -> Option<UserView> {
        todo!()
    }

    /// Users in the order of their logins, after `after`, of one domain or of all.
    pub fn users(&self, _domain: Option<&DomainName>, _after: Option<&Login>, _count: usize) -> Vec<UserView> {
        todo!()
    }

    pub fn domain(&self, _name: &DomainName) -> Option<DomainView> {
        todo!()
    }

    pub fn domains(&self) -> Vec<DomainView> {
        todo!()
    }

    /// Cluster defaults with the cluster-wide settings.
    pub fn defaults(&self) -> settings::Settings {
        todo!()
    }

    /// The cluster's value of each setting, in the order of the table.
    pub fn default_settings(&self) -> Vec<settings::Effective> {
        todo!()
    }

    /// What the settings of a domain hand down to its users, with the level that it comes from: `cluster` or `domain`.
    pub fn domain_settings(&self, _name: &DomainName) -> Vec<settings::Effective> {
        todo!()
    }

    /// The effective value of each setting with the level that it comes from: `cluster`, `domain` or `user`.
    pub fn settings_with_origin(&self, _user: UserId) -> Vec<settings::Effective> {
        todo!()
    }

    /// The lock of a User or identity with its history, newest last.
    pub fn lock(&self, _user: UserId, _identity: Option<&str>) -> LockView {
        todo!()
    }

    pub fn limits(&self, _user: UserId, _identity: Option<&str>) -> LimitsView {
        todo!()
    }

    pub fn identities(&self, _user: UserId) -> Vec<IdentityView> {
        todo!()
    }

    /// What an Admit of `user` now would meet, from this replica: advice only.
    pub fn advise(&self, _user: UserId, _identity: Option<&str>, _at: Timestamp) -> Advice {
        todo!()
    }

    /// Whether one more recipient with this hash would still be within `max_recipients_per_day`.
    pub fn recipient_fits(&self, _user: UserId, _hash: u64, _new_in_transaction: u64, _at: Timestamp) -> bool {
        todo!()
    }

    /// Whether this address may try to log in, and after which delay.
    pub fn auth_gate(&self, _address: IpAddr, _user: Option<UserId>, _at: Timestamp) -> AuthGate {
        todo!()
    }

    /// The addresses on the authentication block list, with the time until which they stay.
    pub fn auth_blocks(&self) -> Vec<(IpAddr, Timestamp)> {
        todo!()
    }

    /// All keys of a domain, or of all domains, with the private part.
    pub fn dkim_keys(&self, _domain: Option<&DomainName>) -> Vec<DkimKey> {
        todo!()
    }

    /// What became of an admission that the node has not declared settled: asked when a node recovers its spool.
    pub fn admission(&self, _id: crate::command::AdmissionId) -> Option<crate::command::Admission> {
        todo!()
    }
}
