//! Mail addresses as RFC 5321 section 4.1.2 and RFC 6531 section 3.3 write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// RFC 5321 section 4.5.3.1.
const LOCAL_LENGTH_MAX: usize = 64;
const ADDRESS_LENGTH_MAX: usize = 254;

/// `local@domain`. The local part keeps its spelling (quotes included), the domain is in lower case.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[serde(try_from = "String", into = "String")]
pub struct Address {
    text: String,
    at: usize,
}

#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[error("`{0}` is not a mail address")]
pub struct AddressError(pub String);

impl Address {
    pub fn new(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError(text.to_owned());
        let at = text.rfind('@').ok_or_else(wrong)?;
        let (local, domain) = (&text[..at], &text[at + 1..]);
        if text.len() > ADDRESS_LENGTH_MAX || !local_is_valid(local) || !domain_is_valid(domain) {
            return Err(wrong());
        }
        Ok(Self { text: format!("{local}@{}", domain.to_lowercase()), at })
    }

    pub fn local(&self) -> &str {
        &self.text[..self.at]
    }

    /// The domain in lower case: A-labels, U-labels, or a literal such as `[192.0.2.1]`.
    pub fn domain(&self) -> &str {
        &self.text[self.at + 1..]
    }

    /// The domain in A-labels as DNS wants it; `None` for an address literal.
    pub fn dns_domain(&self) -> Option<String> {
        if self.domain().starts_with('[') { None } else { idna::domain_to_ascii(self.domain()).ok() }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// True if a hop without SMTPUTF8 cannot carry the address (RFC 6531 section 3.2).
    pub fn needs_smtputf8(&self) -> bool {
        !self.text.is_ascii()
    }
}

fn local_is_valid(local: &str) -> bool {
    if local.is_empty() || local.len() > LOCAL_LENGTH_MAX {
        return false;
    }
    match local.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').is_some_and(quoted_content_is_valid),
        None => local.split('.').all(|atom| !atom.is_empty() && atom.chars().all(is_atom_char)),
    }
}

/// RFC 5321 `QcontentSMTP`: printable characters, quote and backslash only behind a backslash.
fn quoted_content_is_valid(content: &str) -> bool {
    let mut chars = content.chars();
    while let Some(c) = chars.next() {
        let ok = match c {
            '\\' => chars.next().is_some_and(|next| next == ' ' || next.is_ascii_graphic()),
            '"' => false,
            _ => c == ' ' || c.is_ascii_graphic() || (!c.is_ascii() && !c.is_control()),
        };
        if !ok {
            return false;
        }
    }
    true
}

fn is_atom_char(c: char) -> bool {
    c.is_ascii_alphanumeric()
        || "!#$%&'*+-/=?^_`{|}~".contains(c)
        || (!c.is_ascii() && !c.is_control() && !c.is_whitespace())
}

fn domain_is_valid(domain: &str) -> bool {
    if let Some(literal) = domain.strip_prefix('[') {
        return literal.strip_suffix(']').is_some_and(literal_is_valid);
    }
    let Ok(ascii) = idna::domain_to_ascii(domain) else { return false };
    let label_ok = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    !ascii.is_empty() && ascii.len() <= 253 && !domain.ends_with('.') && ascii.split('.').all(label_ok)
}

fn literal_is_valid(literal: &str) -> bool {
    match literal.strip_prefix("IPv6:") {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => literal.parse::<std::net::Ipv4Addr>().is_ok(),
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::new(text)
    }
}

impl TryFrom<String> for Address {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        Self::new(&text)
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_the_grammar_allows() {
        for text in [
            "a@example.com",
            "a.b+c@EXAMPLE.com",
            "\"a b\"@example.com",
            "\"a\\\"@b\"@example.com",
            "a@[192.0.2.1]",
            "a@[IPv6:2001:db8::1]",
            "jürgen@bücher.example",
            "o'neil@x.y",
        ] {
            assert!(Address::new(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn refuses_what_it_forbids() {
        for text in [
            "",
            "a",
            "@example.com",
            "a@",
            "a..b@example.com",
            ".a@example.com",
            "a b@example.com",
            "a@-x.com",
            "a@x..y",
            "a@x.y.",
            "a\r\n@x.y",
            "\"a\"b\"@x.y",
            "a@[300.1.1.1]",
            "a@[IPv6:zz]",
            "<a@x.y>",
        ] {
            assert!(Address::new(text).is_err(), "{text}");
        }
    }
}
