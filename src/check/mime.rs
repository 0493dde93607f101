//! The MIME tree of a message (RFC 2046 section 5), walked line by line without recursion.
//!
//! The walk keeps a stack of open boundaries. It ends at the first bound that is passed, so the cost of a line is a
//! comparison with at most [`DEPTH_MAX`] boundaries.

use bytes::Bytes;
use mail_parser::HeaderValue;
use mail_parser::parsers::MessageStream;

use crate::mail::Message;

pub(super) const PARTS_MAX: usize = 100;
pub(super) const DEPTH_MAX: usize = 10;
/// Longer Content-Type fields are no type that anybody writes.
const CONTENT_TYPE_LENGTH_MAX: usize = 8 << 10;

/// What the walk saw.
#[derive(Default)]
pub(super) struct Parts<'a> {
    pub(super) leaves: Vec<Leaf<'a>>,
    /// Entities below the message itself.
    pub(super) count: usize,
    pub(super) too_many: bool,
    pub(super) too_deep: bool,
    /// An entity of type `message/partial`: a virus in slices.
    pub(super) partial: bool,
}

/// A part that is not made of parts.
pub(super) struct Leaf<'a> {
    pub(super) encoding: Encoding,
    pub(super) bytes: &'a [u8],
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Encoding {
    Identity,
    Base64,
    QuotedPrintable,
}

pub(super) fn walk(message: &Message) -> Parts<'_> {
    let mut walk = Walk { bytes: message.bytes(), parts: Parts::default(), open: Vec::new(), leaf: None, nested: 0 };
    walk.enter(message, message.size() - message.body().len());
    walk.lines();
    walk.parts
}

struct Walk<'a> {
    bytes: &'a Bytes,
    parts: Parts<'a>,
    open: Vec<Frame>,
    /// Where the present leaf begins.
    leaf: Option<(usize, Encoding)>,
    /// Levels of `message/rfc822` that are open without a boundary of their own.
    nested: usize,
}

struct Frame {
    /// With the two hyphens before it.
    delimiter: Vec<u8>,
    /// `nested` as it was where the multipart began.
    nested: usize,
}

/// What the fields of an entity say about its body.
enum Kind {
    Multipart(Vec<u8>),
    Message,
    Leaf(Encoding),
}

impl<'a> Walk<'a> {
    /// Reads the fields of the entity whose body begins at `body`, and of the messages directly in it.
    fn enter(&mut self, fields: &Message, mut body: usize) {
        let mut kind = self.kind(fields);
        while let Kind::Message = kind {
            self.nested += 1;
            self.count();
            if self.stopped() {
                return;
            }
            let inner = Message::new(self.bytes.slice(body..self.section_end(body)));
            body += inner.size();
            kind = self.kind(&inner);
        }
        match kind {
            Kind::Leaf(encoding) => self.leaf = Some((body, encoding)),
            Kind::Multipart(delimiter) => {
                self.open.push(Frame { delimiter, nested: self.nested });
                self.leaf = Some((body, Encoding::Identity));
            }
            Kind::Message => {}
        }
        self.parts.too_deep |= self.open.len() + self.nested > DEPTH_MAX;
    }

    /// Goes over the lines behind the message's own fields.
    fn lines(&mut self) {
        let mut at = self.leaf.map_or(self.bytes.len(), |(start, _)| start);
        while at < self.bytes.len() && !self.stopped() {
            let end = line_end(self.bytes, at);
            at = match self.delimiter(at, end) {
                None => end,
                Some((level, last)) => self.boundary(at, end, level, last),
            };
        }
        self.close_leaf(self.bytes.len());
    }

    /// Handles the delimiter line `at..end`; returns where to go on.
    fn boundary(&mut self, at: usize, end: usize, level: usize, last: bool) -> usize {
        self.close_leaf(at);
        self.nested = self.open[level].nested;
        if last {
            self.open.truncate(level);
            self.leaf = Some((end, Encoding::Identity));
            return end;
        }
        self.open.truncate(level + 1);
        self.count();
        let fields = Message::new(self.bytes.slice(end..self.section_end(end)));
        let body = end + fields.size();
        self.enter(&fields, body);
        self.leaf.map_or(body, |(start, _)| start)
    }

