//! Tests of the machine as a whole, without sockets.

#![allow(clippy::unwrap_used, reason = "tests")]

mod dialogs;
mod driver;
mod sequences;
mod splits;
