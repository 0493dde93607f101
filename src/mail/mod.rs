//! The nouns that every part shares. No I/O, and no other module of outgate.

pub mod address;
pub mod envelope;
pub mod id;
pub mod message;

pub use address::{Address, AddressError};
pub use envelope::{Body, Envelope, Notify, Recipient, Return, ReversePath};
pub use id::MessageId;
pub use message::{Header, Message};
