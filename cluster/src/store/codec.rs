//! The one place that knows how values become bytes: bincode 1.3.3, fixed integers, a size limit, no trailing bytes.

use std::fmt;
use std::ops::Deref;

use bincode::Options;
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Larger values are not ours.
pub const ENCODED_SIZE_MAX: u64 = 64 * 1024 * 1024;

#[derive(thiserror::Error, Debug)]
#[error("cannot decode {what}: {source}")]
pub struct DecodeError {
    pub what: &'static str,
    pub source: bincode::Error,
}

impl DecodeError {
    pub(crate) fn custom(what: &'static str, why: &str) -> Self {
        Self { what, source: Box::new(bincode::ErrorKind::Custom(why.to_owned())) }
    }
}

fn options() -> impl Options {
    bincode::DefaultOptions::new().with_fixint_encoding().with_limit(ENCODED_SIZE_MAX).reject_trailing_bytes()
}

/// Encodes a value of ours, which cannot fail below [`ENCODED_SIZE_MAX`].
#[expect(clippy::expect_used, reason = "our own types always encode; a larger value was refused on its way in")]
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    options().serialize(value).expect("own types encode")
}

/// Encodes a key: integers with the greatest byte first, so that the bytes stand in their order.
#[expect(clippy::expect_used, reason = "as for encode")]
pub fn encode_key<T: Serialize>(key: &T) -> Vec<u8> {
    options().with_big_endian().serialize(key).expect("own types encode")
}

/// Decodes what [`encode_key`] gave.
pub fn decode_key<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    options().with_big_endian().deserialize(bytes).map_err(|source| DecodeError { what: "key", source })
}

/// Decodes bytes from disk or a peer; `what` names them in the error.
pub fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, DecodeError> {
    options().deserialize(bytes).map_err(|source| DecodeError { what, source })
}

/// Octets that are written as a whole and not one by one; the same bytes as a `Vec<u8>`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Blob(pub Vec<u8>);

impl Deref for Blob {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// The borrowed form of a [`Blob`].
pub(crate) struct Octets<'a>(pub(crate) &'a [u8]);

impl Serialize for Octets<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Octets(&self.0).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Whole;
        impl Visitor<'_> for Whole {
            type Value = Blob;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("octets")
            }

            fn visit_byte_buf<E>(self, octets: Vec<u8>) -> Result<Blob, E> {
                Ok(Blob(octets))
            }
        }
        deserializer.deserialize_byte_buf(Whole)
    }
}

/// Which command, and how many are in it.
const BATCH_HEAD_BYTES: usize = 4 + 8;

/// [`encode`] of `Command::Batch` from its commands' own encodings, one behind the other, so that each is encoded once and where it is made.
pub(crate) fn encode_batch(commands: usize, encoded: &[u8]) -> Vec<u8> {
    const BATCH: u32 = 0;
    let mut bytes = Vec::with_capacity(BATCH_HEAD_BYTES + encoded.len());
    bytes.extend_from_slice(&BATCH.to_le_bytes());
    bytes.extend_from_slice(&(commands as u64).to_le_bytes());
    bytes.extend_from_slice(encoded);
    bytes
}

/// The encodings of the commands of an encoded batch, one behind the other.
pub(crate) fn batch_body(mut batch: Vec<u8>) -> Vec<u8> {
    batch.drain(..BATCH_HEAD_BYTES.min(batch.len()));
    batch
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::command::Command;
    use crate::name::UserId;
    use crate::state::Key;

    #[test]
    fn a_batch_of_encodings_is_the_encoding_of_the_batch() {
        let commands = vec![Command::Tick, Command::Settle { node: 7, epoch: 3 }, Command::Tick];
        let parts = commands.iter().map(encode).collect::<Vec<_>>().concat();
        let batch = encode_batch(commands.len(), &parts);
        assert_eq!(batch, encode(&Command::Batch(commands)));
        assert_eq!(batch_body(batch), parts);
    }

    #[test]
    fn keys_stand_in_the_order_of_their_bytes() {
        let ids = [0, 1, 255, 256, u64::MAX].map(UserId);
        let keys: Vec<Key> = ids.into_iter().map(Key::User).chain(ids.into_iter().map(Key::Conduct)).collect();
        let encoded: Vec<Vec<u8>> = keys.iter().map(encode_key).collect();
        assert!(encoded.is_sorted());
        assert!(encoded.iter().zip(&keys).all(|(bytes, key)| decode_key::<Key>(bytes).unwrap() == *key));
        assert!(decode_key::<Key>(&encoded[0][1..]).is_err());
    }

    #[test]
    fn a_blob_is_written_like_a_vector() {
        let octets = vec![1u8, 2, 255];
        assert_eq!(encode(&Blob(octets.clone())), encode(&octets));
        assert_eq!(decode::<Blob>("octets", &encode(&octets)).unwrap().0, octets);
    }

    #[test]
    fn trailing_bytes_and_short_input_are_refused() {
        let mut bytes = encode(&Command::Tick);
        assert!(decode::<Command>("command", &bytes[..3]).is_err());
        bytes.push(0);
        assert!(decode::<Command>("command", &bytes).unwrap_err().to_string().contains("command"));
    }
}
