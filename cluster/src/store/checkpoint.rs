//! The durable, queryable copy of the state in sled.
//!
//! sled's `flush` does not sync, its values above 8 KB live in files that are not synced, a torn database may open empty
//! or panic. So a checkpoint is: one atomic batch of the changed records with their meta, `flush`, `fdatasync` of the data
//! file; and the meta counts and sums the records, so that a copy which lost anything is recognised.
//!
//! Invariants:
//! * Only the keeper's thread writes, so that flushes never overlap.
//! * The meta is in the same batch as the last of the records that it counts; a copy without meta is unfinished and
//!   worthless. More than `BATCH_RECORDS_MAX` records are written behind a meta that was taken away: a crash meanwhile
//!   has the copy built anew from snapshot and log.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::raft::{LogId, Membership};
use crate::state::{Key, State};
use crate::store::machine::Change;
use crate::store::{codec, durable, keys};

/// sled's own cache; the state itself is in memory already.
const CACHE_BYTES_MAX: u64 = 64 * 1024 * 1024;
const SEGMENT_BYTES: usize = 8 * 1024 * 1024;
const OPEN_ATTEMPTS_MAX: u32 = 100;
const OPEN_PAUSE: Duration = Duration::from_millis(20);
/// Records that are written in one batch: sled holds a copy of a page for each of them until the batch is done.
const BATCH_RECORDS_MAX: usize = 8 * 1024;
/// Records that go from one thread to the other at once while a copy is loaded, and how often they may wait there.
const LOAD_BATCH_RECORDS: usize = 1_000;
const LOAD_BATCHES_MAX: usize = 8;

#[derive(thiserror::Error, Debug)]
pub enum CheckpointError {
    #[error(transparent)]
    Sled(#[from] sled::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it is not complete")]
    Incomplete,
    #[error("it belongs to another cluster")]
    Foreign,
    #[error("it does not add up: {0}")]
    Corrupt(&'static str),
    #[error("opening it panicked")]
    Panicked,
    #[error("a record or its key is too large")]
    TooLarge,
}

/// What a checkpoint holds.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Meta {
    pub cluster: [u8; 16],
    pub applied: Option<LogId>,
    pub membership: Membership,
    pub records: u64,
    /// Wrapping sum of the records' hashes.
    pub sum: u64,
}

pub struct Checkpoint {
    db: sled::Db,
    data: File,
    meta: Meta,
    /// The meta is on disk.
    is_complete: bool,
}

fn hash(key: &[u8], record: &[u8]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(record);
    hasher.finalize().as_bytes().first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
}

/// Waits a moment where sled's lock is taken: a process that was just forked holds its parent's files until it begins its
/// own program.
fn open_sled(path: &Path) -> Result<sled::Db, CheckpointError> {
    let config = sled::Config::new().path(path).segment_size(SEGMENT_BYTES).cache_capacity(CACHE_BYTES_MAX);
    let mut attempts = 0;
    loop {
        let opened = catch_unwind(AssertUnwindSafe(|| config.open())).map_err(|_| CheckpointError::Panicked)?;
        match opened {
            Err(sled::Error::Io(error)) if attempts < OPEN_ATTEMPTS_MAX && is_locked(&error) => {
                attempts += 1;
                std::thread::sleep(OPEN_PAUSE);
            }
            opened => return Ok(opened?),
        }
    }
}

/// sled tells it with words only.
fn is_locked(error: &io::Error) -> bool {
    error.to_string().contains("could not acquire lock")
}

/// Opens the copy under `path` with the state that it holds, or says why it cannot be used.
pub fn load(path: &Path, cluster: [u8; 16]) -> Result<(Checkpoint, State), CheckpointError> {
    let db = open_sled(path)?;
    catch_unwind(AssertUnwindSafe(|| {
        let bytes = db.get(keys::META)?.ok_or(CheckpointError::Incomplete)?;
        let meta: Meta = codec::decode("meta", &bytes).map_err(|_| CheckpointError::Corrupt("meta"))?;
        if meta.cluster != cluster {
            return Err(CheckpointError::Foreign);
        }
        let checkpoint = Checkpoint { data: File::open(path.join("db"))?, db, meta, is_complete: true };
        let state = checkpoint.state()?;
        Ok((checkpoint, state))
    }))
    .map_err(|_| CheckpointError::Panicked)?
}

type Batch = Vec<(Key, Vec<u8>)>;

/// Puts the state together from what comes, in its order.
fn restore(batches: &Receiver<Batch>) -> Result<State, CheckpointError> {
    let mut state = State::default();
    for (key, record) in batches.iter().flatten() {
        state.restore(key, &record).map_err(|_| CheckpointError::Corrupt("record"))?;
    }
    // What was loaded is what is on disk.
    drop(state.take_dirty());
    Ok(state)
}

/// Where an unusable copy is kept for a look; an earlier one is removed.
pub fn move_aside(path: &Path) -> io::Result<PathBuf> {
    let aside = path.with_extension("damaged");
    if aside.exists() {
        std::fs::remove_dir_all(&aside)?;
    }
    std::fs::rename(path, &aside)?;
    path.parent().map_or(Ok(()), durable::sync_directory)?;
    Ok(aside)
}

impl Checkpoint {
    /// Makes an empty copy; it stays [`CheckpointError::Incomplete`] until the first [`Checkpoint::write`].
    pub fn create(path: &Path, cluster: [u8; 16]) -> Result<Self, CheckpointError> {
        durable::create_directory(path)?;
        let db = open_sled(path)?;
        db.flush()?;
        let data = File::open(path.join("db"))?;
        data.sync_all()?;
        File::open(path.join("conf"))?.sync_all()?;
        durable::sync_directory(path)?;
        path.parent().map_or(Ok(()), durable::sync_directory)?;
        let meta = Meta { cluster, applied: None, membership: Membership::default(), records: 0, sum: 0 };
        Ok(Self { db, data, meta, is_complete: false })
    }

    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Writes the changed records (`None` = removed, each key once) with the point in the log at which they hold; durable when it returns.
    pub fn write(
        &mut self,
        changes: impl IntoIterator<Item = Change>,
        applied: Option<LogId>,
        membership: Membership,
    ) -> Result<(), CheckpointError> {
        let mut changes = changes.into_iter().peekable();
        let mut last = self.batch(changes.by_ref().take(BATCH_RECORDS_MAX))?;
        while changes.peek().is_some() {
            self.take_meta_away()?;
            self.db.apply_batch(last)?;
            last = self.batch(changes.by_ref().take(BATCH_RECORDS_MAX))?;
        }
        self.meta.applied = applied;
        self.meta.membership = membership;
        last.insert(keys::META, codec::encode(&self.meta));
        self.db.apply_batch(last)?;
        self.sync()?;
        self.is_complete = true;
        Ok(())
    }

