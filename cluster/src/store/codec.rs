//! The one place that knows how values become bytes: bincode 1.3.3, fixed integers, a size limit, no trailing bytes.

use bincode::Options;
use serde::{Serialize, de::DeserializeOwned};

/// Larger values are not ours.
pub const ENCODED_SIZE_MAX: u64 = 64 * 1024 * 1024;

#[derive(thiserror::Error, Debug)]
#[error("cannot decode {what}: {source}")]
pub struct DecodeError {
    pub what: &'static str,
    pub source: bincode::Error,
}

fn options() -> impl Options {
    bincode::DefaultOptions::new().with_fixint_encoding().with_limit(ENCODED_SIZE_MAX).reject_trailing_bytes()
}

/// Encodes a value of ours, which cannot fail below [`ENCODED_SIZE_MAX`].
#[expect(clippy::expect_used, reason = "our own types always encode; a larger value was refused on its way in")]
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    options().serialize(value).expect("own types encode")
}

/// Decodes bytes from disk or a peer; `what` names them in the error.
pub fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, DecodeError> {
    options().deserialize(bytes).map_err(|source| DecodeError { what, source })
}
