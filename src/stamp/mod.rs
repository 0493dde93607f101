//! What is done to an accepted message: fields added and removed, then the DKIM signatures.
//!
//! ```text
//! DKIM-Signature …            (last in time, first in the message)
//! Received: …
//! original header section     (byte for byte, without what is stripped and without blank folds)
//! Message-ID, Date            (if absent)
//! X-Outgate-…, X-Report-Abuse-To
//!
//! body                        (byte for byte)
//! ```
//!
//! Invariants:
//! * No value that came from a client can end a field or begin another: control characters become spaces, what is not
//!   ASCII becomes `?`.
//! * Fields named `X-Outgate-…` and `X-Report-Abuse-To` that came with the message never leave with it: only ours speak.
//!   Neither does `Return-Path`, which the last hop writes (RFC 5321 section 4.4).
//! * Every reader sees our fields as fields. Some take a line that is no field, or a fold of white space alone, for the
//!   end of the header: the header ends before the first such line, which is body then, and such folds are left out.
//! * What was signed is what leaves: nothing is added behind the signature.
//!
//! Never here: whether the message may leave, and the User's settings.

pub mod dkim;
mod field;

use std::net::IpAddr;

use bytes::Bytes;
use jiff::Timestamp;

use self::field::{append_field, printable};
use crate::mail::{Address, Message, MessageId};

const OWN_FIELD_PREFIX: &str = "X-Outgate-";
/// Fields that only another hop than the client may write.
const NEVER_THE_CLIENTS: [&str; 2] = ["X-Report-Abuse-To", "Return-Path"];
const DATE_FORMAT: &str = "%a, %d %b %Y %H:%M:%S +0000";
/// Octets of evidence in the message; all of it is in the mail log.
const EVIDENCE_LENGTH_MAX: usize = 2_000;
/// Room for the added fields.
const ADDED_LENGTH: usize = 1_024;

/// What the added fields say.
#[derive(Clone, Debug)]
pub struct Stamp<'a> {
    pub id: MessageId,
    pub at: Timestamp,
    pub hostname: &'a str,
    pub client: Peer<'a>,
    pub smtputf8: bool,
    /// The only one, if there is only one: named in Received where it is ASCII.
    pub recipient: Option<&'a Address>,
    pub domain: &'a str,
    pub login: &'a str,
    pub identity: Option<&'a str>,
    pub class: &'a str,
    pub evidence: &'a [String],
    /// Where recipients complain.
    pub abuse_contact: &'a str,
    /// Fields that are stripped, by name.
    pub removed: &'a [&'a str],
}

/// The client as Received names it.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    pub helo: &'a str,
    pub address: IpAddr,
    /// Protocol version and cipher suite.
    pub tls: Option<(&'a str, &'a str)>,
    /// By a password; an address alone is no authentication (RFC 3848).
    pub authenticated: bool,
}

/// The message with its added fields, unsigned.
pub fn stamp(stamp: &Stamp<'_>, message: &Message) -> Message {
    let mut out = Vec::with_capacity(message.size() + ADDED_LENGTH);
    append_received(&mut out, stamp);
    let border = message.broken_header();
    let fields = border.map_or_else(|| message.clone(), |at| Message::new(message.bytes().slice(..at)));
    append_originals(&mut out, stamp, &fields);
    append_missing(&mut out, stamp, &fields);
    append_own(&mut out, stamp);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(border.map_or(message.body(), |at| &message.bytes()[at..]));
    Message::new(Bytes::from(out))
}

