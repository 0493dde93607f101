//! outgate: a filter for outgoing mail that runs as a cluster.
//!
//! The straight line of a message:
//!
//! ```text
//! socket ─► listener ─► connection ─► smtp::Session ─► user ─► check ─► cluster ─► policy ─► spool ─► 250
//!                                     (pure)        (who)   (find)  (admit)   (decide)   │
//!                                               maillog ◄── every step          queue ─► delivery ─► next hop
//!                                                                                 │           └─► dsn
//!                                                                             quarantine
//! ```
//!
//! Start reading at [`submission`]: it is that line after the end of DATA.
//! Two rules hold everywhere: only [`connection`] writes to a client, and only [`policy`] turns
//! findings into consequences. Who may import whom is written in `tests/it/tidy.rs`.

pub mod check;
pub mod cli;
mod clock;
pub mod config;
pub mod connection;
pub mod delivery;
pub mod dns;
mod durable;
pub mod listener;
pub mod mail;
pub mod maillog;
pub mod metrics;
pub mod mirror;
pub mod node;
pub mod policy;
pub mod quarantine;
pub mod queue;
pub mod reception;
pub mod smtp;
pub mod spool;
pub mod stamp;
pub mod submission;
mod take_over;
pub mod tls;
pub mod user;
pub mod web;

/// Of every program that this library is in.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
