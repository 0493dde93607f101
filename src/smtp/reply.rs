//! Every reply that a client can get, in one table.
//!
//! Texts are short and generic; what went on is in the mail log. Codes: RFC 5321 section 4.2,
//! enhanced codes: RFC 3463 and the registry of RFC 5248.

use std::borrow::Cow;
use std::fmt;

use crate::mail::MessageId;

/// One reply: `code enhanced text`, in several lines only for EHLO.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    pub code: u16,
    /// Empty where RFC 2034 section 4 asks for none: greeting, HELO, EHLO, 3xx.
    pub enhanced: &'static str,
    pub text: Cow<'static, str>,
}

macro_rules! replies {
    ($( $(#[$doc:meta])* $name:ident ( $($argument:ident : $type:ty),* ) = $code:literal $enhanced:literal $text:literal; )*) => {
        impl Reply {
            $( $(#[$doc])* pub fn $name($($argument: $type),*) -> Self {
                Self { code: $code, enhanced: $enhanced, text: Cow::Owned(format!($text)) }
            } )*

            /// Names of all replies, for the test that holds the table against the documents.
            pub const NAMES: &[&str] = &[$(stringify!($name)),*];
        }
    };
}

replies! {
    greeting(hostname: &str) = 220 "" "{hostname} ESMTP outgate";
    bye() = 221 "2.0.0" "bye";
    hello(hostname: &str) = 250 "" "{hostname}";
    ok() = 250 "2.0.0" "ok";
    help() = 214 "2.0.0" "see RFC 5321 and RFC 6409";
    vrfy() = 252 "2.1.5" "send mail and see";
    ready_for_tls() = 220 "2.0.0" "ready to start TLS";
    challenge(base64: &str) = 334 "" "{base64}";
    auth_ok() = 235 "2.7.0" "authenticated";
    sender_ok() = 250 "2.1.0" "sender ok";
    recipient_ok() = 250 "2.1.5" "recipient ok";
    start_data() = 354 "" "end data with <CR><LF>.<CR><LF>";
    chunk_ok(octets: u64) = 250 "2.0.0" "{octets} octets received";
    accepted(id: MessageId) = 250 "2.0.0" "accepted as {id}";

    // The session cannot begin or go on.
    too_many_from_address() = 421 "4.7.0" "too many connections from your address";
    too_many_from_user() = 421 "4.7.0" "too many connections of this user";
    address_blocked() = 421 "4.7.0" "too many failed logins from your address, try later";
    /// No quorum, draining, shutting down.
    not_now() = 421 "4.3.2" "service not available, try another address";
    disk_full() = 452 "4.3.1" "insufficient system storage";
    timeout() = 421 "4.4.2" "timeout, closing";
    too_slow() = 421 "4.4.2" "message comes too slowly, closing";
    too_many_errors() = 421 "4.7.0" "too many errors, closing";
    too_many_verbs() = 421 "4.7.0" "too many commands, closing";
    too_many_messages() = 421 "4.7.0" "too many messages in one session, closing";

    // Protocol.
    unknown_verb() = 500 "5.5.1" "command not recognised";
    not_implemented() = 502 "5.5.1" "command not implemented";
    syntax(expected: &str) = 501 "5.5.4" "syntax: {expected}";
    unknown_parameter() = 555 "5.5.4" "parameter not recognised";
    bad_sequence(expected: &str) = 503 "5.5.1" "bad sequence of commands: {expected}";
    line_too_long() = 500 "5.5.2" "line too long";
    /// A bare CR, a bare LF or a NUL outside of a message.
    bad_octets() = 500 "5.5.2" "lines end with CRLF and hold no CR, LF or NUL";
    tls_required() = 530 "5.7.0" "must issue a STARTTLS command first";

    // AUTH.
    auth_needs_tls() = 538 "5.7.11" "encryption required for authentication";
    auth_unknown_mechanism() = 504 "5.5.4" "mechanism not known";
    auth_malformed() = 501 "5.5.2" "cannot decode the response";
    auth_cancelled() = 501 "5.7.0" "authentication cancelled";
    auth_failed() = 535 "5.7.8" "authentication credentials invalid";
    auth_unavailable() = 454 "4.7.0" "temporary authentication failure";
    not_authenticated() = 530 "5.7.0" "authentication required";

    // MAIL.
    sender_malformed() = 553 "5.1.7" "sender address malformed";
    sender_domain_unknown() = 550 "5.1.8" "sender domain has neither MX nor address";
    sender_null_mx() = 550 "5.7.27" "sender domain does not accept mail";
    dns_failure() = 451 "4.4.3" "domain look-up failed, try later";
    sender_not_permitted() = 550 "5.7.1" "sender not permitted";
    too_large(limit: u64) = 552 "5.3.4" "message exceeds {limit} octets";
    /// `unit` is `messages` or `recipients`, `window` `minute` … `month`.
    limit(limit: u64, unit: &str, window: &str, retry_after_s: u64) = 451 "4.7.1" "limit of {limit} {unit} per {window} reached, retry after {retry_after_s} s";
    /// No wait helps: the message alone costs more than the limit.
    over_limit(limit: u64, unit: &str, window: &str) = 550 "5.7.1" "limit of {limit} {unit} per {window} is less than this message needs";
    non_ascii() = 553 "5.6.7" "non-ASCII addresses need SMTPUTF8";

    // RCPT.
    recipient_malformed() = 501 "5.1.3" "recipient address malformed";
    recipient_domain_unknown() = 550 "5.1.2" "recipient domain does not exist";
    recipient_null_mx() = 556 "5.1.10" "recipient domain does not accept mail";
    too_many_recipients() = 452 "4.5.3" "too many recipients";
    distinct_recipients(limit: u64) = 450 "4.7.1" "limit of {limit} different recipients per day reached";
    null_sender_many_recipients() = 550 "5.5.3" "a null sender may have one recipient";
    /// While the User is locked: a recipient beside the admin contact, or the contact beside another.
    locked_recipient() = 451 "4.7.1" "locked: write to the administrator in a message without other recipients";

    // End of DATA.
    locked_defer(who: &str, contact: &str) = 451 "4.7.1" "{who} is locked, contact {contact}";
    locked_reject(who: &str, contact: &str) = 550 "5.7.1" "{who} is locked, contact {contact}";
    spam(id: MessageId) = 550 "5.7.1" "message {id} refused as spam";
    virus(id: MessageId) = 550 "5.7.1" "message {id} refused, it carries a virus";
    from_not_permitted(id: MessageId) = 550 "5.7.1" "message {id} refused, header From not permitted";
    structure(id: MessageId, what: &str) = 550 "5.6.0" "message {id} refused: {what}";
    /// RFC 5321 section 6.3.
    routing_loop(id: MessageId) = 554 "5.4.6" "message {id} refused: routing loop";
    scanner_failure() = 451 "4.3.0" "content check failed, try later";
    /// The decision did not come in time, or the store is busy.
    undecided() = 451 "4.3.0" "temporary failure, try later";
    no_recipients() = 554 "5.5.1" "no valid recipients";
}

impl Reply {
    pub fn is_error(&self) -> bool {
        self.code >= 400
    }

    /// The server closes the connection after this reply.
    pub fn closes(&self) -> bool {
        self.code == 421 || self.code == 221
    }

    /// As it goes to the client, with CRLF. A text of several lines becomes several reply lines (RFC 5321 section 4.2.1).
    pub fn wire(&self) -> String {
        let mut wire = String::with_capacity(self.text.len() + 16);
        self.write(&mut wire);
        wire
    }

    /// Appends [`Reply::wire`] to `output`.
    pub fn write(&self, output: &mut String) {
        let mut lines = self.text.split('\n').peekable();
        while let Some(text) = lines.next() {
            // A challenge without text still has its space: some clients look for it.
            let separator = if lines.peek().is_some() { '-' } else { ' ' };
            output.push_str(&self.code.to_string());
            output.push(separator);
            if !self.enhanced.is_empty() {
                output.push_str(self.enhanced);
                output.push(' ');
            }
            output.push_str(text);
            output.push_str("\r\n");
        }
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        for part in [self.enhanced, &self.text].into_iter().filter(|part| !part.is_empty()) {
            write!(f, " {part}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_joined_with_hyphens_and_the_last_with_a_space() {
        assert_eq!(Reply::ok().wire(), "250 2.0.0 ok\r\n");
        assert_eq!(Reply::hello("mx\nPIPELINING").wire(), "250-mx\r\n250 PIPELINING\r\n");
        assert_eq!(Reply::challenge("").wire(), "334 \r\n");
    }

    #[test]
    fn only_421_and_221_close() {
        assert!(Reply::bye().closes() && Reply::timeout().closes());
        assert!(!Reply::ok().closes() && !Reply::unknown_verb().closes());
    }
}
