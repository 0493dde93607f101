//! The author addresses of a message: every address in header From, groups included (RFC 5322 sections 3.4 and 4.4).
//!
//! Sender rules hang on this list, so it errs to one side: a field that does not read as a list of addresses is
//! `Unreadable` as a whole, never read by half.

use crate::mail::{Address, Message};

/// More authors than this are no list of authors.
const ADDRESSES_MAX: usize = 100;
const VALUE_LENGTH_MAX: usize = 16 << 10;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HeaderFrom {
    Addresses(Vec<Address>),
    Missing,
    Unreadable,
}

impl HeaderFrom {
    /// The first address: the author whose domain signs.
    pub fn first(&self) -> Option<&Address> {
        match self {
            Self::Addresses(addresses) => addresses.first(),
            Self::Missing | Self::Unreadable => None,
        }
    }
}

/// Of all From fields together: a second one is the structure check's matter, but it hides no address.
pub fn header_from(message: &Message) -> HeaderFrom {
    let mut addresses = Vec::new();
    let mut missing = true;
    for field in message.named("From") {
        missing = false;
        let value = if field.value.len() <= VALUE_LENGTH_MAX { std::str::from_utf8(field.value).ok() } else { None };
        match value.and_then(addresses_of) {
            Some(more) => addresses.extend(more),
            None => return HeaderFrom::Unreadable,
        }
    }
    match (missing, addresses.len()) {
        (true, _) => HeaderFrom::Missing,
        (false, 1..=ADDRESSES_MAX) => HeaderFrom::Addresses(addresses),
        (false, _) => HeaderFrom::Unreadable,
    }
}

/// The addresses of one field value; `None` where it is no list of addresses.
fn addresses_of(value: &str) -> Option<Vec<Address>> {
    let mut list = List::default();
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '(' => skip_comment(&mut chars)?,
            '"' => list.quoted(&mut chars)?,
            '<' if list.angle.is_none() => list.angle = Some(angle(&mut chars)?),
            ',' | ';' => list.end_mailbox()?,
            ':' if list.angle.is_none() => list.mailbox.clear(),
            c if c.is_whitespace() => list.mailbox.push(' '),
            '<' | '>' | ':' | ')' => return None,
            // Behind `<address>` only comments and space may come.
            _ if list.angle.is_some() => return None,
            c => list.mailbox.push(c),
        }
    }
    list.end_mailbox()?;
    Some(list.addresses)
}

#[derive(Default)]
struct List {
    addresses: Vec<Address>,
    /// What stands outside of comments since the last separator: a display name, or the address itself.
    mailbox: String,
    angle: Option<String>,
}

impl List {
    fn end_mailbox(&mut self) -> Option<()> {
        let text = match self.angle.take() {
            Some(angle) => angle,
            None => self.mailbox.trim().to_owned(),
        };
        self.mailbox.clear();
        if !text.is_empty() {
            self.addresses.push(address(&text)?);
        }
        Some(())
    }

    /// A quoted string with its quotes: part of a display name, or a local part.
    fn quoted(&mut self, chars: &mut std::str::Chars<'_>) -> Option<()> {
        if self.angle.is_some() {
            return None;
        }
        self.mailbox.push('"');
        loop {
            let c = chars.next()?;
            self.mailbox.push(c);
            match c {
                '"' => return Some(()),
                '\\' => self.mailbox.push(chars.next()?),
                _ => {}
            }
        }
    }
}

/// Comments nest (RFC 5322 section 3.2.2); counted, so that depth costs nothing.
fn skip_comment(chars: &mut std::str::Chars<'_>) -> Option<()> {
    let mut depth = 1usize;
    while depth > 0 {
        match chars.next()? {
            '(' => depth += 1,
            ')' => depth -= 1,
            '\\' => {
                chars.next()?;
            }
            _ => {}
        }
    }
    Some(())
}

