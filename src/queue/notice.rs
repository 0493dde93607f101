//! Delivery status notifications (RFC 3461, 3464; RFC 6533 where addresses are not ASCII).

use std::fmt::Write as _;
use std::net::IpAddr;

use bytes::Bytes;

use super::NewMessage;
use super::entry::{Action, Entry, Reported};
use crate::mail::{Address, Body, Envelope, Message, MessageId, Notify, Recipient, Return, ReversePath};

/// Without RET, a larger message comes back as its headers alone.
const FULL_MAX_BYTES: usize = 64 << 10;
const TEXT_MAX_CHARS: usize = 400;

/// The notice to the sender of `entry`, from the null path; `None` where there is nobody to tell.
pub(crate) fn build(
    entry: &Entry,
    original: Option<&Message>,
    reported: &[Reported],
    hostname: &str,
    now_ms: u64,
) -> Option<NewMessage> {
    let sender = entry.envelope.reverse_path.address()?.clone();
    let id = MessageId::generate();
    let utf8 = sender.needs_smtputf8() || reported.iter().any(|about| !entry.recipient(about.recipient).is_ascii());
    let mut notice = Notice { text: Vec::new(), entry, reported, hostname, now_ms, utf8, id };
    notice.write(&sender, original);
    let body = if notice.text.is_ascii() { Body::SevenBit } else { Body::EightBitMime };
    let envelope = Envelope {
        reverse_path: ReversePath::Null,
        recipients: vec![Recipient { address: sender, notify: Notify::default(), original: None }],
        body,
        smtputf8: utf8 || !Message::new(Bytes::copy_from_slice(&notice.text)).header_section().is_ascii(),
        ret: None,
        envid: None,
    };
    Some(NewMessage {
        id,
        envelope,
        message: Message::new(Bytes::from(notice.text)),
        login: None,
        domain: entry.domain.clone(),
        expires_ms: now_ms + entry.expires_ms.saturating_sub(entry.arrived_ms).max(3_600_000),
        admission: None,
    })
}

struct Notice<'a> {
    text: Vec<u8>,
    entry: &'a Entry,
    reported: &'a [Reported],
    hostname: &'a str,
    now_ms: u64,
    utf8: bool,
    id: MessageId,
}