    /// Removes everything, meta first: what is left is [`CheckpointError::Incomplete`] until the next [`Checkpoint::write`].
    pub fn clear(&mut self) -> Result<(), CheckpointError> {
        self.take_meta_away()?;
        self.db.clear()?;
        self.meta = Meta { applied: None, membership: Membership::default(), records: 0, sum: 0, ..self.meta.clone() };
        Ok(())
    }

    /// Writes the records ahead of the [`Checkpoint::write`] that completes the copy once they are many.
    pub fn write_ahead(&mut self, records: &mut BTreeMap<Key, Option<Vec<u8>>>) -> Result<(), CheckpointError> {
        if records.len() < BATCH_RECORDS_MAX {
            return Ok(());
        }
        self.take_meta_away()?;
        let batch = self.batch(std::mem::take(records))?;
        Ok(self.db.apply_batch(batch)?)
    }

    fn batch(&mut self, changes: impl IntoIterator<Item = Change>) -> Result<sled::Batch, CheckpointError> {
        let mut batch = sled::Batch::default();
        for (key, record) in changes {
            self.put(&mut batch, &key, record.as_deref())?;
        }
        Ok(batch)
    }

    fn take_meta_away(&mut self) -> Result<(), CheckpointError> {
        if self.is_complete {
            self.db.remove(keys::META)?;
            self.sync()?;
            self.is_complete = false;
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), CheckpointError> {
        self.db.flush()?;
        Ok(self.data.sync_data()?)
    }

    fn put(&mut self, batch: &mut sled::Batch, key: &Key, record: Option<&[u8]>) -> Result<(), CheckpointError> {
        let key = codec::encode_key(key);
        let chunk = |number| keys::chunk(&key, number).ok_or(CheckpointError::TooLarge);
        let mut old_chunks = 0;
        if let Some(old) = self.db.get(chunk(0)?)? {
            let (length, hash) = keys::head(&old).ok_or(CheckpointError::Corrupt("head of a record"))?;
            old_chunks = keys::chunk_count(length);
            self.meta.records -= 1;
            self.meta.sum = self.meta.sum.wrapping_sub(hash);
        }
        let mut chunks = 0;
        if let Some(record) = record {
            let hash = hash(&key, record);
            let packed = keys::pack(record, hash).ok_or(CheckpointError::TooLarge)?;
            for (number, part) in packed.chunks(keys::CHUNK_BYTES_MAX).enumerate() {
                batch.insert(chunk(number)?, part);
                chunks = number + 1;
            }
            self.meta.records += 1;
            self.meta.sum = self.meta.sum.wrapping_add(hash);
        }
        for number in chunks..old_chunks {
            batch.remove(chunk(number)?);
        }
        Ok(())
    }

    /// What the copy holds. One thread reads, another one puts the state together: a start with many Users waits for little
    /// else.
    fn state(&self) -> Result<State, CheckpointError> {
        std::thread::scope(|scope| {
            let (batches, waiting) = sync_channel(LOAD_BATCHES_MAX);
            let restoring = scope.spawn(move || restore(&waiting));
            let mut batch = Batch::new();
            // Where nobody takes any more, the other thread says why.
            let gone = || CheckpointError::Corrupt("record");
            let read = self.for_each(|key, record| {
                batch.push((key, record));
                if batch.len() < LOAD_BATCH_RECORDS {
                    return Ok(());
                }
                batches.send(std::mem::take(&mut batch)).map_err(|_| gone())
            });
            let sent = batches.send(batch).map_err(|_| gone());
            drop(batches);
            let state = restoring.join().map_err(|_| CheckpointError::Panicked)?;
            read.and(sent).and(state)
        })
    }

    /// Hands out every record in the order in which they lie on disk, which is kind by kind; checks that all are there and as
    /// they were written.
    pub fn for_each<E: From<CheckpointError>>(
        &self,
        mut take: impl FnMut(Key, Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut records, mut sum) = (0, 0u64);
        let mut rows = self.db.scan_prefix(keys::RECORD);
        while let Some(row) = rows.next() {
            let (bytes, record) = join(row.map_err(CheckpointError::from)?, &mut rows)?;
            records += 1;
            sum = sum.wrapping_add(hash(&bytes, &record));
            let key = codec::decode_key(&bytes).map_err(|_| CheckpointError::Corrupt("key of a record"))?;
            take(key, record)?;
        }
        if (records, sum) != (self.meta.records, self.meta.sum) {
            return Err(CheckpointError::Corrupt("number or sum of the records").into());
        }
        Ok(())
    }
}

/// The key and the record whose first chunk is in `first`; the others follow it.
fn join((name, first): (sled::IVec, sled::IVec), rest: &mut sled::Iter) -> Result<(Vec<u8>, Vec<u8>), CheckpointError> {
    let missing = || CheckpointError::Corrupt("chunks of a record");
    let (key, number) = keys::parse(&name).ok_or(CheckpointError::Corrupt("name of a record"))?;
    let (length, _) = keys::head(&first).filter(|_| number == 0).ok_or_else(missing)?;
    let mut packed = first.to_vec();
    for number in 1..keys::chunk_count(length) {
        let (next, part) = rest.next().ok_or_else(missing)??;
        if keys::parse(&next) != Some((key, number)) {
            return Err(missing());
        }
        packed.extend_from_slice(&part);
    }
    let record = keys::unpack(&packed).map(<[u8]>::to_vec).ok_or_else(missing)?;
    Ok((key.to_vec(), record))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use openraft::CommittedLeaderId;

    use super::*;
    use crate::command::Command;
    use crate::name::{DomainName, Timestamp};

    const CLUSTER: [u8; 16] = [7; 16];

    fn id(index: u64) -> Option<LogId> {
        Some(LogId::new(CommittedLeaderId::new(1, 1), index))
    }

    /// A state with one record far above what sled keeps in a page.
    fn state(contact_bytes: usize) -> State {
        let mut state = State::default();
        let name = DomainName::new("example.com").unwrap();
        let patch = crate::command::DomainPatch { contact: Some("x".repeat(contact_bytes)), ..Default::default() };
        state.apply(Timestamp(1), Command::DomainAdd { name, patch });
        state
    }

    fn records(state: &State) -> BTreeMap<Key, Option<Vec<u8>>> {
        state.keys().map(|key| (key.clone(), state.record(&key))).collect()
    }

    #[test]
    fn large_records_are_cut_into_chunks_and_shrink_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let mut checkpoint = Checkpoint::create(&path, CLUSTER).unwrap();
        for (index, contact_bytes) in [(1, 100), (2, 40_000), (3, 9_000), (4, 10)] {
            let state = state(contact_bytes);
            checkpoint.write(records(&state), id(index), Membership::default()).unwrap();
            for value in checkpoint.db.iter().values() {
                assert!(value.unwrap().len() <= keys::CHUNK_BYTES_MAX);
            }
            drop(checkpoint);
            let (again, loaded) = load(&path, CLUSTER).unwrap();
            assert_eq!(records(&loaded), records(&state));
            assert_eq!(again.meta().applied, id(index));
            checkpoint = again;
        }
        assert!(!path.join("blobs").exists() || std::fs::read_dir(path.join("blobs")).unwrap().next().is_none());
    }