/// The text up to `>`, without comments.
fn angle(chars: &mut std::str::Chars<'_>) -> Option<String> {
    let mut text = String::new();
    let mut quoted = false;
    loop {
        match chars.next()? {
            '>' if !quoted => return (!text.trim().is_empty()).then_some(text),
            '(' if !quoted => skip_comment(chars)?,
            '<' if !quoted => return None,
            '\\' if quoted => text.extend(['\\', chars.next()?]),
            c => {
                quoted ^= c == '"';
                text.push(c);
            }
        }
    }
}

/// Takes away a source route (`@a,@b:`) and the space that RFC 5322 section 4.4 allows around dots and the at sign.
fn address(text: &str) -> Option<Address> {
    let text = text.trim();
    let text = if text.starts_with('@') { text.split_once(':')?.1 } else { text };
    if let Ok(address) = Address::new(text.trim()) {
        return Some(address);
    }
    if text.contains('"') {
        return None;
    }
    let pieces = text.split(['.', '@']).map(str::trim);
    let separators = text.chars().filter(|c| matches!(c, '.' | '@')).map(Some).chain([None]);
    let mut joined = String::with_capacity(text.len());
    for (piece, separator) in pieces.zip(separators) {
        joined.push_str(piece);
        joined.extend(separator);
    }
    Address::new(&joined).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn read(value: &str) -> Option<Vec<String>> {
        addresses_of(value).map(|list| list.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn reads_every_address() {
        for (value, expected) in [
            (" alice@example.com", vec!["alice@example.com"]),
            (" Alice <alice@Example.COM>", vec!["alice@example.com"]),
            (" \"Doe, John <x@y.z>\" <john@example.com>", vec!["john@example.com"]),
            (
                " a@example.com, B <b@example.com>,, c@example.com",
                vec!["a@example.com", "b@example.com", "c@example.com"],
            ),
            (
                " Team: a@example.com, B <b@example.org>; , c@example.net",
                vec!["a@example.com", "b@example.org", "c@example.net"],
            ),
            (" alice@example.com (the (one) and \\) only)", vec!["alice@example.com"]),
            (" (c) Alice (d) < (e) alice@example.com (f) > (g)", vec!["alice@example.com"]),
            (" <@a.example,@b.example:alice@example.com>", vec!["alice@example.com"]),
            (" alice . smith @ example . com", vec!["alice.smith@example.com"]),
            (" \"a b\"@example.com", vec!["\"a b\"@example.com"]),
            ("\r\n Alice\r\n <alice@example.com>", vec!["alice@example.com"]),
            (" good@example.com <evil@example.net>", vec!["evil@example.net"]),
        ] {
            assert_eq!(read(value), Some(expected.iter().map(ToString::to_string).collect()), "{value}");
        }
    }

    #[test]
    fn what_does_not_read_as_a_whole_is_not_read_by_half() {
        for value in [
            " a@example.com <b@example.com> c@example.com",
            " <a@example.com><b@example.com>",
            " <a@example.com",
            " a@example.com b@example.com",
            " \"open <a@example.com>",
            " (open a@example.com",
            " Alice",
            " <>",
            " a@example.com>",
            " <a@example.com> \"b\"",
            " <a@example.com>: b@example.com",
        ] {
            assert_eq!(read(value), None, "{value}");
        }
    }

    #[test]
    fn depth_and_length_cost_nothing() {
        let deep = format!("{}{} a@example.com", "(".repeat(10_000), ")".repeat(10_000));
        assert_eq!(read(&deep), Some(vec!["a@example.com".to_owned()]));
    }

    #[test]
    fn two_fields_hide_nothing_and_none_is_missing() {
        let of = |text: &'static str| header_from(&Message::new(bytes::Bytes::from_static(text.as_bytes())));
        let two = of("From: a@example.com\r\nfrom: b@example.com\r\n\r\n");
        assert!(matches!(two, HeaderFrom::Addresses(list) if list.len() == 2));
        assert_eq!(of("To: a@example.com\r\n\r\n"), HeaderFrom::Missing);
        assert_eq!(of("From:\r\n\r\n"), HeaderFrom::Unreadable);
        assert_eq!(of("From: nobody\r\n\r\n"), HeaderFrom::Unreadable);
    }
}
