//! The state as a set of small records, for checkpoint and snapshot.
//!
//! Everything that [`State`] knows follows from its records; indexes are built while they are put
//! back. A record depends only on records of kinds that stand before its own in [`Key`], so they
//! are restored kind by kind (which both [`Key`]'s order and the order of its encoded bytes give),
//! in any order within a kind.

use std::net::IpAddr;

use serde::de::Error as _;
use serde::{Deserialize, Serialize};

use super::admissions::{BLOCK, Remembered};
use super::due::{Due, identity_idle};
use super::import::Import;
use super::lock::Lock;
use super::user::{Domain, Identity, IdentityRecord, UserRecord};
use super::{DomainId, IdentityId, State};
use crate::command::{DkimAlgorithm, LockState, Outcome, Refusal};
use crate::name::UserId;
use crate::store::codec::{Blob, DecodeError, decode, encode};

/// The address of one record of the state, in the order in which snapshots carry them.
/// Append-only: its encoding is part of the checkpoint's format.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Key {
    /// Time, and the numbers given out last.
    Clock,
    Defaults,
    Domain(DomainId),
    DomainMeter(DomainId),
    Dkim {
        domain: DomainId,
        selector: String,
        algorithm: DkimAlgorithm,
    },
    User(UserId),
    /// Windows, strikes and scores.
    Conduct(UserId),
    Failures(UserId),
    UserLock(UserId),
    /// Last use of one address.
    Recipient {
        user: UserId,
        hash: u64,
    },
    Identity(IdentityId),
    IdentityLock(IdentityId),
    /// Below which ids a node's admissions are stale.
    Admissions {
        node: u64,
    },
    /// Outcomes of neighbouring admissions.
    AdmissionBlock {
        node: u64,
        block: u64,
    },
    /// Failed logins from one source.
    Source(IpAddr),
    Import(u64),
    ImportPart {
        import: u64,
        part: u32,
    },
    /// Who vouches for the nodes, and the node id given out last.
    Formation,
    Node(u64),
    Token([u8; 32]),
    Ownership(u64),
}

impl Key {
    /// Whether it is about the nodes of one cluster.
    pub(crate) fn is_of_nodes(&self) -> bool {
        match self {
            Self::Admissions { .. }
            | Self::AdmissionBlock { .. }
            | Self::Formation
            | Self::Node(_)
            | Self::Token(_)
            | Self::Ownership(_) => true,
            Self::Clock
            | Self::Defaults
            | Self::Domain(_)
            | Self::DomainMeter(_)
            | Self::Dkim { .. }
            | Self::User(_)
            | Self::Conduct(_)
            | Self::Failures(_)
            | Self::UserLock(_)
            | Self::Recipient { .. }
            | Self::Identity(_)
            | Self::IdentityLock(_)
            | Self::Source(_)
            | Self::Import(_)
            | Self::ImportPart { .. } => false,
        }
    }

    pub(super) fn admission_block(node: u64, sequence: u64) -> Self {
        Self::AdmissionBlock { node, block: sequence / BLOCK }
    }
}

impl State {
    /// Takes the keys whose records changed since the last call, for the checkpoint.
    pub fn take_dirty(&mut self) -> Vec<Key> {
        self.dirty.take()
    }

    /// The encoded record under `key`, or `None` where there is none (any more).
    pub fn record(&self, key: &Key) -> Option<Vec<u8>> {
        match key {
            Key::Clock => Some(encode(&self.clock)),
            Key::Defaults => Some(encode(&self.defaults.record)),
            Key::Domain(id) => Some(encode(&self.domains.get(id)?.record)),
            Key::DomainMeter(id) => some(&self.domains.get(id)?.meter, |meter| !meter.is_empty()),
            Key::Dkim { domain, selector, algorithm } => {
                Some(encode(self.dkim.get(&(*domain, selector.clone(), *algorithm))?))
            }
            Key::User(id) => Some(encode(&self.users.get(id)?.record)),
            Key::Conduct(id) => some(&self.users.get(id)?.conduct, |conduct| !conduct.is_empty()),
            Key::Failures(id) => some(&self.users.get(id)?.failures, |failures| failures.count > 0),
            Key::UserLock(id) => Some(encode(self.users.get(id)?.lock.as_deref()?)),
            Key::Recipient { user, hash } => Some(encode(&self.users.get(user)?.recipients.as_deref()?.bucket(*hash)?)),
            Key::Identity(id) => Some(encode(&self.identities.get(id)?.record)),
            Key::IdentityLock(id) => Some(encode(self.identities.get(id)?.lock.as_deref()?)),
            Key::Admissions { node } => Some(encode(&self.admissions.get(node)?.horizon)),
            Key::AdmissionBlock { node, block } => {
                some(&self.admissions.get(node)?.block(*block), |outcomes| !outcomes.is_empty())
            }
            Key::Source(address) => Some(encode(self.sources.get(*address)?)),
            Key::Import(id) => Some(encode(&self.imports.get(id)?.head)),
            Key::ImportPart { import, part } => {
                Some(encode(self.imports.get(import)?.parts.get(usize::try_from(*part).ok()?)?))
            }
            Key::Formation => some(&self.formation, |formation| formation.authority.is_some()),
            Key::Node(id) => Some(encode(self.nodes.get(id)?)),
            Key::Token(hash) => Some(encode(self.tokens.get(hash)?)),
            Key::Ownership(id) => Some(encode(self.ownership.get(id)?)),
        }
    }

