//! How nodes talk: mutual TLS 1.3, one connection for each peer and purpose, numbered frames.
//!
//! Reading order: [`authority`] (who vouches for whom), [`tls`] (what a node shows and believes), [`frame`] (bytes),
//! [`message`] (what is said), [`peers`] (calling), [`server`] (being called), [`raft_network`] (openraft's view),
//! [`snapshot`] (the one thing that is a stream), [`service`] (what is carried unread), [`join`] (the only thing that a
//! stranger may ask).
//!
//! Invariants:
//! * Nobody without a certificate of this cluster's authority is heard, but for the one question of [`join`].
//! * Who calls is who its certificate says, and a member as far as this node knows; looked at for each request, so that a
//!   removed node's certificate is worthless at once.
//! * Nothing is read that is longer than its channel allows; everything that waits for a peer has a time limit.
//! * A slow transfer delays no heartbeat: appends, forwarded commands, pings, snapshots and services have connections of
//!   their own.

pub(crate) mod authority;
pub(crate) mod frame;
pub(crate) mod join;
pub(crate) mod message;
pub(crate) mod peers;
pub(crate) mod raft_network;
pub(crate) mod server;
pub(crate) mod service;
pub(crate) mod snapshot;
pub(crate) mod socket;
pub(crate) mod tls;
