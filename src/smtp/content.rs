//! The content of a message as it comes in: DATA with its dots, BDAT with its chunks.
//!
//! Runs of ordinary octets are found with `memchr` and copied as a whole. RFC 5321 section 4.5.2 (dots), section 2.3.8
//! (only CRLF ends a line), RFC 3030 (chunks).

use bytes::{Buf, Bytes, BytesMut};
use memchr::memchr3;

/// A message is read to its end to be refused, but never beyond this many times its limit.
const OVERSIZE_FACTOR_MAX: u64 = 4;
/// Room made at once where the client gave no size.
const FIRST_ROOM: usize = 4 * 1024;

/// Why the content cannot be a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    TooLarge {
        limit: u64,
    },
    BareCr,
    BareLf,
    Nul,
    /// The node had no memory for it.
    NoRoom,
}

/// The octets of one message, unstuffed. Nothing is kept once there is a fault.
#[derive(Debug)]
pub(super) struct Content {
    bytes: BytesMut,
    size: u64,
    size_max: u64,
    fault: Option<Fault>,
    /// BDAT: the last octet seen was a CR.
    cr_pending: bool,
    /// DATA: the next octet begins a line.
    at_line_start: bool,
}

impl Content {
    pub(super) fn new(size_max: u64, declared: Option<u64>) -> Self {
        let room = usize::try_from(declared.unwrap_or(0).min(size_max)).unwrap_or(0).max(FIRST_ROOM);
        Self {
            bytes: BytesMut::with_capacity(room),
            size: 0,
            size_max,
            fault: None,
            cr_pending: false,
            at_line_start: true,
        }
    }

    /// Octets of memory in use.
    pub(super) fn held(&self) -> usize {
        self.bytes.capacity()
    }

    /// Whether `more` octets would pass the bound up to which a message is read only to be refused.
    pub(super) fn is_endless_with(&self, more: u64) -> bool {
        self.size.saturating_add(more) > self.size_max.saturating_mul(OVERSIZE_FACTOR_MAX)
    }

    /// Counts `more` octets that nobody will read; the message is too large.
    pub(super) fn overflow(&mut self, more: u64) {
        self.size = self.size.saturating_add(more);
        self.note(Fault::TooLarge { limit: self.size_max });
    }

    /// Keeps nothing of it from now on.
    pub(super) fn abandon(&mut self) {
        self.note(Fault::NoRoom);
    }