    #[test]
    fn a_copy_that_is_in_use_is_waited_for_and_then_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let mut checkpoint = Checkpoint::create(&path, CLUSTER).unwrap();
        checkpoint.write(records(&state(1)), id(1), Membership::default()).unwrap();
        let letting_go = std::thread::spawn(move || {
            std::thread::sleep(5 * OPEN_PAUSE);
            drop(checkpoint);
        });
        let (checkpoint, _) = load(&path, CLUSTER).unwrap();
        letting_go.join().unwrap();
        assert!(
            matches!(load(&path, CLUSTER), Err(CheckpointError::Sled(error)) if error.to_string().contains("lock"))
        );
        drop(checkpoint);
    }

    #[test]
    fn a_lost_or_changed_record_a_foreign_and_an_unfinished_copy_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let mut checkpoint = Checkpoint::create(&path, CLUSTER).unwrap();
        drop(checkpoint);
        assert!(matches!(load(&path, CLUSTER), Err(CheckpointError::Incomplete)));
        move_aside(&path).unwrap();
        checkpoint = Checkpoint::create(&path, CLUSTER).unwrap();
        checkpoint.write(records(&state(20_000)), id(1), Membership::default()).unwrap();
        drop(checkpoint);
        assert!(matches!(load(&path, [8; 16]), Err(CheckpointError::Foreign)));
        let (checkpoint, _) = load(&path, CLUSTER).unwrap();
        let names: Vec<_> = checkpoint.db.scan_prefix(keys::RECORD).keys().map(Result::unwrap).collect();
        for name in names {
            let value = checkpoint.db.remove(&name).unwrap().unwrap();
            assert!(checkpoint.for_each(|_, _| Ok::<(), CheckpointError>(())).is_err(), "lost {name:?}");
            let mut changed = value.to_vec();
            *changed.last_mut().unwrap() ^= 1;
            checkpoint.db.insert(&name, changed).unwrap();
            assert!(checkpoint.for_each(|_, _| Ok::<(), CheckpointError>(())).is_err(), "changed {name:?}");
            checkpoint.db.insert(&name, value).unwrap();
        }
        checkpoint.for_each(|_, _| Ok::<(), CheckpointError>(())).unwrap();
    }

    #[test]
    fn what_takes_more_than_one_batch_is_incomplete_until_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let mut checkpoint = Checkpoint::create(&path, CLUSTER).unwrap();
        let mut state = state(1);
        checkpoint.write(records(&state), id(1), Membership::default()).unwrap();
        for number in 0..2 * BATCH_RECORDS_MAX {
            let name = DomainName::new(&format!("d{number}.example")).unwrap();
            state.apply(Timestamp(2), Command::DomainAdd { name, patch: Default::default() });
        }
        checkpoint.write_ahead(&mut BTreeMap::new()).unwrap();
        assert!(checkpoint.is_complete, "there was nothing to write");
        let mut ahead = records(&state);
        checkpoint.write_ahead(&mut ahead).unwrap();
        assert!(ahead.is_empty());
        drop(checkpoint);
        assert!(matches!(load(&path, CLUSTER), Err(CheckpointError::Incomplete)));
        move_aside(&path).unwrap();
        checkpoint = Checkpoint::create(&path, CLUSTER).unwrap();
        checkpoint.write(records(&state), id(2), Membership::default()).unwrap();
        drop(checkpoint);
        let (_, loaded) = load(&path, CLUSTER).unwrap();
        assert_eq!(records(&loaded), records(&state));
    }

    #[test]
    fn removed_records_go_and_a_cleared_copy_is_incomplete() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let mut checkpoint = Checkpoint::create(&path, CLUSTER).unwrap();
        let records = records(&state(10_000));
        let count = records.len() as u64;
        checkpoint.write(records.clone(), id(1), Membership::default()).unwrap();
        assert_eq!(checkpoint.meta().records, count);
        let domain = records.keys().find(|key| matches!(key, Key::Domain(_))).unwrap().clone();
        checkpoint.write([(domain, None)], id(2), Membership::default()).unwrap();
        assert_eq!(checkpoint.meta().records, count - 1);
        checkpoint.for_each(|_, _| Ok::<(), CheckpointError>(())).unwrap();
        checkpoint.clear().unwrap();
        drop(checkpoint);
        assert!(matches!(load(&path, CLUSTER), Err(CheckpointError::Incomplete)));
    }
}
