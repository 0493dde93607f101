//! The mail log on two disks, and one answer for all nodes.
//!
//! Each node ships what its log grew by to one other node, twice a second. Which one follows from who is there; a new one
//! first gets what it lacks. A search asks every node for its own log and for its copies of those that are down
//! or do not answer.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;

use super::letter::{Answer, LogQuestion, Question};
use super::placing::weight;
use super::{Disks, Mirrors};
use crate::mail::MessageId;
use crate::maillog::{Maillog, Query, Record};

const INTERVAL: Duration = Duration::from_millis(500);
const CHUNK_MAX_BYTES: usize = 512 << 10;
const SHIP_TIMEOUT: Duration = Duration::from_secs(5);
const SEARCH_TIMEOUT: Duration = Duration::from_secs(10);

/// What a search over all nodes found.
pub struct Searched {
    pub records: Vec<Record>,
    /// Nodes that did not answer: of theirs there is what others keep and tell.
    pub silent: Vec<u64>,
}

impl Disks {
    /// Searches the log of all nodes, see [`Maillog::search`]; what is nowhere to be found about the time of its id is looked
    /// for in all that is kept.
    pub async fn search(&self, maillog: &Maillog, query: Query) -> std::io::Result<Searched> {
        let before_birth = query.before_birth();
        let found = self.search_all(maillog, query).await?;
        match before_birth {
            Some(query) if found.records.is_empty() => {
                let earlier = self.search_all(maillog, query).await?;
                // All that is kept can take longer than anybody waits: who did not tell all of that did answer.
                Ok(if earlier.records.is_empty() { found } else { earlier })
            }
            Some(_) | None => Ok(found),
        }
    }

    async fn search_all(&self, maillog: &Maillog, query: Query) -> std::io::Result<Searched> {
        let Some(mirrors) = &self.mirrors else {
            return Ok(Searched { records: maillog.search(query).await?, silent: Vec::new() });
        };
        let mut records = mirrors.search_here(&query).await?;
        let json = Bytes::from(serde_json::to_vec(&query)?);
        let (found, silent) = mirrors.search_at(mirrors.others(), LogQuestion::Search { query: json.clone() }).await;
        records.extend(found);
        if !silent.is_empty() {
            records.extend(mirrors.search_copies(&silent, &query).await?);
            let answered = mirrors.others().into_iter().filter(|node| !silent.contains(node)).collect();
            let question = LogQuestion::SearchCopies { of: silent.clone(), query: json };
            records.extend(mirrors.search_at(answered, question).await.0);
        }
        Ok(Searched { records: in_order(records, &query), silent })
    }
}

fn records(found: &[Record]) -> std::io::Result<Answer> {
    Ok(Answer::Records(serde_json::to_vec(found)?.into()))
}

/// As one log would answer; a node that was mirrored by two in turn is not heard twice.
fn in_order(mut records: Vec<Record>, query: &Query) -> Vec<Record> {
    if query.id.is_some() {
        records.sort_by_key(Record::place);
    } else {
        records.sort_by_key(|record| Reverse(record.at_ms));
    }
    let mut kept: Vec<Record> = Vec::with_capacity(records.len());
    for record in records {
        let same_time = kept.iter().rev().take_while(|known| known.at_ms == record.at_ms);
        if !same_time.into_iter().any(|known| *known == record) {
            kept.push(record);
        }
    }
    kept.truncate(query.count.unwrap_or(usize::MAX));
    kept
}

impl Mirrors {
    /// This node's own log, and its copies of nodes that are down.
    pub(super) async fn search_here(&self, query: &Query) -> std::io::Result<Vec<Record>> {
        let mut records = self.maillog.search(query.clone()).await?;
        records.extend(self.search_copies(&self.cluster.read(|state| state.out()), query).await?);
        Ok(records)
    }

    async fn search_copies(&self, nodes: &[u64], query: &Query) -> std::io::Result<Vec<Record>> {
        let mut records = Vec::new();
        for node in nodes {
            records.extend(self.maillog.search_copy(*node, query.clone()).await?);
        }
        Ok(records)
    }

    /// Asks all at once; returns what they found, and who did not answer.
    async fn search_at(self: &Arc<Self>, nodes: Vec<u64>, question: LogQuestion) -> (Vec<Record>, Vec<u64>) {
        let question = Arc::new(Question::Log(question));
        let asked = nodes.into_iter().map(|node| {
            let (mirrors, question) = (Arc::clone(self), Arc::clone(&question));
            (node, tokio::spawn(async move { mirrors.search_one(node, &question).await }))
        });
        let (mut records, mut silent) = (Vec::new(), Vec::new());
        for (node, answer) in asked.collect::<Vec<_>>() {
            match answer.await.unwrap_or_else(|error| Err(error.to_string())) {
                Ok(found) => records.extend(found),
                Err(why) => {
                    tracing::warn!(node, why, "a search misses the log of a node");
                    silent.push(node);
                }
            }
        }
        (records, silent)
    }

