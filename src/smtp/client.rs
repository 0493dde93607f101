//! The client side of SMTP as pure functions: replies parsed with bounds, verbs written, bodies stuffed.
//!
//! What leaves here never has a bare CR or LF, a NUL or an un-doubled dot: [`CleanBody`] exists only for bytes that
//! were checked, and only it can be written.

use std::fmt::Write as _;

use crate::mail::{Body, Envelope, Recipient, Return};

/// RFC 5321 section 4.5.3.1.5 allows 512 octets; some servers are chatty.
pub const REPLY_LINE_MAX_BYTES: usize = 4096;
pub const REPLY_LINES_MAX: usize = 100;

/// A whole reply of a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerReply {
    /// 200 … 599.
    pub code: u16,
    /// Without codes, one string a line; control characters replaced by blanks.
    pub lines: Vec<String>,
}

#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplyError {
    #[error("a reply line has more than {REPLY_LINE_MAX_BYTES} octets")]
    LineTooLong,
    #[error("a reply has more than {REPLY_LINES_MAX} lines")]
    TooManyLines,
    #[error("the server sent something that is no reply")]
    Malformed,
}

/// What EHLO offered.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Extensions {
    pub pipelining: bool,
    pub eight_bit_mime: bool,
    pub smtputf8: bool,
    pub dsn: bool,
    pub starttls: bool,
    pub auth_plain: bool,
    /// `None` = not offered or without a limit.
    pub size_max: Option<u64>,
}

impl ServerReply {
    /// Takes one reply from the front of `buffer`; `None` = it is not all there yet.
    pub fn take(buffer: &mut Vec<u8>) -> Result<Option<Self>, ReplyError> {
        let mut lines = Vec::new();
        let mut code = None;
        let mut at = 0;
        loop {
            let rest = &buffer[at..];
            let Some(length) = rest.iter().position(|&byte| byte == b'\n') else {
                return if rest.len() > REPLY_LINE_MAX_BYTES { Err(ReplyError::LineTooLong) } else { Ok(None) };
            };
            if length > REPLY_LINE_MAX_BYTES {
                return Err(ReplyError::LineTooLong);
            }
            let (line_code, is_last, text) = parse_line(&rest[..length])?;
            if *code.get_or_insert(line_code) != line_code {
                return Err(ReplyError::Malformed);
            }
            lines.push(text);
            at += length + 1;
            if is_last {
                buffer.drain(..at);
                return Ok(Some(Self { code: line_code, lines }));
            }
            if lines.len() >= REPLY_LINES_MAX {
                return Err(ReplyError::TooManyLines);
            }
        }
    }

    pub fn is_positive(&self) -> bool {
        (200..300).contains(&self.code)
    }

    pub fn is_permanent(&self) -> bool {
        (500..600).contains(&self.code)
    }

    /// The enhanced code (RFC 3463) at the beginning of the text, if it has one of the reply's class.
    pub fn enhanced(&self) -> Option<&str> {
        let word = self.lines.first()?.split(' ').next()?;
        let mut parts = word.split('.');
        let class: u16 = parts.next()?.parse().ok()?;
        let number = |part: &str| (1..=3).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
        let valid = parts.next().is_some_and(number) && parts.next().is_some_and(number) && parts.next().is_none();
        (valid && class == self.code / 100).then_some(word)
    }

    /// `code text text`, in one line.
    pub fn text(&self) -> String {
        let mut text = self.code.to_string();
        for line in self.lines.iter().filter(|line| !line.is_empty()) {
            text.push(' ');
            text.push_str(line);
        }
        text
    }
}

