//! Lines of verbs: found once, bounded, and ended by CRLF alone.

use bytes::{Buf, BytesMut};
use memchr::{memchr, memchr2};

/// What stands at the front of the input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Line {
    /// So many octets, with a CRLF behind them, all still in the input.
    Whole(usize),
    Incomplete,
    /// Was taken off the input to its end.
    TooLong,
    /// Had a bare CR, a bare LF or a NUL; was taken off the input.
    BadOctets,
}

/// Remembers how far the input was searched, so that a line in many pieces is not searched again.
#[derive(Default, Debug)]
pub(super) struct Lines {
    searched: usize,
    /// In the middle of a line that was too long.
    swallowing: bool,
}

impl Lines {
    /// The next line; `length_max` counts its octets with CRLF.
    pub(super) fn next(&mut self, input: &mut BytesMut, length_max: usize) -> Line {
        let Some(at) = memchr(b'\n', &input[self.searched..]).map(|at| self.searched + at) else {
            return self.without_end(input, length_max);
        };
        self.searched = 0;
        if std::mem::take(&mut self.swallowing) || at + 1 > length_max {
            input.advance(at + 1);
            return Line::TooLong;
        }
        if at == 0 || input[at - 1] != b'\r' || memchr2(b'\r', 0, &input[..at - 1]).is_some() {
            input.advance(at + 1);
            return Line::BadOctets;
        }
        Line::Whole(at - 1)
    }

    fn without_end(&mut self, input: &mut BytesMut, length_max: usize) -> Line {
        self.swallowing |= input.len() >= length_max;
        if self.swallowing {
            input.clear();
        }
        self.searched = input.len();
        Line::Incomplete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(input: &[u8]) -> Vec<Line> {
        let mut input = BytesMut::from(input);
        let mut lines = Lines::default();
        let mut found = Vec::new();
        loop {
            let line = lines.next(&mut input, 10);
            match line {
                Line::Incomplete => return found,
                Line::Whole(length) => input.advance(length + 2),
                Line::TooLong | Line::BadOctets => {}
            }
            found.push(line);
        }
    }

    #[test]
    fn only_crlf_ends_a_line() {
        assert_eq!(lines(b"NOOP\r\n\r\n"), [Line::Whole(4), Line::Whole(0)]);
        assert_eq!(lines(b"NOOP\nA\rB\r\nC\0\r\n\n"), [Line::BadOctets; 4]);
        assert_eq!(lines(b"NOOP\r"), []);
    }

    #[test]
    fn a_long_line_is_swallowed_to_its_end() {
        assert_eq!(lines(b"12345678\r\n"), [Line::Whole(8)]);
        assert_eq!(lines(b"123456789\r\nA\r\n"), [Line::TooLong, Line::Whole(1)]);
        let mut lines = Lines::default();
        let mut input = BytesMut::from(&b"0123456789abc"[..]);
        assert_eq!(lines.next(&mut input, 10), Line::Incomplete);
        assert!(input.is_empty(), "nothing of it is kept");
        input.extend_from_slice(b"def\r\nA\r\n");
        assert_eq!(lines.next(&mut input, 10), Line::TooLong);
        assert_eq!(lines.next(&mut input, 10), Line::Whole(1));
    }
}
