//! Everything that is tested from outside: real processes, real sockets, real peers.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that fails says so by a panic"
)]

mod cluster;
mod delivery;
mod faults;
mod identity;
mod limits;
mod locks;
mod network;
mod operator;
mod peers;
mod power_cut;
mod protocol;
mod recovery;
mod setup;
mod strangers;
mod support;
mod take_over;
mod tidy;
