//! The names by which the replicated state knows things.

use std::cmp::Ordering;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch on the log's clock, which never runs backwards.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Timestamp(pub u64);

impl Timestamp {
    pub fn plus_millis(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    /// Milliseconds from `earlier` to `self`; 0 where `earlier` is later.
    pub fn millis_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// The number under which the state keeps a User; never used twice.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct UserId(pub u64);

/// A domain name in lower-case ASCII, without a trailing dot.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[serde(try_from = "String", into = "String")]
pub struct DomainName(String);

/// How an outgoing user is told apart: `local@domain`, `domain`, or an address range.
///
/// In the order of domains, each with its own login first; networks last.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Login {
    Mailbox { local: String, domain: DomainName },
    Domain(DomainName),
    Network(IpNet),
}

#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum NameError {
    #[error("`{0}` is not a domain name: give labels of letters, digits and hyphens, such as example.com")]
    Domain(String),
    #[error("`{0}` is not a login: give local@domain, a domain, or an address range such as 192.0.2.0/24")]
    Login(String),
    #[error("`{0}` is not an address range: the bits behind the prefix length must be zero, as in {1}")]
    HostBits(String, IpNet),
}

impl DomainName {
    /// Accepts what RFC 1035 section 2.3.1 and RFC 5891 A-labels allow, in any case, with or without the root dot.
    pub fn new(text: &str) -> Result<Self, NameError> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let label_ok = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if name.is_empty() || name.len() > 253 || !name.split('.').all(label_ok) || name.parse::<IpAddr>().is_ok() {
            return Err(NameError::Domain(text.to_owned()));
        }
        Ok(Self(name))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Login {
    /// The login's own domain; a network has none of its own, its owner is a field of the User.
    pub fn domain(&self) -> Option<&DomainName> {
        match self {
            Self::Mailbox { domain, .. } | Self::Domain(domain) => Some(domain),
            Self::Network(_) => None,
        }
    }

    /// What it is ordered by. Logins of one domain are mostly added and looked up together: that they are neighbours keeps
    /// the search for one of a million within the processor's cache.
    fn place(&self) -> (Option<&IpNet>, Option<&DomainName>, Option<&str>) {
        match self {
            Self::Mailbox { local, domain } => (None, Some(domain), Some(local)),
            Self::Domain(domain) => (None, Some(domain), None),
            Self::Network(network) => (Some(network), None, None),
        }
    }

    /// `mailbox`, `domain` or `network`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Mailbox { .. } => "mailbox",
            Self::Domain(_) => "domain",
            Self::Network(_) => "network",
        }
    }
}

impl Ord for Login {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

impl PartialOrd for Login {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl FromStr for Login {
    type Err = NameError;

    /// Reads `local@domain`, `domain`, `@domain`, `address`, `address/length`.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError::Login(text.to_owned());
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Network(IpNet::from(address)));
        }
        if let Ok(network) = text.parse::<IpNet>() {
            let masked = network.trunc();
            return if masked == network {
                Ok(Self::Network(network))
            } else {
                Err(NameError::HostBits(text.to_owned(), masked))
            };
        }
        match text.rsplit_once('@') {
            None => Ok(Self::Domain(DomainName::new(text).map_err(|_| wrong())?)),
            Some(("", domain)) => Ok(Self::Domain(DomainName::new(domain).map_err(|_| wrong())?)),
            Some((local, domain)) => mailbox(local, domain).ok_or_else(wrong),
        }
    }
}

/// Local parts compare without case, as every mailbox provider does, so they are kept in lower case.
fn mailbox(local: &str, domain: &str) -> Option<Login> {
    let plain = |c: char| !c.is_control() && !c.is_whitespace() && !matches!(c, '@' | '"' | '<' | '>' | ',');
    if local.len() > 64 || !local.chars().all(plain) {
        return None;
    }
    let domain = DomainName::new(domain).ok()?;
    Some(Login::Mailbox { local: local.to_lowercase(), domain })
}

impl fmt::Display for Login {
    /// The text that a client gives as its login and that [`Login::from_str`] reads back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mailbox { local, domain } => write!(f, "{local}@{domain}"),
            Self::Domain(domain) => write!(f, "{domain}"),
            Self::Network(network) => write!(f, "{network}"),
        }
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for DomainName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl TryFrom<String> for DomainName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::new(&text)
    }
}

impl From<DomainName> for String {
    fn from(name: DomainName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn logins_stand_by_domain_and_networks_last() {
        let texts =
            ["a.example", "y@a.example", "z@a.example", "b.example", "x@b.example", "192.0.2.0/24", "2001:db8::/32"];
        let logins: Vec<Login> = texts.iter().map(|text| text.parse().unwrap()).collect();
        assert!(logins.is_sorted());
        let mut turned = logins.clone();
        turned.reverse();
        turned.sort_unstable();
        assert_eq!(turned, logins);
    }
}
