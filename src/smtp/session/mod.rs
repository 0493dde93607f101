//! A session from greeting to QUIT: which verb is in order now, and what answers it.

mod intake;
mod login;

use std::sync::Arc;

use bytes::{Buf, BytesMut};

use crate::mail::{Address, Recipient};
use crate::smtp::line::{Line, Lines};
use crate::smtp::parameter::{self, RecipientFault};
use crate::smtp::reply::Reply;
use crate::smtp::sasl::Exchange;
use crate::smtp::step::{Question, Step};
use crate::smtp::transaction::Transaction;
use crate::smtp::verb::{Verb, VerbFault};

/// RFC 5321 section 4.5.3.1.4 asks for 512; MAIL and RCPT with all their parameters need more.
const LINE_LENGTH_MAX: usize = 4096;
/// RFC 4954 section 4.
const AUTH_LINE_LENGTH_MAX: usize = 12_288;

/// Verbs of a client that has not logged in.
const VERBS_BEFORE_LOGIN_MAX: usize = 50;

/// What holds for all sessions of a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rules {
    pub hostname: String,
    pub recipients_max: usize,
    pub errors_max: usize,
    pub verbs_max: usize,
    pub messages_max: usize,
}

/// Whose session it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Proof {
    None,
    /// The source address suffices.
    Network,
    Password,
}

#[derive(Debug)]
enum Phase {
    Verb,
    /// The next line belongs to AUTH.
    Exchange(Exchange),
    /// Waits for [`Session::answer`].
    Asked(Pending),
    Data,
    /// So many octets of a chunk are to come; with a reply they are thrown away and then answered by it.
    Chunk {
        left: u64,
        last: bool,
        refused: Option<Reply>,
    },
    /// The reply is the last word.
    Closing(Reply),
    Over,
}

/// What a positive answer makes true.
#[derive(Debug)]
enum Pending {
    Login,
    Sender(Box<Transaction>),
    Recipient(Recipient),
    MalformedRecipient,
    Data,
    Chunk {
        size: u64,
        last: bool,
    },
    Message,
    /// A message that has no end; the session ends instead.
    Endless,
}

/// One client's session.
#[derive(Debug)]
pub struct Session {
    rules: Arc<Rules>,
    size_max: u64,
    tls: bool,
    /// AUTH is allowed without TLS.
    clear_text: bool,
    hello: Option<Box<str>>,
    proof: Proof,
    postmaster: Option<Box<Address>>,
    transaction: Option<Box<Transaction>>,
    phase: Phase,
    lines: Lines,
    errors: usize,
    verbs: usize,
    messages: usize,
}

impl Session {
    /// `tls`: it was there from the first byte. `clear_text`: AUTH is allowed without it. `size_max`: announced before login.
    pub fn new(rules: Arc<Rules>, tls: bool, clear_text: bool, size_max: u64) -> Self {
        Self {
            rules,
            size_max,
            tls,
            clear_text,
            hello: None,
            proof: Proof::None,
            postmaster: None,
            transaction: None,
            phase: Phase::Verb,
            lines: Lines::default(),
            errors: 0,
            verbs: 0,
            messages: 0,
        }
    }

    pub fn greeting(&self) -> Reply {
        Reply::greeting(&self.rules.hostname)
    }

    /// The source address proved a network User, so that MAIL works without AUTH.
    pub fn network_user(&mut self) {
        self.proof = Proof::Network;
    }

    /// The largest message from now on.
    pub fn set_size_max(&mut self, octets: u64) {
        self.size_max = octets;
    }

    /// Who is meant by `RCPT TO:<postmaster>` from now on.
    pub fn set_postmaster(&mut self, address: Address) {
        self.postmaster = Some(Box::new(address));
    }

    /// The handshake behind [`Step::StartTls`] is done: all that was said before is forgotten (RFC 3207 section 4.2).
    pub fn tls_started(&mut self) {
        self.tls = true;
        self.hello = None;
        self.transaction = None;
        self.lines = Lines::default();
    }

    /// The name that the client gave to EHLO or HELO.
    pub fn helo(&self) -> &str {
        self.hello.as_deref().unwrap_or("")
    }

    pub fn transaction(&self) -> Option<&Transaction> {
        self.transaction.as_deref()
    }

    /// Nothing would be lost if the session ended here.
    pub fn is_idle(&self) -> bool {
        self.transaction.is_none() && !matches!(self.phase, Phase::Asked(_))
    }

    /// The client is sending content.
    pub fn is_receiving(&self) -> bool {
        matches!(self.phase, Phase::Data | Phase::Chunk { .. })
    }

