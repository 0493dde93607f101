//! The layout of keys and values in the checkpoint's sled tree.
//!
//! ```text
//! "m"                        → meta: what the checkpoint holds
//! "r" | key | chunk u16 BE   → one chunk of a record
//! ```
//! A key is encoded so that its bytes stand in the order of [`Key`](crate::state::Key)'s kinds and ids: what is written
//! together lies together. No key begins like another one that is longer.
//!
//! A record is stored as `length u32 | hash u64 | bytes` (little-endian) in chunks below 8 KB, because sled moves larger
//! values into files of their own that it never syncs.

/// Room for one chunk of a record, safely below sled's limit for values within a page.
pub const CHUNK_BYTES_MAX: usize = 7 * 1024;
const KEY_BYTES_MAX: usize = u16::MAX as usize;
pub const META: &[u8] = b"m";
pub const RECORD: &[u8] = b"r";
const RECORD_HEAD_BYTES: usize = 12;

/// The sled key of a chunk; `None` for a key above 64 KiB or a record above 448 MiB.
pub fn chunk(key: &[u8], number: usize) -> Option<Vec<u8>> {
    let number = u16::try_from(number).ok().filter(|_| key.len() <= KEY_BYTES_MAX)?;
    Some([RECORD, key, &number.to_be_bytes()].concat())
}

/// The record's key and chunk number from a sled key.
pub fn parse(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let (key, number) = bytes.strip_prefix(RECORD)?.split_last_chunk()?;
    Some((key, usize::from(u16::from_be_bytes(*number))))
}

/// `length | hash | record`, to be cut into chunks.
pub fn pack(record: &[u8], hash: u64) -> Option<Vec<u8>> {
    let length = u32::try_from(record.len()).ok()?;
    Some([length.to_le_bytes().as_slice(), &hash.to_le_bytes(), record].concat())
}

/// Length and hash of a record from its first chunk.
pub fn head(first_chunk: &[u8]) -> Option<(usize, u64)> {
    let (length, rest) = first_chunk.split_first_chunk()?;
    let hash = u64::from_le_bytes(*rest.first_chunk()?);
    Some((usize::try_from(u32::from_le_bytes(*length)).ok()?, hash))
}

/// In how many chunks a record of this length is kept.
pub fn chunk_count(length: usize) -> usize {
    (length + RECORD_HEAD_BYTES).div_ceil(CHUNK_BYTES_MAX)
}

/// The record within its joined chunks.
pub fn unpack(packed: &[u8]) -> Option<&[u8]> {
    let (length, _) = head(packed)?;
    packed.get(RECORD_HEAD_BYTES..).filter(|record| record.len() == length)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn keys_and_records_come_back() {
        let key = chunk(b"user", 3).unwrap();
        assert_eq!(parse(&key), Some((b"user".as_slice(), 3)));
        assert_eq!(parse(b"m"), None);
        assert_eq!(chunk(&[0; 70_000], 0), None);
        for length in [0, 1, CHUNK_BYTES_MAX - 12, CHUNK_BYTES_MAX - 11, 50_000] {
            let record = vec![7; length];
            let packed = pack(&record, 9).unwrap();
            assert_eq!(packed.chunks(CHUNK_BYTES_MAX).count(), chunk_count(length));
            assert_eq!(head(&packed), Some((length, 9)));
            assert_eq!(unpack(&packed), Some(record.as_slice()));
            assert_eq!(unpack(&packed[..packed.len() - 1]), None.filter(|_: &&[u8]| length == 0));
        }
    }
}