impl Notice<'_> {
    fn line(&mut self, line: &str) {
        self.text.extend_from_slice(line.as_bytes());
        self.text.extend_from_slice(b"\r\n");
    }

    fn write(&mut self, sender: &Address, original: Option<&Message>) {
        let (id, host) = (self.id, self.hostname.to_owned());
        let boundary = format!("={id}=");
        let subject = self.subject();
        let parts = self.aside(|notice| notice.parts(&boundary, original));
        self.line(&format!("Date: {}", date(self.now_ms)));
        self.line(&format!("From: Mail Delivery System <MAILER-DAEMON@{host}>"));
        self.line(&format!("To: <{sender}>"));
        self.line(&format!("Subject: {subject}"));
        self.line(&format!("Message-ID: <{id}@{host}>"));
        self.line("Auto-Submitted: auto-replied");
        self.line("MIME-Version: 1.0");
        self.line(&format!("Content-Type: multipart/report; report-type=delivery-status;\r\n boundary=\"{boundary}\""));
        self.encoded(&parts);
    }

    fn parts(&mut self, boundary: &str, original: Option<&Message>) {
        self.part(boundary, "text/plain; charset=utf-8", Self::human);
        let kind = if self.utf8 { "message/global-delivery-status" } else { "message/delivery-status" };
        self.part(boundary, kind, Self::machine);
        if let Some(original) = original {
            self.original(boundary, original);
        }
        self.line(&format!("--{boundary}--"));
    }

    fn part(&mut self, boundary: &str, kind: &str, write: impl FnOnce(&mut Self)) {
        let content = self.aside(write);
        self.line(&format!("--{boundary}"));
        self.line(&format!("Content-Type: {kind}"));
        self.encoded(&content);
    }

    /// The last line of a part's header, and the part. RFC 3464 section 2.1 wants 7bit wherever it can be.
    fn encoded(&mut self, content: &[u8]) {
        let encoding = if content.is_ascii() { "7bit" } else { "8bit" };
        self.line(&format!("Content-Transfer-Encoding: {encoding}"));
        self.line("");
        self.text.extend_from_slice(content);
    }

    /// What `write` writes, apart from the text so far.
    fn aside(&mut self, write: impl FnOnce(&mut Self)) -> Vec<u8> {
        let before = std::mem::take(&mut self.text);
        write(self);
        std::mem::replace(&mut self.text, before)
    }

    fn has(&self, actions: &[Action]) -> bool {
        self.reported.iter().any(|about| actions.contains(&about.action))
    }

    fn subject(&self) -> &'static str {
        if self.has(&[Action::Failed, Action::Expired]) {
            "Undelivered mail returned to sender"
        } else if self.has(&[Action::Delayed]) {
            "Delayed mail (still being retried)"
        } else {
            "Mail was relayed"
        }
    }

    fn human(&mut self) {
        self.line(&format!("This is the mail system at {}.", self.hostname));
        let texts = [
            (Action::Failed, "Your message could not be delivered to:"),
            (Action::Expired, "Your message could not be delivered in time, and is no longer tried, to:"),
            (Action::Delayed, "Your message has not been delivered yet, and is still tried, to:"),
            (Action::Relayed, "Your message was handed on to a system that may send no notice of its own, for:"),
        ];
        let reported = self.reported;
        for (action, text) in texts {
            let mut about_these = reported.iter().filter(|about| about.action == action).peekable();
            if about_these.peek().is_none() {
                continue;
            }
            self.line("");
            self.line(text);
            for about in about_these {
                self.line("");
                self.line(&format!("  <{}>", self.entry.recipient(about.recipient)));
                let by = if about.answer.host.is_empty() { "" } else { ": " };
                self.line(&format!("    {}{by}{}", about.answer.host, brief(&about.answer.reply)));
            }
        }
        self.line("");
    }

    fn machine(&mut self) {
        let envid = self.entry.envelope.envid.as_deref().map(printable);
        if let Some(envid) = envid {
            self.line(&format!("Original-Envelope-Id: {envid}"));
        }
        self.line(&format!("Reporting-MTA: dns; {}", self.hostname));
        self.line(&format!("Arrival-Date: {}", date(self.entry.arrived_ms)));
        for about in self.reported {
            self.recipient(about);
        }
        self.line("");
    }

    fn recipient(&mut self, about: &Reported) {
        let Some(recipient) = self.entry.envelope.recipients.get(about.recipient) else { return };
        self.line("");
        if let Some(original) = &recipient.original {
            let original = original.replacen(';', "; ", 1);
            self.line(&format!("Original-Recipient: {}", printable(&original)));
        }
        let kind = if recipient.address.needs_smtputf8() { "utf-8" } else { "rfc822" };
        self.line(&format!("Final-Recipient: {kind}; {}", recipient.address));
        let (action, status) = match about.action {
            Action::Failed => ("failed", about.answer.status.as_str()),
            Action::Expired => ("failed", "5.4.7"),
            Action::Delayed => ("delayed", about.answer.status.as_str()),
            Action::Relayed => ("relayed", about.answer.status.as_str()),
        };
        self.line(&format!("Action: {action}"));
        self.line(&format!("Status: {status}"));
        if about.answer.remote {
            self.line(&format!("Remote-MTA: dns; {}", printable(&domain(&about.answer.host))));
            self.line(&format!("Diagnostic-Code: smtp; {}", printable(&brief(&about.answer.reply))));
        }
        self.line(&format!("Last-Attempt-Date: {}", date(self.now_ms)));
        if about.action == Action::Delayed {
            self.line(&format!("Will-Retry-Until: {}", date(self.entry.expires_ms)));
        }
    }

    /// RET governs notices of failures; the others carry headers alone (RFC 3461 section 6.2).
    fn original(&mut self, boundary: &str, original: &Message) {
        let failed = self.has(&[Action::Failed, Action::Expired]);
        let full = failed
            && match self.entry.envelope.ret {
                Some(Return::Full) => true,
                Some(Return::Headers) => false,
                None => original.size() <= FULL_MAX_BYTES,
            };
        let ascii = original.header_section().is_ascii();
        let kind = match (full, ascii) {
            (true, true) => "message/rfc822",
            (true, false) => "message/global",
            (false, true) => "text/rfc822-headers",
            (false, false) => "message/global-headers",
        };
        let bytes: &[u8] = if full { original.bytes() } else { original.header_section() };
        self.part(boundary, kind, |notice| {
            notice.text.extend_from_slice(bytes);
            if !bytes.ends_with(b"\r\n") {
                notice.line("");
            }
            notice.line("");
        });
    }
}

fn brief(text: &str) -> String {
    text.chars().take(TEXT_MAX_CHARS).collect()
}

/// A host as RFC 5321 writes a domain: an address becomes a literal (RFC 3464 section 2.3.5).
fn domain(host: &str) -> String {
    match host.parse() {
        Ok(IpAddr::V4(v4)) => format!("[{v4}]"),
        Ok(IpAddr::V6(v6)) => format!("[IPv6:{v6}]"),
        Err(_) => host.to_owned(),
    }
}

/// What a hop or client gave, fit for a header field.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' }).collect()
}

/// RFC 5322 section 3.3, in UTC.
fn date(ms: u64) -> String {
    let stamp = i64::try_from(ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok()).unwrap_or_default();
    let zoned = stamp.to_zoned(jiff::tz::TimeZone::UTC);
    jiff::fmt::rfc2822::to_string(&zoned).unwrap_or_else(|_| {
        let mut text = String::new();
        // The year is out of range for RFC 5322: better an odd date than none.
        if write!(text, "{zoned}").is_err() {
            text.clear();
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_or_literals() {
        for (host, expected) in [
            ("mx.example.net", "mx.example.net"),
            ("192.0.2.1", "[192.0.2.1]"),
            ("2001:db8::1", "[IPv6:2001:db8::1]"),
            ("[192.0.2.1]", "[192.0.2.1]"),
        ] {
            assert_eq!(domain(host), expected);
        }
    }
}