    /// The innermost open boundary that the line is, and whether it closes it.
    fn delimiter(&self, at: usize, end: usize) -> Option<(usize, bool)> {
        let line = self.bytes[at..end].trim_ascii_end();
        if !line.starts_with(b"--") {
            return None;
        }
        let matches = |frame: &Frame| match line.strip_prefix(frame.delimiter.as_slice())? {
            b"" => Some(false),
            b"--" => Some(true),
            _ => None,
        };
        self.open.iter().enumerate().rev().find_map(|(level, frame)| Some((level, matches(frame)?)))
    }

    /// Behind the empty line that ends the fields which begin at `start`, or at the delimiter that cuts them off.
    fn section_end(&self, start: usize) -> usize {
        let mut at = start;
        while at < self.bytes.len() {
            let end = line_end(self.bytes, at);
            if self.bytes[at..end].trim_ascii_end().is_empty() {
                return end;
            }
            if self.delimiter(at, end).is_some() {
                return at;
            }
            at = end;
        }
        at
    }

    fn kind(&mut self, fields: &Message) -> Kind {
        let encoding = fields.named("Content-Transfer-Encoding").next().map_or(Encoding::Identity, |field| {
            let text = field.text();
            if text.eq_ignore_ascii_case("base64") {
                Encoding::Base64
            } else if text.eq_ignore_ascii_case("quoted-printable") {
                Encoding::QuotedPrintable
            } else {
                Encoding::Identity
            }
        });
        let content_type = fields.named("Content-Type").next().filter(|f| f.value.len() <= CONTENT_TYPE_LENGTH_MAX);
        let Some(content_type) = content_type.and_then(|field| Type::parse(field.value)) else {
            return Kind::Leaf(encoding);
        };
        self.parts.partial |= content_type.is("message", &["partial"]);
        match content_type.boundary {
            Some(delimiter) => Kind::Multipart(delimiter),
            None if content_type.is("message", &["rfc822", "global"]) && encoding == Encoding::Identity => {
                Kind::Message
            }
            None => Kind::Leaf(encoding),
        }
    }

    fn close_leaf(&mut self, end: usize) {
        if let Some((start, encoding)) = self.leaf.take() {
            self.parts.leaves.push(Leaf { encoding, bytes: &self.bytes[start.min(end)..end] });
        }
    }

    fn count(&mut self) {
        self.parts.count += 1;
        self.parts.too_many |= self.parts.count > PARTS_MAX;
        self.parts.too_deep |= self.open.len() + self.nested > DEPTH_MAX;
    }

    fn stopped(&self) -> bool {
        self.parts.too_many || self.parts.too_deep
    }
}

/// The pieces of a Content-Type that shape the tree, in lower case.
struct Type {
    main: String,
    sub: String,
    /// Of a multipart: the boundary behind two hyphens.
    boundary: Option<Vec<u8>>,
}

impl Type {
    fn parse(value: &[u8]) -> Option<Self> {
        let line = [value, b"\r\n"].concat();
        let HeaderValue::ContentType(parsed) = MessageStream::new(&line).parse_content_type() else { return None };
        let main = parsed.ctype().to_ascii_lowercase();
        let boundary = parsed.attribute("boundary").map(str::trim_end);
        let boundary = boundary.filter(|boundary| main == "multipart" && !boundary.is_empty());
        Some(Self {
            boundary: boundary.map(|boundary| format!("--{boundary}").into_bytes()),
            sub: parsed.subtype().unwrap_or_default().to_ascii_lowercase(),
            main,
        })
    }

    fn is(&self, main: &str, subs: &[&str]) -> bool {
        self.main == main && subs.contains(&self.sub.as_str())
    }
}

fn line_end(bytes: &[u8], from: usize) -> usize {
    memchr::memchr(b'\n', &bytes[from..]).map_or(bytes.len(), |at| from + at + 1)
}
