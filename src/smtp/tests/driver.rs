//! Plays the connection: gives octets to a session, answers its questions, keeps what a client would see.

use std::sync::Arc;

use bytes::BytesMut;

use crate::mail::{MessageId, ReversePath};
use crate::smtp::{EndOfData, Fault, Question, Reply, Rules, Session, Step};

pub(super) const SIZE_MAX: u64 = 1000;

pub(super) fn rules() -> Rules {
    Rules { hostname: "mx.test".to_owned(), recipients_max: 3, errors_max: 5, verbs_max: 60, messages_max: 3 }
}

pub(super) struct Driver {
    pub(super) session: Session,
    input: BytesMut,
    /// Reply lines, without CRLF.
    pub(super) said: Vec<String>,
    pub(super) messages: Vec<EndOfData>,
    pub(super) closed: bool,
}

impl Driver {
    pub(super) fn new(session: Session) -> Self {
        Self { session, input: BytesMut::new(), said: Vec::new(), messages: Vec::new(), closed: false }
    }

    pub(super) fn with(rules: Rules, tls: bool, clear_text: bool) -> Self {
        Self::new(Session::new(Arc::new(rules), tls, clear_text, SIZE_MAX))
    }

    /// Goes on until the session needs more, or is over.
    pub(super) fn give(&mut self, octets: &[u8]) {
        self.input.extend_from_slice(octets);
        while !self.closed {
            match self.session.receive(&mut self.input) {
                Step::NeedMore => return,
                Step::Reply(reply) => self.say(&reply),
                Step::Close(reply) => {
                    self.say(&reply);
                    self.closed = true;
                }
                Step::StartTls => {
                    assert!(self.input.is_empty(), "octets from before the handshake are left");
                    self.say(&Reply::ready_for_tls());
                    self.session.tls_started();
                }
                Step::Ask(question) => {
                    let reply = self.answer(question);
                    if let Some(reply) = self.session.answer(reply) {
                        self.say(&reply);
                    }
                }
            }
        }
    }

    /// The codes of all replies so far.
    pub(super) fn codes(&self) -> Vec<u16> {
        let last_lines = self.said.iter().filter(|line| line.as_bytes()[3] == b' ');
        last_lines.map(|line| line[..3].parse().unwrap()).collect()
    }

    fn say(&mut self, reply: &Reply) {
        self.said.extend(reply.wire().lines().map(str::to_owned));
        self.closed |= reply.closes();
    }

    fn answer(&mut self, question: Question) -> Reply {
        let id = MessageId::from_bytes([0; 16]);
        match question {
            Question::Login { password, .. } if password.0 == b"secret" => Reply::auth_ok(),
            Question::Login { .. } => Reply::auth_failed(),
            Question::Sender { declared_size: Some(size), .. } if size > SIZE_MAX => Reply::too_large(SIZE_MAX),
            Question::Sender { reverse_path: ReversePath::Address(address), .. } if address.local() == "refused" => {
                Reply::sender_not_permitted()
            }
            Question::Sender { .. } => Reply::sender_ok(),
            Question::Recipient(address) => match address.local() {
                "unknown" => Reply::recipient_domain_unknown(),
                "later" => Reply::dns_failure(),
                _ => Reply::recipient_ok(),
            },
            Question::MalformedRecipient => Reply::recipient_malformed(),
            Question::Content if self.full() => Reply::disk_full(),
            Question::Content => Reply::start_data(),
            Question::Message(end) => {
                let reply = match &end.content {
                    Ok(content) if content.windows(5).any(|word| word == b"GTUBE") => Reply::spam(id),
                    Ok(_) => Reply::accepted(id),
                    Err(Fault::TooLarge { limit }) => Reply::too_large(*limit),
                    Err(Fault::BareCr) => Reply::structure(id, "a CR without LF"),
                    Err(Fault::BareLf) => Reply::structure(id, "an LF without CR"),
                    Err(Fault::Nul) => Reply::structure(id, "a NUL octet"),
                    Err(Fault::NoRoom) => Reply::undecided(),
                };
                self.messages.push(*end);
                reply
            }
        }
    }

    /// The envelope says that the disk is full.
    fn full(&self) -> bool {
        let sender = self.session.transaction().and_then(|transaction| transaction.reverse_path().address());
        sender.is_some_and(|sender| sender.local() == "full")
    }
}
