//! What can be asked of the replicated state, and what it answers.
//!
//! Both enums are append-only: bincode writes a variant's position, so a variant is never moved or
//! removed (`cluster/tests/wire.rs` pins the bytes).

mod lock;
mod refusal;

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::name::{DomainName, Login, Timestamp, UserId};
use crate::state::Key;
use crate::state::settings::Patch;
use crate::store::codec::Blob;

pub use lock::{LockCause, LockChange, LockState};
pub use refusal::Refusal;

/// One entry of the replicated log, before the leader stamps it with a time.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub enum Command {
    /// Many commands in one log entry, applied in order; answers [`Outcome::Batch`].
    Batch(Vec<Command>),
    /// Lets time pass: expires locks, blocks and old counters.
    Tick,
    Admit(Admit),
    /// Forgets the outcomes of a node's admissions up to the end of an epoch that it has recovered from.
    Settle {
        node: u64,
        epoch: u64,
    },
    DomainAdd {
        name: DomainName,
        patch: DomainPatch,
    },
    DomainSet {
        name: DomainName,
        patch: DomainPatch,
    },
    /// Refused while the domain has users.
    DomainRemove {
        name: DomainName,
    },
    UserAdd {
        user: NewUser,
    },
    UserSet {
        login: Login,
        patch: UserPatch,
    },
    UserRemove {
        login: Login,
    },
    /// One part of an import; nothing is visible before [`Command::ImportCommit`].
    ImportStage {
        import: u64,
        users: Vec<NewUser>,
    },
    /// Takes all staged users in one step, or none with `strict` and a refusal; answers [`Outcome::Imported`].
    ImportCommit {
        import: u64,
        strict: bool,
    },
    /// Changes the cluster defaults, which domains and users inherit.
    DefaultsSet {
        patch: Patch,
    },
    Lock {
        subject: Subject,
        actor: Actor,
        reason: String,
    },
    /// To unlocked, with the unlock counter back at 0.
    Unlock {
        subject: Subject,
        actor: Actor,
    },
    /// The unlock counter to 0, the lock as it is.
    Reset {
        subject: Subject,
        actor: Actor,
    },
    AuthFailed {
        user: Option<UserId>,
        address: IpAddr,
    },
    /// Clears the User's growing delay.
    AuthSucceeded {
        user: UserId,
        address: IpAddr,
    },
    AuthUnblock {
        address: IpAddr,
        actor: Actor,
    },
    /// Recipients that were refused as invalid; may lock.
    InvalidRecipients {
        user: UserId,
        identity: Option<String>,
        count: u32,
    },
    /// `private_key` is a PKCS#8 PEM document.
    DkimPut {
        domain: DomainName,
        selector: String,
        algorithm: DkimAlgorithm,
        private_key: String,
    },
    DkimRemove {
        domain: DomainName,
        selector: String,
    },
    /// The beginning of a cluster: who vouches for its nodes, and the first of them; answers [`Outcome::Joined`].
    Form {
        authority: Authority,
        address: String,
    },
    /// Lets one node join within `valid_ms`; `token` is the hash of the secret.
    TokenPut {
        token: [u8; 32],
        valid_ms: u64,
        actor: Actor,
    },
    /// Spends a token for the owner of a key, which may ask again; answers [`Outcome::Joined`].
    Join {
        token: [u8; 32],
        /// Hash of the new node's public key.
        key: [u8; 32],
        /// `host:port` on which other nodes reach it.
        address: String,
    },
    NodeSet {
        node: u64,
        address: Option<String>,
        draining: Option<bool>,
    },
    /// From here on the node is nobody, whatever certificate it shows.
    NodeRemove {
        node: u64,
        actor: Actor,
    },
    /// The node missed its lease: nothing of it is admitted any more, and its mirrors take over what it owned. Changes
    /// nothing where its owner epoch is another.
    NodeDown {
        node: u64,
        owner_epoch: u64,
    },
    /// The node owns mail from now on, under a new owner epoch. Changes nothing where its owner epoch is another.
    NodeUp {
        node: u64,
        owner_epoch: u64,
    },
    /// Changes nothing: every node takes the hash of its state right behind the entry that holds it.
    StateHash,
    /// Records of a backup, for a new cluster's only node: nothing is overwritten.
    Restore {
        records: Vec<(Key, Blob)>,
    },
}

