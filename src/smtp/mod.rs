//! The submission protocol as a pure machine: bytes in, questions and replies out. No sockets here.
//!
//! Never here: I/O, clocks, the replicated state, judgement of content.

pub mod client;
pub mod reply;

pub use reply::Reply;
