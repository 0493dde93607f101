//! Messages that come in several parts, on their way to the disk.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use crate::mail::MessageId;
use crate::mirror::letter::PART_MAX_BYTES;

/// Bytes of messages that came in part; above, further ones are refused.
const ASSEMBLING_MAX_BYTES: usize = 256 << 20;
/// Parts that nothing followed for so long are forgotten.
const ASSEMBLING_MAX: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct Parts {
    table: HashMap<(u64, MessageId), (BytesMut, Instant)>,
    bytes: usize,
}

impl Parts {
    pub(super) fn begin(&mut self, owner: u64, id: MessageId) -> Result<(), String> {
        let forgotten = self.table.extract_if(|_, (_, since)| since.elapsed() > ASSEMBLING_MAX);
        let bytes: usize = forgotten.map(|(_, (bytes, _))| bytes.len()).sum();
        self.bytes -= bytes;
        if let Some((old, _)) = self.table.insert((owner, id), (BytesMut::new(), Instant::now())) {
            self.bytes -= old.len();
        }
        Ok(())
    }

    pub(super) fn append(&mut self, owner: u64, id: MessageId, offset: u64, bytes: &[u8]) -> Result<(), String> {
        let (whole, since) = self.table.get_mut(&(owner, id)).ok_or("parts before this one are missing")?;
        if whole.len() as u64 != offset || bytes.len() > PART_MAX_BYTES {
            return Err(format!("a part at {offset} where {} was expected", whole.len()));
        }
        if self.bytes + bytes.len() > ASSEMBLING_MAX_BYTES {
            return Err("too much mail comes in parts".to_owned());
        }
        whole.extend_from_slice(bytes);
        *since = Instant::now();
        self.bytes += bytes.len();
        Ok(())
    }

    pub(super) fn end(&mut self, owner: u64, id: MessageId, offset: u64, bytes: &[u8]) -> Result<Bytes, String> {
        self.append(owner, id, offset, bytes)?;
        let (whole, _) = self.table.remove(&(owner, id)).ok_or("parts before this one are missing")?;
        self.bytes -= whole.len();
        Ok(whole.freeze())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn parts_make_a_whole_in_their_order_only() {
        let (mut parts, id) = (Parts::default(), MessageId::generate());
        assert!(parts.append(1, id, 0, b"ab").is_err(), "never begun");
        parts.begin(1, id).unwrap();
        parts.append(1, id, 0, b"ab").unwrap();
        assert!(parts.append(1, id, 3, b"d").is_err(), "a gap");
        assert!(parts.append(2, id, 2, b"c").is_err(), "of another node");
        assert_eq!(parts.end(1, id, 2, b"c").unwrap(), Bytes::from_static(b"abc"));
        assert_eq!((parts.bytes, parts.table.len()), (0, 0));
    }

    #[test]
    fn what_comes_in_parts_is_bounded() {
        let mut parts = Parts::default();
        let part = vec![0; PART_MAX_BYTES];
        let mut kept = 0;
        let id = MessageId::generate();
        parts.begin(1, id).unwrap();
        while parts.append(1, id, (kept * PART_MAX_BYTES) as u64, &part).is_ok() {
            kept += 1;
        }
        assert_eq!(kept * PART_MAX_BYTES, ASSEMBLING_MAX_BYTES);
        parts.begin(1, id).unwrap();
        assert_eq!(parts.bytes, 0, "begun anew");
    }
}