/// RFC 5321 section 4.4; the protocol names are those of RFC 3848 and RFC 6531 section 4.3.
fn append_received(out: &mut Vec<u8>, stamp: &Stamp<'_>) {
    let peer = &stamp.client;
    let address = match peer.address {
        IpAddr::V4(v4) => format!("[{v4}]"),
        IpAddr::V6(v6) => format!("[IPv6:{v6}]"),
    };
    let mut value = format!("from {} ({address})", host_token(peer.helo));
    if let Some((version, cipher)) = peer.tls {
        value.push_str(&format!(" (using {version} with cipher {cipher})"));
    }
    let (id, protocol) = (stamp.id, protocol(stamp));
    value.push_str(&format!(" by {} (outgate) with {protocol} id {id}", stamp.hostname));
    // The field is ASCII whatever the next hop can take; the clause is optional.
    if let Some(recipient) = stamp.recipient.filter(|recipient| !recipient.needs_smtputf8()) {
        value.push_str(&format!(" for <{recipient}>"));
    }
    value.push_str(&format!("; {}", date(stamp.at)));
    append_field(out, "Received", &value);
}

fn protocol(stamp: &Stamp<'_>) -> String {
    let base = if stamp.smtputf8 { "UTF8SMTP" } else { "ESMTP" };
    let tls = if stamp.client.tls.is_some() { "S" } else { "" };
    let authenticated = if stamp.client.authenticated { "A" } else { "" };
    format!("{base}{tls}{authenticated}")
}

/// A HELO argument as one word that neither opens a comment nor a quoted string.
fn host_token(helo: &str) -> String {
    let keep = |c: char| if c.is_ascii_alphanumeric() || ".-_:[]".contains(c) { c } else { '?' };
    let token: String = helo.chars().take(255).map(keep).collect();
    if token.is_empty() { "unknown".to_owned() } else { token }
}

/// The original header section without what is stripped.
fn append_originals(out: &mut Vec<u8>, stamp: &Stamp<'_>, message: &Message) {
    let section = message.header_section();
    let mut copied = 0;
    for header in message.headers().filter(|header| is_stripped(stamp, header.name)) {
        let start = header.raw.as_ptr().addr() - section.as_ptr().addr();
        append_lines(out, &section[copied..start]);
        copied = start + header.raw.len();
    }
    append_lines(out, &section[copied..]);
    if !out.ends_with(b"\r\n") {
        out.extend_from_slice(b"\r\n");
    }
}

/// Whole lines; a blank one within fields can only be a fold.
fn append_lines(out: &mut Vec<u8>, lines: &[u8]) {
    for line in lines.split_inclusive(|&octet| octet == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
        out.extend_from_slice(line);
    }
}

fn is_stripped(stamp: &Stamp<'_>, name: &str) -> bool {
    let own = name.get(..OWN_FIELD_PREFIX.len()).is_some_and(|prefix| prefix.eq_ignore_ascii_case(OWN_FIELD_PREFIX));
    own || NEVER_THE_CLIENTS.iter().chain(stamp.removed).any(|stripped| stripped.eq_ignore_ascii_case(name))
}

/// RFC 6409 section 8: a submission server adds Message-ID and Date.
fn append_missing(out: &mut Vec<u8>, stamp: &Stamp<'_>, message: &Message) {
    if message.named("Message-ID").next().is_none() {
        append_field(out, "Message-ID", &format!("<{}@{}>", stamp.id, stamp.hostname));
    }
    if message.named("Date").next().is_none() {
        append_field(out, "Date", &date(stamp.at));
    }
}

fn append_own(out: &mut Vec<u8>, stamp: &Stamp<'_>) {
    append_field(out, "X-Outgate-Id", &stamp.id.to_string());
    append_field(out, "X-Outgate-Domain", stamp.domain);
    append_field(out, "X-Outgate-Username", stamp.login);
    if let Some(identity) = stamp.identity {
        append_field(out, "X-Outgate-Identity", identity);
    }
    append_field(out, "X-Outgate-Class", stamp.class);
    if !stamp.evidence.is_empty() {
        let mut evidence = printable(&stamp.evidence.join("; "));
        evidence.truncate(EVIDENCE_LENGTH_MAX);
        append_field(out, "X-Outgate-Evidence", &evidence);
    }
    append_field(out, "X-Report-Abuse-To", stamp.abuse_contact);
}

fn date(at: Timestamp) -> String {
    at.strftime(DATE_FORMAT).to_string()
}

#[cfg(test)]
mod tests;
