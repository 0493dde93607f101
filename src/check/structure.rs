//! The form of a message: what no honest client writes, or no next hop could carry, is refused.

use std::fmt;

use super::mime::{DEPTH_MAX, PARTS_MAX, Parts};
use super::{Check, Effect, Finding, Refusal};
use crate::mail::Message;

/// Octets of a line without its CRLF (RFC 5322 section 2.1.1).
const LINE_LENGTH_MAX: usize = 998;
const HEADER_LENGTH_MAX: usize = 256 << 10;
/// Hops that a message has behind it (RFC 5321 section 6.3).
const RECEIVED_MAX: usize = 100;
/// Fields that stand once at most (RFC 5322 section 3.6).
const SINGLE_USE: [&str; 11] =
    ["From", "Sender", "Reply-To", "To", "Cc", "Bcc", "Message-ID", "In-Reply-To", "References", "Subject", "Date"];

/// What is wrong with the form; the text goes to the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    LineTooLong,
    HeaderTooLong,
    /// A line of the header section that is neither a field nor a fold.
    NoField,
    /// More Received fields than any way has hops.
    Loop,
    TooManyParts,
    TooDeep,
    /// The name of the field that stands twice.
    Duplicate(&'static str),
    Partial,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LineTooLong => write!(f, "a line is longer than {LINE_LENGTH_MAX} octets"),
            Self::HeaderTooLong => write!(f, "the header is longer than {HEADER_LENGTH_MAX} octets"),
            Self::NoField => f.write_str("a line of the header is no field"),
            Self::Loop => f.write_str("routing loop"),
            Self::TooManyParts => write!(f, "more than {PARTS_MAX} parts"),
            Self::TooDeep => write!(f, "parts nested deeper than {DEPTH_MAX}"),
            Self::Duplicate(name) => write!(f, "more than one {name} field"),
            Self::Partial => f.write_str("message/partial is not accepted"),
        }
    }
}

/// The first fault, as a refusal.
pub(super) fn check(message: &Message, parts: &Parts<'_>) -> Option<Finding> {
    let fault = fault(message, parts)?;
    let effect = Effect::Refuse(Refusal::Structure(fault));
    Some(Finding { check: Check::Structure, effect, text: fault.to_string() })
}

fn fault(message: &Message, parts: &Parts<'_>) -> Option<Fault> {
    if message.header_section().len() > HEADER_LENGTH_MAX {
        return Some(Fault::HeaderTooLong);
    }
    if message.broken_header().is_some() {
        return Some(Fault::NoField);
    }
    if message.named("Received").count() > RECEIVED_MAX {
        return Some(Fault::Loop);
    }
    if let Some(name) = duplicate(message) {
        return Some(Fault::Duplicate(name));
    }
    let faults = [
        (parts.partial, Fault::Partial),
        (parts.too_many, Fault::TooManyParts),
        (parts.too_deep, Fault::TooDeep),
        (has_long_line(message.bytes()), Fault::LineTooLong),
    ];
    faults.into_iter().find_map(|(is, fault)| is.then_some(fault))
}

fn duplicate(message: &Message) -> Option<&'static str> {
    let mut seen = [false; SINGLE_USE.len()];
    message.headers().find_map(|header| {
        let at = SINGLE_USE.iter().position(|name| header.name.eq_ignore_ascii_case(name))?;
        std::mem::replace(&mut seen[at], true).then_some(SINGLE_USE[at])
    })
}

fn has_long_line(bytes: &[u8]) -> bool {
    let mut start = 0;
    let too_long = |line: &[u8]| line.strip_suffix(b"\r").unwrap_or(line).len() > LINE_LENGTH_MAX;
    for end in memchr::memchr_iter(b'\n', bytes) {
        if too_long(&bytes[start..end]) {
            return true;
        }
        start = end + 1;
    }
    too_long(&bytes[start..])
}
