//! The bytes of a message and its header fields, byte for byte.

use bytes::Bytes;

/// A whole message with CRLF line ends, without dot-stuffing. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    bytes: Bytes,
    body_start: usize,
}

/// One header field as it stands in the message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header<'a> {
    /// Without the colon, as spelled.
    pub name: &'a str,
    /// Behind the colon, with folds, without the last CRLF.
    pub value: &'a [u8],
    /// The whole field with its CRLFs.
    pub raw: &'a [u8],
}

impl Message {
    pub fn new(bytes: Bytes) -> Self {
        let body_start = find_body(&bytes);
        Self { bytes, body_start }
    }

    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The header section without the empty line that ends it.
    pub fn header_section(&self) -> &[u8] {
        let section = &self.bytes[..self.body_start];
        if section.ends_with(b"\r\n\r\n") || section == b"\r\n" { &section[..section.len() - 2] } else { section }
    }

    /// What follows the empty line.
    pub fn body(&self) -> &[u8] {
        &self.bytes[self.body_start..]
    }

    /// Header fields from the top; lines that are no field are passed over.
    pub fn headers(&self) -> impl Iterator<Item = Header<'_>> {
        Fields { rest: self.header_section() }.filter_map(parse_field)
    }

    /// Where the header section's first line stands that is neither a field nor the fold of one. What follows is a field
    /// to one reader and body to another.
    pub fn broken_header(&self) -> Option<usize> {
        let section = self.header_section();
        let is_broken = |raw: &&[u8]| raw.starts_with(b" ") || raw.starts_with(b"\t") || parse_field(raw).is_none();
        let broken = Fields { rest: section }.find(is_broken)?;
        Some(broken.as_ptr().addr() - section.as_ptr().addr())
    }

    /// The fields with this name, compared without case.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Header<'a>> {
        self.headers().filter(move |header| header.name.eq_ignore_ascii_case(name))
    }
}

impl Header<'_> {
    /// The value unfolded (RFC 5322 section 2.2.3) and trimmed, invalid UTF-8 replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.value).replace("\r\n", "").trim().to_owned()
    }
}

/// Position behind the first empty line; the end where there is none.
fn find_body(bytes: &[u8]) -> usize {
    if bytes.starts_with(b"\r\n") {
        return 2;
    }
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map_or(bytes.len(), |at| at + 4)
}

/// Splits a header section into raw fields: a line and the folded lines behind it.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Fields<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        let mut end = line_end(self.rest, 0);
        while matches!(self.rest.get(end), Some(b' ' | b'\t')) {
            end = line_end(self.rest, end);
        }
        let (field, rest) = self.rest.split_at(end);
        self.rest = rest;
        Some(field)
    }
}

fn line_end(bytes: &[u8], from: usize) -> usize {
    bytes[from..].iter().position(|&b| b == b'\n').map_or(bytes.len(), |at| from + at + 1)
}

fn parse_field(raw: &[u8]) -> Option<Header<'_>> {
    let colon = raw.iter().position(|&b| b == b':')?;
    let name = std::str::from_utf8(&raw[..colon]).ok()?.trim_end_matches([' ', '\t']);
    let valid = !name.is_empty() && name.bytes().all(|b| (33..=126).contains(&b));
    let value = raw[colon + 1..].strip_suffix(b"\r\n").unwrap_or(&raw[colon + 1..]);
    valid.then_some(Header { name, value, raw })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_fields_and_body() {
        let message = Message::new(Bytes::from_static(b"A: 1\r\n folded\r\nbroken line\r\nb : 2\r\n\r\nbody\r\n"));
        let names: Vec<_> = message.headers().map(|h| (h.name, h.text())).collect();
        assert_eq!(names, [("A", "1 folded".to_owned()), ("b", "2".to_owned())]);
        assert_eq!(message.body(), b"body\r\n");
    }

    #[test]
    fn finds_the_first_line_that_is_no_field() {
        for (text, expected) in [
            ("", None),
            ("\r\nno field\r\n", None),
            ("A: 1\r\n folded: \r\n\t\r\nb : 2\r\n", None),
            ("no field\r\nA: 1\r\n\r\n", Some(0)),
            ("no field\r\n folded: x\r\n\r\n", Some(0)),
            ("From alice@example.com Fri Nov 20 10:00:00 2026\r\nA: 1\r\n\r\n", Some(0)),
            (" fold: of nothing\r\nA: 1\r\n\r\n", Some(0)),
            (" \r\n\r\nbody", Some(0)),
            ("A: 1\r\n: no name\r\n\r\n", Some(6)),
            ("A: 1\r\nno field\r\nB: 2\r\n\r\n", Some(6)),
            ("A: 1\r\nno end", Some(6)),
        ] {
            assert_eq!(Message::new(Bytes::from_static(text.as_bytes())).broken_header(), expected, "{text:?}");
        }
    }

    #[test]
    fn a_message_may_lack_headers_or_body() {
        assert_eq!(Message::new(Bytes::from_static(b"\r\nbody")).headers().count(), 0);
        let only_headers = Message::new(Bytes::from_static(b"A: 1\r\n"));
        assert_eq!((only_headers.headers().count(), only_headers.body().len()), (1, 0));
    }
}