/// Certificate and key by which nodes know each other.
#[derive(Serialize, Deserialize, Clone, PartialEq)]
pub struct Authority {
    /// PEM.
    pub certificate: String,
    /// PKCS#8 PEM.
    pub private_key: String,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// The answer of [`crate::State::apply`] to one [`Command`].
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub enum Outcome {
    Done,
    Batch(Vec<Outcome>),
    Admission(Admission),
    UserAdded(UserId),
    Imported(ImportReport),
    /// A lock, unlock or reset by hand, or a lock by invalid recipients.
    Lock(Option<LockChange>),
    /// The address is now on the authentication block list until then, or not.
    AuthFailure {
        blocked_until: Option<Timestamp>,
    },
    Refused(Refusal),
    /// The id of the node that joined.
    Joined(u64),
}

/// "May this message pass, and count it": proposed once per message after its content was judged.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Admit {
    pub id: AdmissionId,
    /// Every sequence of this node and epoch below this one needs no answer any more.
    pub settled_below: u64,
    pub user: UserId,
    pub identity: Option<String>,
    pub wish: Wish,
    pub class: Class,
    /// Spam score in thousandths.
    pub score: u16,
    /// Keyed hashes of the recipient addresses, for counting different ones.
    pub recipients: Vec<u64>,
    pub null_sender: bool,
    /// The only recipient is the domain's admin contact: passes a lock.
    pub to_contact: bool,
    /// outgate's id of the message, evidence of a strike.
    pub message: String,
}

/// Unique for ever: an epoch is one life of a node's process.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AdmissionId {
    pub node: u64,
    pub epoch: u64,
    pub sequence: u64,
}

/// What policy would do with the message if neither limit nor lock stood in the way.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    /// Answer 250: the message is charged to the windows.
    Accept,
    /// Refuse it for its content: nothing is charged, the strike is recorded.
    Refuse,
}

/// The class of a judged message (PRODUCT: classes).
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    Clean,
    Unsure,
    Spam,
    Phish,
    Virus,
    Blocked,
    Locked,
    Limit,
    Oversize,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Admission {
    pub verdict: AdmissionVerdict,
    /// The windows after this decision, for the log and for `why`.
    pub charges: Vec<Charge>,
    /// The lock that this message caused, if it caused one.
    pub lock: Option<LockChange>,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub enum AdmissionVerdict {
    Accepted,
    /// `Wish::Refuse` was recorded.
    Recorded,
    Limit {
        scope: Scope,
        window: Window,
        unit: LimitUnit,
        limit: u64,
        retry_after_s: u64,
    },
    /// Too many different recipients in 24 hours.
    DistinctRecipients {
        limit: u64,
        retry_after_s: u64,
    },
    Locked {
        scope: Scope,
        state: LockState,
    },
    /// The User was removed or disabled since it logged in.
    NoUser,
    /// The id is older than what the node declared settled, or the node is down: never counted, never delivered.
    Stale,
}

/// Whose counters or lock decided.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    User,
    Identity,
    Domain,
    /// The small limit of the null reverse-path.
    NullSender,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Window {
    Minute,
    Hour,
    Day,
    Week,
    Month,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[serde(rename_all = "snake_case")]
pub enum LimitUnit {
    Messages,
    Recipients,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Charge {
    pub scope: Scope,
    pub window: Window,
    pub used: u64,
    /// 0 = unlimited.
    pub limit: u64,
    /// Seconds until one more would fit; 0 = now.
    pub next_free_s: u64,
}

/// A User, or one person inside a smarthost's mail.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Subject {
    pub login: Login,
    pub identity: Option<String>,
}

/// Who asked for an administrative change, for history and audit: an admin's name, `cli`, or the product itself.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Actor(pub String);

impl Window {
    /// `minute`, `hour`, `day`, `week` or `month`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
        }
    }
}

/// Fields that stay as they are where `None`.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
pub struct DomainPatch {
    pub enabled: Option<bool>,
    /// The admin contact's mail address; an empty text removes it.
    pub contact: Option<String>,
    /// Where the domain's outgoing mail goes instead of MX: `host[:port]`; empty removes it.
    pub route: Option<String>,
    /// Login for the route, `user:password`; empty removes it.
    pub route_auth: Option<String>,
    pub settings: Patch,
}

/// Fields that stay as they are where `None`.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
pub struct UserPatch {
    pub enabled: Option<bool>,
    /// An argon2id hash in PHC form; an empty text removes a network User's password.
    pub password_hash: Option<String>,
    pub settings: Patch,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct NewUser {
    pub login: Login,
    /// The owner domain of a network; must be absent or the login's own domain otherwise.
    pub owner: Option<DomainName>,
    /// An argon2id hash in PHC form.
    pub password_hash: Option<String>,
    pub settings: Patch,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
pub struct ImportReport {
    pub added: u32,
    /// The staged position of each user that was not taken, and why.
    pub refused: Vec<(u32, Refusal)>,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[serde(rename_all = "snake_case")]
pub enum DkimAlgorithm {
    RsaSha256,
    Ed25519Sha256,
}

impl DkimAlgorithm {
    /// The selector of the key that stands under `name` beside one of the other algorithm: one name in DNS holds one
    /// key (RFC 6376 section 3.6.2.2), so an Ed25519 key beside an RSA key has `-ed25519` behind it.
    pub fn selector_beside(self, name: &str) -> String {
        match self {
            Self::RsaSha256 => name.to_owned(),
            Self::Ed25519Sha256 => format!("{name}-ed25519"),
        }
    }
}
