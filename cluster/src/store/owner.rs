//! Whose a directory is: a mark in it, so that one which was copied from another node is not taken for this one's.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::store::{OpenError, codec, durable};

const MAGIC: [u8; 8] = *b"outgown1";

/// A node of a cluster.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    pub cluster: [u8; 16],
    pub node: u64,
}

/// Marks `directory`, which is made if absent, as the owner's; refuses one that is marked as another's. Blocks.
pub fn claim(directory: &Path, owner: Owner) -> Result<(), OpenError> {
    let path = directory.join("owner");
    match fs::read(&path) {
        Ok(bytes) => match durable::unseal(MAGIC, &bytes).map(|body| codec::decode::<Owner>("owner", body)) {
            Some(Ok(found)) if found == owner => Ok(()),
            Some(Ok(found)) => Err(OpenError::Foreign(directory.to_owned(), found.node)),
            Some(Err(_)) | None => Err(OpenError::damaged(&path, "its checksum does not fit")),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            durable::create_directory(directory).map_err(OpenError::io(directory))?;
            durable::replace(&path, &durable::seal(MAGIC, &codec::encode(&owner))).map_err(OpenError::io(&path))
        }
        Err(error) => Err(OpenError::Io(path, error)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_directory_has_one_owner() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("log");
        let owner = Owner { cluster: [1; 16], node: 2 };
        claim(&directory, owner).unwrap();
        claim(&directory, owner).unwrap();
        for other in [Owner { node: 3, ..owner }, Owner { cluster: [2; 16], ..owner }] {
            let refused = claim(&directory, other).unwrap_err();
            assert!(matches!(&refused, OpenError::Foreign(_, 2)), "{refused}");
        }
        let mut bytes = fs::read(directory.join("owner")).unwrap();
        bytes[13] ^= 1;
        fs::write(directory.join("owner"), bytes).unwrap();
        assert!(matches!(claim(&directory, owner), Err(OpenError::Damaged(..))));
    }
}