    /// Octets of memory that the content holds.
    pub fn content_held(&self) -> usize {
        let content = self.transaction.as_ref().and_then(|transaction| transaction.content.as_ref());
        content.map_or(0, |content| content.held())
    }

    /// There is no memory for the content: the rest of it is read to be refused.
    pub fn abandon_content(&mut self) {
        if let Some(content) = self.transaction.as_mut().and_then(|transaction| transaction.content.as_mut()) {
            content.abandon();
        }
    }

    /// Nothing more will be said; frees what the transaction held.
    pub fn end(&mut self) {
        self.phase = Phase::Over;
        self.transaction = None;
    }

    /// Goes as far as `input` allows: to one reply, one question, or to the end of what is there.
    pub fn receive(&mut self, input: &mut BytesMut) -> Step {
        match self.phase {
            Phase::Verb | Phase::Exchange(_) => self.receive_line(input),
            Phase::Asked(_) => Step::NeedMore,
            Phase::Data => self.receive_data(input),
            Phase::Chunk { .. } => self.receive_chunk(input),
            Phase::Closing(_) | Phase::Over => {
                input.clear();
                let phase = std::mem::replace(&mut self.phase, Phase::Over);
                if let Phase::Closing(reply) = phase { Step::Close(reply) } else { Step::NeedMore }
            }
        }
    }

    /// The reply to the question that was asked; what is to be written now, if anything.
    pub fn answer(&mut self, reply: Reply) -> Option<Reply> {
        let Phase::Asked(pending) = std::mem::replace(&mut self.phase, Phase::Verb) else { return Some(reply) };
        let yes = !reply.is_error();
        match pending {
            Pending::Login if yes => self.proof = Proof::Password,
            Pending::Sender(transaction) if yes => self.transaction = Some(transaction),
            Pending::Recipient(recipient) if yes => {
                if let Some(transaction) = &mut self.transaction {
                    transaction.add(recipient);
                }
            }
            Pending::Data if yes => {
                self.begin_content();
                self.phase = Phase::Data;
            }
            Pending::Chunk { size, last } => {
                let refused = if yes { None } else { Some(reply) };
                if yes {
                    self.begin_content();
                }
                self.phase = Phase::Chunk { left: size, last, refused };
                return None;
            }
            Pending::Message => {
                self.transaction = None;
                self.messages += 1;
                // A client that gets mail through is not one that only makes mistakes.
                if yes {
                    self.errors = 0;
                }
            }
            Pending::Endless => {
                self.phase = Phase::Closing(reply);
                return None;
            }
            Pending::Login
            | Pending::Sender(_)
            | Pending::Recipient(_)
            | Pending::MalformedRecipient
            | Pending::Data => {}
        }
        self.count(&reply);
        Some(reply)
    }

    fn receive_line(&mut self, input: &mut BytesMut) -> Step {
        let in_auth = matches!(self.phase, Phase::Exchange(_));
        let long = in_auth || input.get(..5).is_some_and(|word| word.eq_ignore_ascii_case(b"AUTH "));
        match self.lines.next(input, if long { AUTH_LINE_LENGTH_MAX } else { LINE_LENGTH_MAX }) {
            Line::Incomplete => Step::NeedMore,
            Line::TooLong => self.broken_line(Reply::line_too_long()),
            Line::BadOctets => self.broken_line(Reply::bad_octets()),
            Line::Whole(length) => {
                let step = self.take_line(&input[..length]);
                input.advance(length + 2);
                if matches!(step, Step::StartTls | Step::Close(_)) {
                    input.clear();
                }
                // A refused or later chunk: it may be empty, or in the input already.
                if matches!(self.phase, Phase::Chunk { .. }) { self.receive_chunk(input) } else { step }
            }
        }
    }

    fn broken_line(&mut self, reply: Reply) -> Step {
        self.phase = Phase::Verb;
        self.verbs += 1;
        self.over_bounds().unwrap_or_else(|| self.reply(reply))
    }

    fn take_line(&mut self, line: &[u8]) -> Step {
        if let Phase::Exchange(exchange) = std::mem::replace(&mut self.phase, Phase::Verb) {
            return self.progress(exchange.receive(line));
        }
        self.verbs += 1;
        match Verb::parse(line) {
            Ok(Verb::Quit) => self.reply(Reply::bye()),
            Ok(verb) => match self.over_bounds() {
                Some(step) => step,
                None => self.take_verb(verb),
            },
            Err(VerbFault::Refused(reply)) => self.over_bounds().unwrap_or_else(|| self.reply(reply)),
            Err(VerbFault::Lost(reply)) => self.close(reply),
        }
    }

