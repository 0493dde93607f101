//! What was taken over, on disk: one file for each old owner, one record for each message.
//!
//! The list is the point from which on a message is taken over: it is written and synced before the spool hears of it, a
//! start finishes what it names, and the old owner drops what it names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::durable::{create_directory, write_durably};
use crate::mail::MessageId;

const ID_LENGTH: usize = 16;
/// An id and its checksum.
const RECORD_LENGTH: usize = ID_LENGTH + 4;

pub(super) struct Taken {
    directory: PathBuf,
    lists: BTreeMap<u64, BTreeSet<MessageId>>,
}

impl Taken {
    /// Blocks.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        create_directory(directory)?;
        let mut lists = BTreeMap::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let owner = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if let Some(owner) = owner {
                lists.insert(owner, read(&fs::read(entry.path())?));
            }
        }
        Ok(Self { directory: directory.to_owned(), lists })
    }

    /// On disk when it returns. Blocks.
    pub(super) fn add(&mut self, owner: u64, ids: &[MessageId]) -> io::Result<()> {
        let bytes = write(ids.iter());
        let mut file = OpenOptions::new().append(true).create(true).open(self.path(owner))?;
        // A record that a crash cut off must not put the next ones out of step.
        let torn = file.metadata()?.len() % RECORD_LENGTH as u64;
        if torn > 0 {
            file.set_len(file.metadata()?.len() - torn)?;
        }
        let whole = file.metadata()?.len();
        let written = file
            .write_all(&bytes)
            .and_then(|()| file.sync_all())
            .and_then(|()| File::open(&self.directory)?.sync_all());
        if let Err(error) = written {
            // The next start must not take over what this one did not.
            file.set_len(whole)?;
            return Err(error);
        }
        self.lists.entry(owner).or_default().extend(ids);
        Ok(())
    }

    pub(super) fn of(&self, owner: u64) -> Option<&BTreeSet<MessageId>> {
        self.lists.get(&owner)
    }

    /// These are passed on to other nodes, which know what becomes of them. On disk when it returns. Blocks.
    pub(super) fn strike(&mut self, passed_on: &BTreeSet<MessageId>) -> io::Result<()> {
        for owner in self.owners() {
            let Some(listed) = self.of(owner).filter(|listed| !listed.is_disjoint(passed_on)) else { continue };
            let stay = listed - passed_on;
            write_durably(&self.directory, &owner.to_string(), &[&write(stay.iter())])?;
            self.lists.insert(owner, stay);
        }
        Ok(())
    }

    pub(super) fn holds(&self, id: MessageId) -> bool {
        self.lists.values().any(|ids| ids.contains(&id))
    }

    pub(super) fn owners(&self) -> Vec<u64> {
        self.lists.keys().copied().collect()
    }

    /// Blocks.
    pub(super) fn forget(&mut self, owner: u64) -> io::Result<()> {
        if self.lists.contains_key(&owner) {
            fs::remove_file(self.path(owner))?;
            self.lists.remove(&owner);
        }
        Ok(())
    }

    fn path(&self, owner: u64) -> PathBuf {
        self.directory.join(owner.to_string())
    }
}

fn write<'a>(ids: impl Iterator<Item = &'a MessageId>) -> Vec<u8> {
    let record = |id: [u8; ID_LENGTH]| [&id[..], &crc32fast::hash(&id).to_le_bytes()].concat();
    ids.flat_map(|id| record(id.to_bytes())).collect()
}

/// Records that are whole.
fn read(bytes: &[u8]) -> BTreeSet<MessageId> {
    let id = |record: &[u8]| {
        let (id, checksum) = record.split_first_chunk::<ID_LENGTH>()?;
        (crc32fast::hash(id).to_le_bytes() == checksum).then(|| MessageId::from_bytes(*id))
    };
    bytes.chunks_exact(RECORD_LENGTH).filter_map(id).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_list_survives_and_a_torn_record_costs_itself_alone() {
        let base = tempfile::tempdir().unwrap();
        let ids: Vec<_> = (0..3).map(|_| MessageId::generate()).collect();
        let mut taken = Taken::open(base.path()).unwrap();
        taken.add(7, &ids[..2]).unwrap();
        let path = base.path().join("7");
        let whole = fs::read(&path).unwrap();
        for length in 0..=whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let mut taken = Taken::open(base.path()).unwrap();
            let kept = length / RECORD_LENGTH;
            assert_eq!(taken.of(7).unwrap().len(), kept);
            taken.add(7, &ids[2..]).unwrap();
            let again = Taken::open(base.path()).unwrap();
            assert_eq!(again.of(7), taken.of(7));
            assert!(again.of(7).unwrap().len() == kept + 1 && again.of(7).unwrap().contains(&ids[2]));
        }
        let mut taken = Taken::open(base.path()).unwrap();
        taken.add(8, &ids[..1]).unwrap();
        taken.strike(&BTreeSet::from([ids[2], ids[0]])).unwrap();
        let again = Taken::open(base.path()).unwrap();
        assert_eq!((again.of(7), again.holds(ids[0]), again.holds(ids[1])), (taken.of(7), false, true));
        taken.forget(7).unwrap();
        taken.forget(8).unwrap();
        assert!(taken.owners().is_empty() && Taken::open(base.path()).unwrap().owners().is_empty());
    }
}
