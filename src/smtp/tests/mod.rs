//! Tests of the machine as a whole, without sockets.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod dialogs;
mod driver;
mod sequences;
mod splits;
