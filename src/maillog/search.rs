//! Reading the log: newest first with an early end; the whole journey, oldest first, of one id.

use std::io;

use super::segment::{Directory, LATENESS_MAX_MS, SegmentName, checked};
use super::{Event, Origin, Query, Record};

const COUNT_DEFAULT: usize = 1_000;
const COUNT_MAX: usize = 100_000;

/// The id of a message tells when it came, by the clock of the node that it came to: this node's clock may be another, or may
/// have been set since.
const CLOCKS_DIFFER_MAX_MS: u64 = 24 * 3_600_000;

/// Before it a message's records are not looked for, unless the query ends before it.
fn born_ms(query: &Query) -> u64 {
    let born_ms = query.id.map_or(0, |id| id.timestamp_ms().saturating_sub(CLOCKS_DIFFER_MAX_MS));
    if query.until_ms.is_some_and(|until_ms| until_ms <= born_ms) { 0 } else { born_ms }
}

impl Query {
    /// The same message where only a wrong clock can have put it; `None` = the query looks at all there is.
    pub(crate) fn before_birth(&self) -> Option<Self> {
        let born_ms = born_ms(self);
        let is_earlier = self.since_ms.unwrap_or(0) < born_ms;
        is_earlier.then(|| Self { until_ms: Some(born_ms), ..self.clone() })
    }
}

pub(super) fn run(directory: &Directory, query: &Query) -> io::Result<Vec<Record>> {
    let filter = Filter::new(query);
    let count = query.count.unwrap_or(COUNT_DEFAULT).min(COUNT_MAX);
    let mut left = if query.id.is_some() { usize::MAX } else { count };
    let mut records = Vec::new();
    for segment in candidates(directory, &filter)?.into_iter().rev() {
        if left == 0 {
            break;
        }
        scan(&read(directory, segment)?, &filter, &mut left, &mut records);
    }
    if query.id.is_some() {
        records.reverse();
        records.sort_by_key(Record::place);
        records.truncate(count);
    }
    Ok(records)
}

/// A segment that expired since it was listed is empty.
fn read(directory: &Directory, segment: SegmentName) -> io::Result<Vec<u8>> {
    match directory.read(segment) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

/// Segments that can hold records between the filter's times, oldest first.
fn candidates(directory: &Directory, filter: &Filter<'_>) -> io::Result<Vec<SegmentName>> {
    let mut segments = directory.segments()?;
    let earliest = filter.since_ms.saturating_sub(LATENESS_MAX_MS);
    let begun = segments.partition_point(|segment| segment.0 <= earliest);
    segments.drain(..begun.saturating_sub(1));
    // A clock that was set back puts an early record into a late segment; one message may be looked for there.
    if filter.id.is_none() {
        segments.retain(|segment| segment.0 <= filter.until_ms.saturating_add(LATENESS_MAX_MS));
    }
    Ok(segments)
}

/// From the last line to the first, until `left` more were found.
fn scan(bytes: &[u8], filter: &Filter<'_>, left: &mut usize, records: &mut Vec<Record>) {
    let mut end = bytes.len();
    while end > 0 && *left > 0 {
        let text = bytes[..end].strip_suffix(b"\n").unwrap_or(&bytes[..end]);
        let start = memchr::memrchr(b'\n', text).map_or(0, |at| at + 1);
        if let Some(record) = filter.accept(&text[start..]) {
            records.push(record);
            *left -= 1;
        }
        end = start;
    }
}

struct Filter<'a> {
    query: &'a Query,
    /// The id as it stands in a line: most lines are passed over without reading their JSON.
    id: Option<String>,
    since_ms: u64,
    until_ms: u64,
    user: Option<Pattern>,
    domain: Option<Pattern>,
    text: Option<Pattern>,
}

