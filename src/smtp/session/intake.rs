//! How the content of a message comes in: DATA (RFC 5321 section 4.1.1.4) and BDAT (RFC 3030).

use bytes::{Buf, BytesMut};

use crate::smtp::content::Content;
use crate::smtp::reply::Reply;
use crate::smtp::step::{EndOfData, Question, Step};

use super::{Pending, Phase, Session};

/// The most that a refused chunk may claim, in sizes of the largest message.
const REFUSED_CHUNK_FACTOR: u64 = 4;

impl Session {
    pub(super) fn begin_content(&mut self) {
        if let Some(transaction) = &mut self.transaction {
            transaction.content = Some(Box::new(Content::new(self.size_max, transaction.declared_size)));
        }
    }

    /// Why no content may come now; `None` where it may.
    pub(super) fn content_refusal(&self) -> Option<Reply> {
        match &self.transaction {
            None => Some(Reply::bad_sequence("MAIL first")),
            Some(transaction) if !transaction.recipients().is_empty() => None,
            Some(transaction) if transaction.recipient_tried => Some(Reply::no_recipients()),
            Some(_) => Some(Reply::bad_sequence("RCPT first")),
        }
    }

    pub(super) fn data(&mut self) -> Step {
        if let Some(reply) = self.content_refusal() {
            return self.reply(reply);
        }
        if self.has_content() {
            return self.reply(Reply::bad_sequence("BDAT has begun"));
        }
        self.ask(Pending::Data, Question::Content)
    }

    pub(super) fn bdat(&mut self, size: u64, last: bool) -> Step {
        let refused = self.content_refusal();
        let endless = match self.transaction.as_ref().and_then(|transaction| transaction.content.as_ref()) {
            Some(content) => content.is_endless_with(size),
            None => size > self.size_max.saturating_mul(REFUSED_CHUNK_FACTOR),
        };
        if endless {
            return match refused {
                Some(reply) => self.close(reply),
                None => self.endless(size),
            };
        }
        if refused.is_none() && !self.has_content() {
            return self.ask(Pending::Chunk { size, last }, Question::Content);
        }
        self.phase = Phase::Chunk { left: size, last, refused };
        Step::NeedMore
    }

    pub(super) fn has_content(&self) -> bool {
        self.transaction.as_ref().is_some_and(|transaction| transaction.content.is_some())
    }

    pub(super) fn receive_data(&mut self, input: &mut BytesMut) -> Step {
        let content = self.transaction.as_mut().and_then(|transaction| transaction.content.as_mut());
        let Some(content) = content else { return self.close(Reply::bad_sequence("MAIL first")) };
        if content.take_dotted(input) {
            return self.end_of_data();
        }
        if content.is_endless_with(0) {
            input.clear();
            return self.endless(0);
        }
        Step::NeedMore
    }

    pub(super) fn receive_chunk(&mut self, input: &mut BytesMut) -> Step {
        let Phase::Chunk { left, last, refused } = &mut self.phase else { return Step::NeedMore };
        let here = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
        *left -= here as u64;
        let (left, last) = (*left, *last);
        let refused = if left == 0 { refused.take() } else { refused.clone() };
        if let (None, Some(transaction)) = (&refused, &mut self.transaction)
            && let Some(content) = &mut transaction.content
        {
            content.take_chunk(&input[..here]);
        }
        input.advance(here);
        if left > 0 {
            return Step::NeedMore;
        }
        self.phase = Phase::Verb;
        match refused {
            Some(reply) => {
                self.transaction = None;
                self.reply(reply)
            }
            None => self.end_of_chunk(last),
        }
    }

    pub(super) fn end_of_chunk(&mut self, last: bool) -> Step {
        let content = self.transaction.as_ref().and_then(|transaction| transaction.content.as_ref());
        match content {
            Some(content) if !last && !content.is_faulty() => Step::Reply(Reply::chunk_ok(content.size())),
            _ => self.end_of_data(),
        }
    }

    /// The content passed all bounds, or `more` octets of it would: it ends here, and the session behind it.
    fn endless(&mut self, more: u64) -> Step {
        if let Some(transaction) = &mut self.transaction {
            let content = transaction.content.get_or_insert_with(|| Box::new(Content::new(self.size_max, None)));
            content.overflow(more);
        }
        self.end_content(Pending::Endless)
    }

    pub(super) fn end_of_data(&mut self) -> Step {
        self.end_content(Pending::Message)
    }

    /// Takes the transaction apart: whatever the answer will be, it is over.
    fn end_content(&mut self, pending: Pending) -> Step {
        let taken = self.transaction.take().and_then(|mut transaction| {
            let content = transaction.content.take()?;
            Some((transaction, content))
        });
        let Some((transaction, content)) = taken else { return self.reply(Reply::bad_sequence("MAIL first")) };
        let (size, content) = content.finish();
        let end = EndOfData { envelope: transaction.into_envelope(), size, content };
        self.ask(pending, Question::Message(Box::new(end)))
    }
}