/// (code, is the last line, text) of a line without its LF.
fn parse_line(line: &[u8]) -> Result<(u16, bool, String), ReplyError> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let (digits, rest) = line.split_at_checked(3).ok_or(ReplyError::Malformed)?;
    if !digits.iter().all(u8::is_ascii_digit) || !(b'2'..=b'5').contains(&digits[0]) {
        return Err(ReplyError::Malformed);
    }
    let code = digits.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
    let (is_last, text) = match rest.split_first() {
        None => (true, rest),
        Some((b' ', text)) => (true, text),
        Some((b'-', text)) => (false, text),
        Some(_) => return Err(ReplyError::Malformed),
    };
    let text = String::from_utf8_lossy(text).replace(char::is_control, " ");
    Ok((code, is_last, text.trim_end().to_owned()))
}

impl Extensions {
    /// Reads the reply to EHLO; its first line is the server's name.
    pub fn parse(reply: &ServerReply) -> Self {
        let mut found = Self::default();
        for line in reply.lines.iter().skip(1) {
            let line = line.to_ascii_uppercase();
            let mut words = line.split([' ', '=']);
            match words.next() {
                Some("PIPELINING") => found.pipelining = true,
                Some("8BITMIME") => found.eight_bit_mime = true,
                Some("SMTPUTF8") => found.smtputf8 = true,
                Some("DSN") => found.dsn = true,
                Some("STARTTLS") => found.starttls = true,
                Some("AUTH") => found.auth_plain |= words.any(|mechanism| mechanism == "PLAIN"),
                Some("SIZE") => found.size_max = words.next().and_then(|size| size.parse().ok()).filter(|&max| max > 0),
                Some(_) | None => {}
            }
        }
        found
    }
}

/// Whether only a hop with SMTPUTF8 can take this transaction: a local part or a header is not ASCII.
/// A domain alone can be written in A-labels.
pub fn needs_smtputf8<'a>(
    envelope: &Envelope,
    mut recipients: impl Iterator<Item = &'a Recipient>,
    header_section: &[u8],
) -> bool {
    envelope.smtputf8
        && (envelope.reverse_path.address().is_some_and(|address| !address.local().is_ascii())
            || recipients.any(|recipient| !recipient.address.local().is_ascii())
            || !header_section.is_ascii())
}

/// `MAIL FROM:<…> …` with the parameters that the hop offers.
pub fn write_mail(line: &mut String, envelope: &Envelope, size: usize, offered: &Extensions, smtputf8: bool) {
    line.push_str("MAIL FROM:<");
    if let Some(address) = envelope.reverse_path.address() {
        write_address(line, address, smtputf8);
    }
    line.push('>');
    if offered.size_max.is_some() {
        write_number(line, " SIZE=", size);
    }
    if offered.eight_bit_mime && (smtputf8 || envelope.body == Body::EightBitMime) {
        line.push_str(" BODY=8BITMIME");
    }
    if smtputf8 {
        line.push_str(" SMTPUTF8");
    }
    if offered.dsn {
        match envelope.ret {
            Some(Return::Full) => line.push_str(" RET=FULL"),
            Some(Return::Headers) => line.push_str(" RET=HDRS"),
            None => {}
        }
        if let Some(envid) = envelope.envid.as_deref().filter(|envid| envid.is_ascii()) {
            line.push_str(" ENVID=");
            write_xtext(line, envid);
        }
    }
    line.push_str("\r\n");
}

/// `RCPT TO:<…> …`.
pub fn write_rcpt(line: &mut String, recipient: &Recipient, offered: &Extensions, smtputf8: bool) {
    line.push_str("RCPT TO:<");
    write_address(line, &recipient.address, smtputf8);
    line.push('>');
    if offered.dsn && recipient.notify.explicit {
        let notify = recipient.notify;
        let words = [(notify.success, "SUCCESS"), (notify.failure, "FAILURE"), (notify.delay, "DELAY")];
        let mut separator = " NOTIFY=";
        for word in words.into_iter().filter_map(|(wanted, word)| wanted.then_some(word)) {
            line.push_str(separator);
            line.push_str(word);
            separator = ",";
        }
        if separator != "," {
            line.push_str(" NOTIFY=NEVER");
        }
    }
    if offered.dsn
        && let Some((kind, address)) = recipient.original.as_deref().and_then(|original| original.split_once(';'))
        && address.is_ascii()
    {
        line.push_str(" ORCPT=");
        line.push_str(kind);
        line.push(';');
        write_xtext(line, address);
    }
    line.push_str("\r\n");
}