    /// Puts back a record that [`State::record`] gave out; used to load a checkpoint or a snapshot.
    /// Records come kind by kind, in the order of [`Key`]'s variants.
    pub fn restore(&mut self, key: Key, record: &[u8]) -> Result<(), DecodeError> {
        match key {
            Key::Clock => self.clock = decode("clock", record)?,
            Key::Defaults => {
                self.defaults.record = decode("defaults", record)?;
                self.inherit_defaults();
            }
            Key::Domain(id) => self.restore_domain(id, record)?,
            Key::DomainMeter(id) => owner("domain", self.domains.get_mut(&id))?.meter = decode("domain meter", record)?,
            Key::Dkim { domain, selector, algorithm } => {
                self.dkim.insert((domain, selector, algorithm), decode("dkim key", record)?);
            }
            Key::User(id) => self.restore_user(id, record)?,
            Key::Conduct(id) => owner("user", self.users.get_mut(&id))?.conduct = decode("conduct", record)?,
            Key::Failures(id) => owner("user", self.users.get_mut(&id))?.failures = decode("failures", record)?,
            Key::UserLock(id) => {
                let lock = decode("lock", record)?;
                self.arm(&lock, Due::UserLock(id));
                owner("user", self.users.get_mut(&id))?.lock = Some(Box::new(lock));
            }
            Key::Recipient { user, hash } => {
                let user = owner("user", self.users.get_mut(&user))?;
                user.recipients.get_or_insert_default().put(hash, decode("recipient", record)?);
            }
            Key::Identity(id) => self.restore_identity(id, record)?,
            Key::IdentityLock(id) => {
                let lock = decode("lock", record)?;
                self.arm(&lock, Due::IdentityLock(id));
                owner("identity", self.identities.get_mut(&id))?.lock = Some(Box::new(lock));
            }
            Key::Admissions { node } => {
                self.admissions.entry(node).or_default().horizon = decode("horizon", record)?;
            }
            Key::AdmissionBlock { node, .. } => {
                let outcomes: Vec<(u64, Remembered)> = decode("outcomes", record)?;
                self.admissions.entry(node).or_default().outcomes.extend(outcomes);
            }
            Key::Source(address) => self.sources.put(address, decode("source", record)?),
            Key::Import(id) => {
                let import = Import { head: decode("import", record)?, parts: Vec::new() };
                self.due.insert((import.head.expires(), Due::Import(id)));
                self.imports.insert(id, import);
            }
            Key::ImportPart { import, part } => self.restore_part(import, part, record)?,
            Key::Formation => self.formation = decode("formation", record)?,
            Key::Node(id) => drop(self.nodes.insert(id, decode("node", record)?)),
            Key::Token(hash) => drop(self.tokens.insert(hash, decode("token", record)?)),
            Key::Ownership(id) => drop(self.ownership.insert(id, decode("ownership", record)?)),
        }
        Ok(())
    }

    /// Takes records of a backup into a state that has none under their keys; time goes on from the later.
    pub(super) fn take_in(&mut self, records: Vec<(Key, Blob)>) -> Result<Outcome, Refusal> {
        let fits =
            |key: &Key| matches!(key, Key::Clock | Key::Defaults) || !key.is_of_nodes() && self.record(key).is_none();
        if self.nodes.len() > 1 || !records.iter().all(|(key, _)| fits(key)) {
            return Err(Refusal::NotNew);
        }
        let seen = self.clock.seen;
        for (key, record) in records {
            // The whole file was read before: a record that does not fit now depends on one that was not new.
            self.restore(key.clone(), &record).map_err(|_| Refusal::NotNew)?;
            self.touch(key);
        }
        self.clock.seen = self.clock.seen.max(seen);
        self.touch(Key::Clock);
        Ok(Outcome::Done)
    }