    pub(super) fn is_faulty(&self) -> bool {
        self.fault.is_some()
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Takes what it can of DATA off `input`; true once CRLF.CRLF was taken. At most two octets stay undecided.
    pub(super) fn take_dotted(&mut self, input: &mut BytesMut) -> bool {
        let (mut run, mut at) = (0, 0);
        while at < input.len() {
            if self.at_line_start && input[at] == b'.' {
                match input[at + 1..] {
                    [] | [b'\r'] => break,
                    [b'\r', b'\n', ..] => {
                        self.push(&input[run..at]);
                        input.advance(at + 3);
                        return true;
                    }
                    [..] => {
                        self.push(&input[run..at]);
                        run = at + 1;
                        at = run;
                    }
                }
            }
            self.at_line_start = false;
            match self.next_line(&input[at..]) {
                Some(length) => at += length,
                None => {
                    at = input.len() - usize::from(input.ends_with(b"\r"));
                    break;
                }
            }
        }
        self.push(&input[run..at]);
        input.advance(at);
        false
    }

    /// Length of the octets up to and with the next line end or fault; `None` where neither is in sight.
    fn next_line(&mut self, rest: &[u8]) -> Option<usize> {
        let at = memchr3(b'\r', b'\n', 0, rest)?;
        match (rest[at], rest.get(at + 1)) {
            (b'\r', Some(b'\n')) => {
                self.at_line_start = true;
                return Some(at + 2);
            }
            (b'\r', None) => return None,
            (b'\r', Some(_)) => self.note(Fault::BareCr),
            (b'\n', _) => self.note(Fault::BareLf),
            _ => self.note(Fault::Nul),
        }
        Some(at + 1)
    }

    /// Takes octets of a chunk, which has neither dots nor an end mark.
    pub(super) fn take_chunk(&mut self, octets: &[u8]) {
        let Some(&first) = octets.first() else { return };
        let mut at = 0;
        if std::mem::take(&mut self.cr_pending) {
            if first == b'\n' {
                at = 1;
            } else {
                self.note(Fault::BareCr);
            }
        }
        while let Some(found) = memchr3(b'\r', b'\n', 0, &octets[at..]).map(|found| at + found) {
            at = found + 1;
            match (octets[found], octets.get(at)) {
                (b'\r', Some(b'\n')) => at += 1,
                (b'\r', None) => self.cr_pending = true,
                (b'\r', Some(_)) => self.note(Fault::BareCr),
                (b'\n', _) => self.note(Fault::BareLf),
                _ => self.note(Fault::Nul),
            }
        }
        self.push(octets);
    }

    /// The message, or why there is none, after the last octet. A last line without CRLF gets one.
    pub(super) fn finish(mut self) -> (u64, Result<Bytes, Fault>) {
        if self.cr_pending {
            self.note(Fault::BareCr);
        }
        if let Some(fault) = self.fault {
            return (self.size, Err(fault));
        }
        if !self.bytes.is_empty() && !self.bytes.ends_with(b"\r\n") {
            self.bytes.extend_from_slice(b"\r\n");
        }
        (self.size, Ok(self.bytes.freeze()))
    }

    fn push(&mut self, run: &[u8]) {
        self.size = self.size.saturating_add(run.len() as u64);
        if self.size > self.size_max {
            self.note(Fault::TooLarge { limit: self.size_max });
        }
        if self.fault.is_none() {
            self.bytes.extend_from_slice(run);
        }
    }

    /// The first fault counts.
    fn note(&mut self, fault: Fault) {
        if self.fault.is_none() {
            self.fault = Some(fault);
            self.bytes = BytesMut::new();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used, reason = "tests")]

    use super::*;

    fn dotted(input: &[u8]) -> Option<(Result<Bytes, Fault>, usize)> {
        let mut content = Content::new(1000, None);
        let mut input = BytesMut::from(input);
        content.take_dotted(&mut input).then(|| (content.finish().1, input.len()))
    }

    fn message(input: &'static [u8]) -> Option<(Result<Bytes, Fault>, usize)> {
        Some((Ok(Bytes::from_static(input)), 0))
    }

    #[test]
    fn dots_are_unstuffed() {
        assert_eq!(dotted(b".\r\n"), message(b""));
        assert_eq!(dotted(b"a\r\n.\r\n"), message(b"a\r\n"));
        assert_eq!(dotted(b"..a\r\n.b\r\n...\r\n.\r\n"), message(b".a\r\nb\r\n..\r\n"));
        assert_eq!(dotted(b"a.\r\n.\r\nQUIT"), Some((Ok(Bytes::from_static(b"a.\r\n")), 4)));
    }

    #[test]
    fn nothing_but_crlf_dot_crlf_ends_a_message() {
        for end in
            ["\n.\n", "\n.\r\n", "\r\n.\n", "\r.\r", "\r.\r\n", "\r\n.\r", "\r\n.\r\r\n", "\r\n.\0\r\n", "\r\n\0.\r\n"]
        {
            let input = format!("a{end}MAIL FROM:<>\r\n");
            assert_eq!(dotted(input.as_bytes()), None, "{end:?} ended it");
            let (content, rest) = dotted(format!("{input}.\r\n").as_bytes()).expect("ended");
            assert!(content.is_err() && rest == 0, "{end:?} was taken as content");
        }
    }

    #[test]
    fn faults_are_named() {
        assert_eq!(dotted(b"a\rb\r\n.\r\n"), Some((Err(Fault::BareCr), 0)));
        assert_eq!(dotted(b"a\nb\r\n.\r\n"), Some((Err(Fault::BareLf), 0)));
        assert_eq!(dotted(b"a\0b\r\n.\r\n"), Some((Err(Fault::Nul), 0)));
        let large = [&[b'a'; 1001][..], b"\r\n.\r\n"].concat();
        assert_eq!(dotted(&large), Some((Err(Fault::TooLarge { limit: 1000 }), 0)));
    }

    #[test]
    fn the_limit_itself_fits() {
        let exact = [&[b'a'; 998][..], b"\r\n.\r\n"].concat();
        assert!(dotted(&exact).expect("ended").0.is_ok());
    }

    fn chunked(pieces: &[&[u8]]) -> Result<Bytes, Fault> {
        let mut content = Content::new(1000, None);
        pieces.iter().for_each(|piece| content.take_chunk(piece));
        content.finish().1
    }

    #[test]
    fn chunks_are_joined_and_ended() {
        assert_eq!(chunked(&[b"a\r", b"", b"\n.\r\nb"]), Ok(Bytes::from_static(b"a\r\n.\r\nb\r\n")));
        assert_eq!(chunked(&[]), Ok(Bytes::new()));
        assert_eq!(chunked(&[b"a\r", b"b"]), Err(Fault::BareCr));
        assert_eq!(chunked(&[b"a\r"]), Err(Fault::BareCr));
        assert_eq!(chunked(&[b"a", b"\n"]), Err(Fault::BareLf));
        assert_eq!(chunked(&[b"\0"]), Err(Fault::Nul));
    }

    #[test]
    fn a_fault_frees_the_memory() {
        let mut content = Content::new(1 << 20, Some(1 << 20));
        assert!(content.held() >= 1 << 20);
        content.take_chunk(b"\n");
        assert_eq!(content.held(), 0);
        assert!(!content.is_endless_with(4 << 19) && content.is_endless_with(4 << 20));
    }
}