/// As it is with SMTPUTF8, else with the domain in A-labels.
fn write_address(line: &mut String, address: &crate::mail::Address, smtputf8: bool) {
    if smtputf8 || address.domain().is_ascii() {
        line.push_str(address.as_str());
    } else {
        line.push_str(address.local());
        line.push('@');
        line.push_str(&address.dns_domain().unwrap_or_else(|| address.domain().to_owned()));
    }
}

fn write_number(line: &mut String, name: &str, number: usize) {
    line.push_str(name);
    line.push_str(&number.to_string());
}

/// RFC 3461 section 4: `+` and `=` and everything outside of `!` … `~` as `+XX`.
fn write_xtext(line: &mut String, text: &str) {
    for byte in text.bytes() {
        if (b'!'..=b'~').contains(&byte) && byte != b'+' && byte != b'=' {
            line.push(char::from(byte));
        } else if write!(line, "+{byte:02X}").is_err() {
            return;
        }
    }
}

/// The bytes of a message that were found fit to leave.
#[derive(Clone, Copy, Debug)]
pub struct CleanBody<'a> {
    bytes: &'a [u8],
    has_dots: bool,
}

/// What must never leave.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unclean {
    #[error("the message has a CR without LF")]
    BareCr,
    #[error("the message has a LF without CR")]
    BareLf,
    #[error("the message has a NUL")]
    Nul,
}

/// Looked at together; text has few octets below 14, so most blocks pass in one comparison.
const BLOCK: usize = 32;

impl<'a> CleanBody<'a> {
    pub fn check(bytes: &'a [u8]) -> Result<Self, Unclean> {
        let mut has_dots = bytes.first() == Some(&b'.');
        for (number, block) in bytes.chunks(BLOCK).enumerate() {
            if !block.iter().fold(false, |found, &byte| found | (byte <= b'\r')) {
                continue;
            }
            let start = number * BLOCK;
            for (at, &byte) in block.iter().enumerate().filter(|(_, byte)| **byte <= b'\r') {
                let at = start + at;
                match byte {
                    0 => return Err(Unclean::Nul),
                    b'\r' if bytes.get(at + 1) != Some(&b'\n') => return Err(Unclean::BareCr),
                    b'\n' if at == 0 || bytes[at - 1] != b'\r' => return Err(Unclean::BareLf),
                    b'\n' => has_dots |= bytes.get(at + 1) == Some(&b'.'),
                    _ => {}
                }
            }
        }
        Ok(Self { bytes, has_dots })
    }

    /// The body as DATA wants it, in pieces of about `piece_max` octets, dots doubled, with the final dot.
    pub fn pieces(self, piece_max: usize) -> impl Iterator<Item = Vec<u8>> + 'a {
        let mut rest = self.bytes;
        let mut at_line_start = true;
        let mut ended = false;
        std::iter::from_fn(move || {
            if ended {
                return None;
            }
            let (now, later) = rest.split_at(rest.len().min(piece_max));
            rest = later;
            let mut piece = Vec::with_capacity(now.len() + now.len() / 64 + 8);
            if self.has_dots {
                stuff(&mut piece, now, &mut at_line_start)
            } else {
                piece.extend_from_slice(now)
            }
            if rest.is_empty() {
                ended = true;
                if !self.bytes.is_empty() && !self.bytes.ends_with(b"\r\n") {
                    piece.extend_from_slice(b"\r\n");
                }
                piece.extend_from_slice(b".\r\n");
            }
            Some(piece)
        })
    }
}

fn stuff(piece: &mut Vec<u8>, bytes: &[u8], at_line_start: &mut bool) {
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        if *at_line_start && line.starts_with(b".") {
            piece.push(b'.');
        }
        piece.extend_from_slice(line);
        *at_line_start = line.ends_with(b"\n");
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