    /// Every key that has a record, in order.
    pub fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        let users = || self.users.iter();
        let domains = || self.domains.iter();
        let identities = || self.identities.iter();
        let imports = || self.imports.iter();
        [Key::Clock, Key::Defaults]
            .into_iter()
            .chain(domains().map(|(id, _)| Key::Domain(*id)))
            .chain(domains().filter(|(_, domain)| !domain.meter.is_empty()).map(|(id, _)| Key::DomainMeter(*id)))
            .chain(self.dkim.keys().map(|(domain, selector, algorithm)| Key::Dkim {
                domain: *domain,
                selector: selector.clone(),
                algorithm: *algorithm,
            }))
            .chain(users().map(|(id, _)| Key::User(*id)))
            .chain(users().filter(|(_, user)| !user.conduct.is_empty()).map(|(id, _)| Key::Conduct(*id)))
            .chain(users().filter(|(_, user)| user.failures.count > 0).map(|(id, _)| Key::Failures(*id)))
            .chain(users().filter(|(_, user)| user.lock.is_some()).map(|(id, _)| Key::UserLock(*id)))
            .chain(users().flat_map(|(id, user)| {
                let hashes = user.recipients.iter().flat_map(|known| known.hashes());
                hashes.map(|hash| Key::Recipient { user: *id, hash })
            }))
            .chain(identities().map(|(id, _)| Key::Identity(*id)))
            .chain(identities().filter(|(_, identity)| identity.lock.is_some()).map(|(id, _)| Key::IdentityLock(*id)))
            .chain(self.admissions.keys().map(|node| Key::Admissions { node: *node }))
            .chain(
                self.admissions
                    .iter()
                    .flat_map(|(node, memory)| memory.blocks().map(|block| Key::AdmissionBlock { node: *node, block })),
            )
            .chain(self.sources.addresses().map(Key::Source))
            .chain(imports().map(|(id, _)| Key::Import(*id)))
            .chain(imports().flat_map(|(id, import)| {
                (0_u32..).zip(&import.parts).map(|(part, _)| Key::ImportPart { import: *id, part })
            }))
            .chain(self.formation.authority.iter().map(|_| Key::Formation))
            .chain(self.nodes.keys().map(|id| Key::Node(*id)))
            .chain(self.tokens.keys().map(|hash| Key::Token(*hash)))
            .chain(self.ownership.keys().map(|id| Key::Ownership(*id)))
    }

    fn restore_domain(&mut self, id: DomainId, record: &[u8]) -> Result<(), DecodeError> {
        let domain = Domain::new(decode("domain", record)?, &self.defaults.effective);
        self.domain_names.insert(domain.record.name.clone(), id);
        self.domains.insert(id, Box::new(domain));
        Ok(())
    }

    fn restore_user(&mut self, id: UserId, record: &[u8]) -> Result<(), DecodeError> {
        let record: UserRecord = decode("user", record)?;
        owner("domain", self.domains.get(&record.domain))?;
        self.enrol(id, record);
        Ok(())
    }

    fn restore_identity(&mut self, id: IdentityId, record: &[u8]) -> Result<(), DecodeError> {
        let record: IdentityRecord = decode("identity", record)?;
        owner("user", self.users.get_mut(&record.user))?.identities.insert(record.name.clone(), id);
        self.due.insert((identity_idle(record.last_seen), Due::IdentityIdle(id)));
        self.identities.insert(id, Box::new(Identity { record, lock: None }));
        Ok(())
    }

    fn restore_part(&mut self, import: u64, part: u32, record: &[u8]) -> Result<(), DecodeError> {
        let parts = &mut owner("import", self.imports.get_mut(&import))?.parts;
        let place = usize::try_from(part).map_or(usize::MAX, |part| part);
        if parts.len() <= place {
            parts.resize(place + 1, Vec::new());
        }
        parts[place] = decode("import part", record)?;
        Ok(())
    }

    fn arm(&mut self, lock: &Lock, due: Due) {
        if let LockState::Locked { until } = lock.state {
            self.due.insert((until, due));
        }
    }
}

fn some<T: Serialize>(value: &T, wanted: impl Fn(&T) -> bool) -> Option<Vec<u8>> {
    wanted(value).then(|| encode(value))
}

/// The record's owner, which a sound set of records has restored before.
fn owner<T>(what: &'static str, found: Option<T>) -> Result<T, DecodeError> {
    found.ok_or_else(|| DecodeError { what, source: bincode::Error::custom("a record without its owner") })
}
