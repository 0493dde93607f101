//! Why a command changed nothing.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::name::{DomainName, Login};

/// Why a command changed nothing.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    #[error("domain {0} is not known: add it first")]
    UnknownDomain(DomainName),
    #[error("domain {0} exists already")]
    DomainExists(DomainName),
    #[error("domain {0} still has users: remove them first")]
    DomainInUse(DomainName),
    #[error("user {0} is not known")]
    UnknownUser(Login),
    #[error("user {0} exists already")]
    UserExists(Login),
    #[error("network {0} already belongs to {1}")]
    NetworkTaken(Login, DomainName),
    #[error("identity {1} of {0} is not known")]
    UnknownIdentity(Login, String),
    #[error("a network user needs an owner domain")]
    OwnerMissing,
    #[error("a mailbox or domain user needs a password")]
    PasswordMissing,
    #[error("import {0} is not known or has expired")]
    UnknownImport(u64),
    #[error("the import names {0} users that cannot be taken; the first: {1}")]
    ImportRefused(u32, String),
    #[error("no DKIM key {1} for {0}")]
    UnknownDkimKey(DomainName, String),
    #[error("{address} is not on the authentication block list")]
    NotBlocked { address: IpAddr },
    #[error("{0} belongs to its own domain, not to {1}")]
    OwnerDiffers(Login, DomainName),
    #[error("`{0}` is not a setting of this level, or the value does not fit")]
    BadSetting(String),
    #[error("an import takes at most {0} users: split it")]
    ImportTooLarge(u32),
    #[error("{0} imports are open already: finish one first")]
    TooManyImports(u32),
    #[error("a batch cannot hold a batch")]
    NestedBatch,
    #[error("the cluster is formed already")]
    FormedAlready,
    #[error("the token is unknown, used or expired: make another with `outgate cluster token`")]
    UnknownToken,
    #[error("{0} tokens are waiting already: let them expire first")]
    TooManyTokens(u32),
    #[error("{0} is the address of node {1}: remove that node first or give another address")]
    AddressTaken(String, u64),
    #[error("node {0} is not known")]
    UnknownNode(u64),
    #[error("node {0} is the only one")]
    LastNode(u64),
    #[error("a backup is restored into a new cluster only")]
    NotNew,
}
