//! The envelope: what MAIL and RCPT said (RFC 5321 section 2.3.1, RFC 3461 for the DSN parameters).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Address;

#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Envelope {
    pub reverse_path: ReversePath,
    pub recipients: Vec<Recipient>,
    pub body: Body,
    pub smtputf8: bool,
    pub ret: Option<Return>,
    /// Decoded xtext of ENVID.
    pub envid: Option<String>,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Hash, Debug)]
pub enum ReversePath {
    /// `<>`: bounces and other notices.
    Null,
    Address(Address),
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Recipient {
    pub address: Address,
    pub notify: Notify,
    /// `type;address` of ORCPT, with the xtext decoded.
    pub original: Option<String>,
}

/// NOTIFY of RFC 3461 section 4.1; all false = NEVER.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub struct Notify {
    pub success: bool,
    pub failure: bool,
    pub delay: bool,
    /// Whether the client gave NOTIFY: it is passed on only then.
    pub explicit: bool,
}

/// RET: how much of the message a notice carries.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Return {
    Full,
    Headers,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Body {
    SevenBit,
    EightBitMime,
}

impl Default for Notify {
    /// Without NOTIFY: failures, and delays at the server's choice.
    fn default() -> Self {
        Self { success: false, failure: true, delay: true, explicit: false }
    }
}

impl ReversePath {
    pub fn address(&self) -> Option<&Address> {
        match self {
            Self::Null => None,
            Self::Address(address) => Some(address),
        }
    }

    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }
}

impl fmt::Display for ReversePath {
    /// Without angle brackets; the null path is empty.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address().map_or(Ok(()), |address| write!(f, "{address}"))
    }
}
