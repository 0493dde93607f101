//! The submission protocol as a pure machine: bytes in, questions and replies out. No sockets here.
//!
//! [`Session`] takes what the socket gave ([`Session::receive`]) and says what to do next ([`Step`]). Where it cannot
//! answer by itself it asks ([`Question`]): is the password right, may this sender send, will the message be taken. The
//! connection finds out and gives the reply back ([`Session::answer`]).
//!
//! Invariants:
//! * The same octets give the same steps, however they were cut into reads.
//! * Only CRLF ends a line and only CRLF.CRLF ends DATA. A bare CR, a bare LF or a NUL makes a verb fail and a message
//!   be refused as a whole; the octets behind it never become verbs.
//! * What a client sent in clear behind STARTTLS is dropped.
//! * The octets of a BDAT chunk are taken off the stream even where the chunk is refused.
//! * Every buffer has a bound: a line, the content of a message, the number of recipients.
//!
//! Never here: I/O, clocks, the replicated state, judgement of content.

pub mod client;
pub mod content;
mod line;
mod parameter;
mod path;
pub mod reply;
mod sasl;
pub mod session;
mod step;
mod transaction;
mod verb;

#[cfg(test)]
mod tests;

pub use content::Fault;
pub use reply::Reply;
pub use session::{Rules, Session};
pub use step::{EndOfData, Password, Question, Step};
pub use transaction::Transaction;
