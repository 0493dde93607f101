//! Users, domains and identities as the state keeps them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::conduct::Conduct;
use super::lock::Lock;
use super::meter::Meter;
use super::recipients::Recipients;
use super::settings::{Overrides, Settings};
use super::sources::Failures;
use crate::name::{DomainName, Login, Timestamp, UserId};

/// The number under which the state keeps a domain; never used twice.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DomainId(pub u64);

/// The number under which the state keeps an identity; never used twice.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct IdentityId(pub u64);

/// The cluster's own level of settings.
#[derive(Default)]
pub(super) struct Defaults {
    pub(super) record: DefaultsRecord,
    pub(super) effective: Arc<Settings>,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
pub(super) struct DefaultsRecord {
    pub(super) version: u64,
    pub(super) overrides: Overrides,
}

pub(super) struct Domain {
    pub(super) record: DomainRecord,
    /// What Users without values of their own have.
    pub(super) effective: Arc<Settings>,
    pub(super) meter: Meter,
    pub(super) members: BTreeMap<Arc<Login>, UserId>,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub(super) struct DomainRecord {
    pub(super) name: DomainName,
    pub(super) version: u64,
    pub(super) enabled: bool,
    pub(super) contact: Option<String>,
    pub(super) route: Option<String>,
    pub(super) route_auth: Option<String>,
    pub(super) overrides: Overrides,
}

pub(super) struct User {
    pub(super) record: UserRecord,
    /// Settings of an active User that has values of its own, valid for one version.
    pub(super) cached: Option<(u64, Arc<Settings>)>,
    pub(super) conduct: Conduct,
    pub(super) failures: Failures,
    pub(super) lock: Option<Box<Lock>>,
    pub(super) recipients: Option<Box<Recipients>>,
    pub(super) identities: BTreeMap<Box<str>, IdentityId>,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub(super) struct UserRecord {
    pub(super) login: Arc<Login>,
    pub(super) domain: DomainId,
    pub(super) version: u64,
    pub(super) enabled: bool,
    pub(super) password_hash: Option<Box<str>>,
    pub(super) overrides: Overrides,
}

pub(super) struct Identity {
    pub(super) record: IdentityRecord,
    pub(super) lock: Option<Box<Lock>>,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub(super) struct IdentityRecord {
    pub(super) user: UserId,
    pub(super) name: Box<str>,
    pub(super) last_seen: Timestamp,
    pub(super) conduct: Conduct,
}

/// A DKIM key as it is kept; domain, selector and algorithm are its address.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub(super) struct Dkim {
    pub(super) private_key: String,
    pub(super) created: Timestamp,
}

/// Whose conduct and lock are meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Who {
    User(UserId),
    Identity(UserId, IdentityId),
}

impl Who {
    pub(super) fn user(self) -> UserId {
        match self {
            Self::User(user) | Self::Identity(user, _) => user,
        }
    }
}

impl User {
    pub(super) fn new(record: UserRecord) -> Self {
        Self {
            record,
            cached: None,
            conduct: Conduct::default(),
            failures: Failures::default(),
            lock: None,
            recipients: None,
            identities: BTreeMap::new(),
        }
    }
}

impl Domain {
    pub(super) fn new(record: DomainRecord, defaults: &Arc<Settings>) -> Self {
        let mut domain =
            Self { record, effective: Arc::clone(defaults), meter: Meter::default(), members: BTreeMap::new() };
        domain.inherit(defaults);
        domain
    }

    /// Works out the effective settings anew.
    pub(super) fn inherit(&mut self, defaults: &Arc<Settings>) {
        let own = &self.record.overrides;
        self.effective = if own.is_empty() { Arc::clone(defaults) } else { Arc::new(own.over(defaults)) };
    }
}

/// Network Users by address, longest prefix first.
#[derive(Default)]
pub(super) struct Networks {
    by_network: BTreeMap<IpNet, UserId>,
    /// How many networks there are of each length, IPv4 and IPv6 apart, so that a look-up skips the others.
    lengths: BTreeMap<(bool, u8), u64>,
}

impl Networks {
    pub(super) fn insert(&mut self, network: IpNet, user: UserId) {
        if self.by_network.insert(network, user).is_none() {
            *self.lengths.entry((is_v4(network.addr()), network.prefix_len())).or_default() += 1;
        }
    }

    pub(super) fn remove(&mut self, network: IpNet) {
        let length = (is_v4(network.addr()), network.prefix_len());
        if self.by_network.remove(&network).is_some()
            && let Some(count) = self.lengths.get_mut(&length)
        {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&length);
            }
        }
    }

    pub(super) fn find(&self, address: IpAddr) -> Option<UserId> {
        let address = address.to_canonical();
        let family = is_v4(address);
        let mut lengths = self.lengths.range((family, 0)..=(family, u8::MAX)).rev();
        lengths.find_map(|((_, length), _)| {
            let network = IpNet::new(address, *length).ok()?.trunc();
            self.by_network.get(&network).copied()
        })
    }
}

fn is_v4(address: IpAddr) -> bool {
    address.is_ipv4()
}