    fn over_bounds(&mut self) -> Option<Step> {
        if self.errors >= self.rules.errors_max {
            return Some(self.reply(Reply::too_many_errors()));
        }
        let verbs_max = match self.proof {
            Proof::None => self.rules.verbs_max.min(VERBS_BEFORE_LOGIN_MAX),
            Proof::Network | Proof::Password => self.rules.verbs_max,
        };
        (self.verbs > verbs_max).then(|| self.reply(Reply::too_many_verbs()))
    }

    fn take_verb(&mut self, verb: Verb<'_>) -> Step {
        match verb {
            Verb::Ehlo(name) => {
                self.greet(name);
                Step::Reply(self.capabilities())
            }
            Verb::Helo(name) => {
                self.greet(name);
                Step::Reply(Reply::hello(&self.rules.hostname))
            }
            Verb::StartTls => self.start_tls(),
            Verb::Auth { mechanism, initial } => self.auth(mechanism, initial),
            Verb::Mail(arguments) => self.mail(arguments),
            Verb::Rcpt(arguments) => self.rcpt(arguments),
            Verb::Data => self.data(),
            Verb::Bdat { size, last } => self.bdat(size, last),
            Verb::Rset => {
                self.transaction = None;
                Step::Reply(Reply::ok())
            }
            Verb::Noop => Step::Reply(Reply::ok()),
            Verb::Help => Step::Reply(Reply::help()),
            Verb::Vrfy => Step::Reply(Reply::vrfy()),
            Verb::Expn => self.reply(Reply::not_implemented()),
            Verb::Quit => self.reply(Reply::bye()),
        }
    }

    fn greet(&mut self, name: &str) {
        self.hello = Some(name.into());
        self.transaction = None;
    }

    fn mail(&mut self, arguments: &str) -> Step {
        if self.hello.is_none() {
            return self.reply(Reply::bad_sequence("EHLO first"));
        }
        if self.proof == Proof::None {
            let can_authenticate = self.tls || self.clear_text;
            return self.reply(if can_authenticate { Reply::not_authenticated() } else { Reply::tls_required() });
        }
        if self.transaction.is_some() {
            return self.reply(Reply::bad_sequence("a transaction is open"));
        }
        if self.messages >= self.rules.messages_max {
            return self.reply(Reply::too_many_messages());
        }
        match parameter::mail(arguments) {
            Ok(transaction) => {
                let question = Question::Sender {
                    reverse_path: transaction.reverse_path().clone(),
                    declared_size: transaction.declared_size,
                };
                self.ask(Pending::Sender(Box::new(transaction)), question)
            }
            Err(reply) => self.reply(reply),
        }
    }

    fn rcpt(&mut self, arguments: &str) -> Step {
        let recipients_max = self.rules.recipients_max;
        let Some(transaction) = &mut self.transaction else { return self.reply(Reply::bad_sequence("MAIL first")) };
        if transaction.content.is_some() {
            return self.reply(Reply::bad_sequence("BDAT has begun"));
        }
        transaction.recipient_tried = true;
        if transaction.recipients().len() >= recipients_max {
            return self.reply(Reply::too_many_recipients());
        }
        match parameter::recipient(arguments, transaction.smtputf8, self.postmaster.as_deref()) {
            Ok(recipient) => {
                let question = Question::Recipient(recipient.address.clone());
                self.ask(Pending::Recipient(recipient), question)
            }
            Err(RecipientFault::Malformed) => self.ask(Pending::MalformedRecipient, Question::MalformedRecipient),
            Err(RecipientFault::Other(reply)) => self.reply(reply),
        }
    }

    fn ask(&mut self, pending: Pending, question: Question) -> Step {
        self.phase = Phase::Asked(pending);
        Step::Ask(question)
    }

    fn reply(&mut self, reply: Reply) -> Step {
        self.count(&reply);
        Step::Reply(reply)
    }

    fn close(&mut self, reply: Reply) -> Step {
        self.phase = Phase::Over;
        self.transaction = None;
        Step::Close(reply)
    }

    /// A recipient put off (4xx to RCPT) is no mistake of the client.
    fn count(&mut self, reply: &Reply) {
        let put_off = reply.code < 500 && self.transaction.is_some();
        if reply.is_error() && !put_off {
            self.errors += 1;
        }
        if reply.closes() {
            self.phase = Phase::Over;
            self.transaction = None;
        }
    }
}
