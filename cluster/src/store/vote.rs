//! The vote: for whom this node voted, in a file of its own so that no torn log can take it back.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use openraft::Vote;

use crate::store::{OpenError, codec, durable};

const MAGIC: [u8; 8] = *b"outgvot1";

#[derive(Clone, Debug)]
pub struct VoteFile {
    path: PathBuf,
}

impl VoteFile {
    pub fn new(directory: &Path) -> Self {
        Self { path: directory.join("vote") }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn read(&self) -> Result<Option<Vote<u64>>, OpenError> {
        let bytes = match fs::read(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(OpenError::io(&self.path))?,
        };
        let body = durable::unseal(MAGIC, &bytes)
            .ok_or_else(|| OpenError::damaged(&self.path, "the checksum of the vote does not fit"))?;
        codec::decode("vote", body).map(Some).map_err(|error| OpenError::damaged(&self.path, error.to_string()))
    }

    /// Durable when it returns.
    pub fn write(&self, vote: &Vote<u64>) -> io::Result<()> {
        durable::replace(&self.path, &durable::seal(MAGIC, &codec::encode(vote)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_vote_comes_back_and_a_damaged_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = VoteFile::new(directory.path());
        assert_eq!(file.read().unwrap(), None);
        file.write(&Vote::new_committed(3, 1)).unwrap();
        assert_eq!(file.read().unwrap(), Some(Vote::new_committed(3, 1)));
        let mut bytes = fs::read(&file.path).unwrap();
        bytes[14] ^= 4;
        fs::write(&file.path, bytes).unwrap();
        assert!(matches!(file.read(), Err(OpenError::Damaged(..))));
    }
}