impl<'a> Filter<'a> {
    fn new(query: &'a Query) -> Self {
        let born_ms = born_ms(query);
        Self {
            query,
            id: query.id.map(|id| id.to_string()),
            since_ms: query.since_ms.unwrap_or(0).max(born_ms),
            until_ms: query.until_ms.unwrap_or(u64::MAX),
            user: query.user.as_deref().map(Pattern::whole),
            domain: query.domain.as_deref().map(Pattern::whole),
            text: query.text.as_deref().map(Pattern::part),
        }
    }

    fn accept(&self, line: &[u8]) -> Option<Record> {
        if self.id.as_ref().is_some_and(|id| memchr::memmem::find(line, id.as_bytes()).is_none()) {
            return None;
        }
        let record: Record = serde_json::from_slice(checked(line)?).ok()?;
        let in_time = (self.since_ms..=self.until_ms).contains(&record.at_ms);
        let id_fits = self.query.id.is_none_or(|id| id == record.id);
        (in_time && id_fits && self.event_fits(&record.event)).then_some(record)
    }

    /// The class is known of submissions alone, so that filter finds nothing else.
    fn event_fits(&self, event: &Event) -> bool {
        let fits = |pattern: &Option<Pattern>, text: &str| pattern.as_ref().is_none_or(|p| p.fits(text));
        let of_submission = self.query.submissions || self.query.class.is_some();
        let origin_fits = |origin: &Origin| fits(&self.user, &origin.user) && fits(&self.domain, &origin.domain);
        let status_fits = |status| self.query.status.is_none_or(|wanted| wanted == status);
        match event {
            Event::Submission(submission) => {
                status_fits(submission.status)
                    && fits(&self.user, &submission.user)
                    && fits(&self.domain, &submission.domain)
                    && self.query.class.as_ref().is_none_or(|wanted| *wanted == submission.class)
                    && self.text_fits([
                        &submission.sender,
                        &submission.subject,
                        &submission.message_id,
                        &submission.reply,
                        &submission.recipients.join(" "),
                        &submission.evidence.join(" "),
                    ])
            }
            Event::Attempt(attempt) => {
                !of_submission
                    && status_fits(attempt.status)
                    && origin_fits(&attempt.origin)
                    && self.text_fits([&attempt.origin.sender, &attempt.recipient, &attempt.host, &attempt.reply])
            }
            Event::Change { origin, status, by, detail } => {
                !of_submission
                    && status_fits(*status)
                    && origin_fits(origin)
                    && self.text_fits([&origin.sender, by, detail])
            }
        }
    }

    fn text_fits<'t>(&self, texts: impl IntoIterator<Item = &'t String>) -> bool {
        let Some(pattern) = &self.text else { return true };
        texts.into_iter().any(|text| pattern.fits(text))
    }
}

/// The pieces between the `*` of a pattern, in lower case; they must follow one another.
struct Pattern {
    pieces: Vec<String>,
    /// The first piece begins the text and the last one ends it.
    whole: bool,
}

impl Pattern {
    fn whole(text: &str) -> Self {
        Self { pieces: text.to_lowercase().split('*').map(str::to_owned).collect(), whole: true }
    }

    fn part(text: &str) -> Self {
        Self { whole: false, ..Self::whole(text) }
    }

    fn fits(&self, text: &str) -> bool {
        let text = text.to_lowercase();
        let (mut rest, mut pieces) = (text.as_str(), self.pieces.as_slice());
        if self.whole {
            if let [only] = pieces {
                return rest == only;
            }
            let [first, middle @ .., last] = pieces else { return true };
            let Some(inner) = rest.strip_prefix(first.as_str()).and_then(|rest| rest.strip_suffix(last.as_str()))
            else {
                return false;
            };
            (rest, pieces) = (inner, middle);
        }
        pieces.iter().all(|piece| match rest.find(piece.as_str()) {
            Some(at) => {
                rest = &rest[at + piece.len()..];
                true
            }
            None => false,
        })
    }
}
