//! Early answers: what a sender or recipient is told at MAIL and RCPT, before there is a message.
//!
//! Limits and locks are advice here, from this node's replica; only the admission decides.

use crate::mail::{Address, ReversePath};
use crate::smtp::Reply;
use crate::submission::{Client, Line};

/// A transaction as far as it is known at RCPT.
#[derive(Debug)]
pub struct Transaction<'a> {
    pub reverse_path: &'a ReversePath,
    /// Accepted so far.
    pub recipients: &'a [Address],
}

/// `Ok` = 250 to MAIL. `declared_size` is SIZE=.
pub async fn sender(
    _line: &Line,
    _client: &Client,
    _reverse_path: &ReversePath,
    _declared_size: Option<u64>,
) -> Result<(), Reply> {
    todo!()
}

/// `Ok` = 250 to RCPT.
pub async fn recipient(
    _line: &Line,
    _client: &Client,
    _transaction: Transaction<'_>,
    _recipient: &Address,
) -> Result<(), Reply> {
    todo!()
}

/// Counts a recipient that could not even be parsed.
pub async fn malformed_recipient(_line: &Line, _client: &Client) {
    todo!()
}