    async fn search_one(&self, node: u64, question: &Question) -> Result<Vec<Record>, String> {
        let answer = self.ask(node, question, SEARCH_TIMEOUT).await?;
        let Answer::Records(json) = answer else { return Err(answer.refusal()) };
        serde_json::from_slice(&json).map_err(|error| error.to_string())
    }

    pub(super) async fn answer_about_log(&self, owner: u64, question: LogQuestion) -> std::io::Result<Answer> {
        match question {
            LogQuestion::Lengths => self.maillog.copy_lengths(owner).await.map(Answer::Lengths),
            LogQuestion::Append { segment, offset, bytes } => {
                self.maillog.keep_at(owner, segment, offset, bytes.to_vec()).await.map(|()| Answer::Done)
            }
            LogQuestion::Search { query } => records(&self.search_here(&serde_json::from_slice(&query)?).await?),
            LogQuestion::SearchCopies { of, query } => {
                records(&self.search_copies(&of, &serde_json::from_slice(&query)?).await?)
            }
        }
    }

    async fn ship(&self, node: u64, shipped: &mut BTreeMap<u64, u64>) -> Result<(), String> {
        // A segment that has a successor grows no more: behind the first round only the newest is looked at.
        let since = shipped.keys().next().copied().unwrap_or(0);
        for (segment, length) in self.maillog.lengths(since).await.map_err(|error| error.to_string())? {
            let mut offset = shipped.get(&segment).copied().unwrap_or(0);
            if offset > length {
                // What could not be written whole was cut off.
                offset = 0;
            }
            while offset < length {
                let bytes = self.maillog.read_at(segment, offset, CHUNK_MAX_BYTES).await;
                let bytes = bytes.map_err(|error| error.to_string())?;
                if bytes.is_empty() {
                    break;
                }
                let next = offset + bytes.len() as u64;
                let append = Question::Log(LogQuestion::Append { segment, offset, bytes: bytes.into() });
                self.have_done_in(node, &append, SHIP_TIMEOUT).await?;
                shipped.insert(segment, next);
                offset = next;
            }
        }
        while shipped.len() > 1 {
            shipped.pop_first();
        }
        Ok(())
    }

    async fn shipped_to(&self, node: u64) -> Result<BTreeMap<u64, u64>, String> {
        let answer = self.ask(node, &Question::Log(LogQuestion::Lengths), SHIP_TIMEOUT).await?;
        let Answer::Lengths(lengths) = answer else { return Err(answer.refusal()) };
        Ok(lengths)
    }

    fn log_mirror(&self) -> Option<u64> {
        let here = MessageId::from_bytes(u128::from(self.cluster.node_id()).to_be_bytes());
        self.others().into_iter().min_by_key(|node| weight(here, *node))
    }
}

/// Ships the log, for as long as anybody uses the disks.
pub(super) async fn run(mirrors: Weak<Mirrors>) {
    let mut to: Option<(u64, BTreeMap<u64, u64>)> = None;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let Some(mirrors) = mirrors.upgrade() else { return };
        let Some(node) = mirrors.log_mirror() else { continue };
        let known = to.take().filter(|(old, _)| *old == node);
        let shipped = match known {
            Some((_, shipped)) => Ok(shipped),
            None => mirrors.shipped_to(node).await,
        };
        let result = match shipped {
            Ok(mut shipped) => mirrors.ship(node, &mut shipped).await.map(|()| shipped),
            Err(why) => Err(why),
        };
        match result {
            Ok(shipped) => to = Some((node, shipped)),
            Err(why) => tracing::debug!(node, why, "the mail log is not mirrored for a moment"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maillog::{Event, Origin, Status};

    #[test]
    fn records_of_many_nodes_are_one_log_without_repetition() {
        let record = |at_ms: u64, detail: &str| Record {
            at_ms,
            id: MessageId::from_bytes([1; 16]),
            event: Event::Change {
                origin: Origin::default(),
                status: Status::Queued,
                by: String::new(),
                detail: detail.to_owned(),
            },
        };
        let records = vec![record(2, "b"), record(1, "a"), record(2, "c"), record(2, "b"), record(3, "d")];
        let newest = in_order(records.clone(), &Query { count: Some(3), ..Query::default() });
        assert_eq!(newest, [record(3, "d"), record(2, "b"), record(2, "c")]);
        let journey = in_order(records, &Query { id: Some(MessageId::from_bytes([1; 16])), ..Query::default() });
        assert_eq!(journey, [record(1, "a"), record(2, "b"), record(2, "c"), record(3, "d")]);
    }
}
