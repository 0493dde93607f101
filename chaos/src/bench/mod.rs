//! Benchmarks: each runs the product beside a peer, in turns, on the same machine.

pub(crate) mod cpu;
pub(crate) mod idle;
pub(crate) mod process;
pub(crate) mod submission;
pub(crate) mod tls;
