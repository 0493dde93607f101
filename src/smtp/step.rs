//! What a session says to its connection.

use std::fmt;

use bytes::Bytes;

use crate::mail::{Address, Envelope, ReversePath};

use super::content::Fault;
use super::reply::Reply;

/// What to do next.
#[derive(PartialEq, Debug)]
pub enum Step {
    /// Nothing can be done before more octets are there.
    NeedMore,
    /// To the client; close behind it where [`Reply::closes`].
    Reply(Reply),
    /// To the client, and then close.
    Close(Reply),
    /// Write [`Reply::ready_for_tls`], do the handshake, then call [`super::Session::tls_started`].
    StartTls,
    /// Find the reply and give it to [`super::Session::answer`]; a positive reply means yes.
    Ask(Question),
}

#[derive(PartialEq, Debug)]
pub enum Question {
    Login {
        login: String,
        password: Password,
    },
    Sender {
        reverse_path: ReversePath,
        declared_size: Option<u64>,
    },
    Recipient(Address),
    /// A recipient that is no address: to be counted, and refused.
    MalformedRecipient,
    /// DATA or the first BDAT: may a message come in now?
    Content,
    Message(Box<EndOfData>),
}

/// The end of DATA or of the last chunk.
#[derive(PartialEq, Debug)]
pub struct EndOfData {
    pub envelope: Envelope,
    /// Octets that came in, kept or not.
    pub size: u64,
    pub content: Result<Bytes, Fault>,
}

/// Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(pub Vec<u8>);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}
