//! Snapshot files: the whole state at one point of the log, in a file that is either whole or not there.
//!
//! ```text
//! "outgsnp1" | length u32 | crc u32 | meta      the point in the log and the membership at it
//! length of key u32 | length of record u32 | key | record    … kind by kind, in the order of the keys' variants
//! u32::MAX | number of records u64 | crc u32    over everything behind the meta
//! ```
//! Written beside, synced, renamed, and the directory synced; then older ones are removed. Only after that may openraft
//! purge the log.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::raft::SnapshotMeta;
use crate::state::{Key, State};
use crate::store::{codec, durable};

const MAGIC: [u8; 8] = *b"outgsnp1";
const END: u32 = u32::MAX;
const META_BYTES_MAX: u32 = 1024 * 1024;
const RECORD_BYTES_MAX: u32 = 512 * 1024 * 1024;

/// A snapshot on this node's disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotFile {
    pub path: PathBuf,
}

/// The directory of snapshots; at most one is kept.
#[derive(Clone, Debug)]
pub struct Snapshots {
    directory: PathBuf,
    /// The one that is there is damaged.
    doubted: Arc<AtomicBool>,
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

impl Snapshots {
    pub fn open(home: &Path) -> io::Result<Self> {
        let directory = home.join("snapshot");
        durable::create_directory(&directory)?;
        let snapshots = Self { directory, doubted: Arc::default() };
        // What an earlier life left half done.
        [snapshots.beside(), snapshots.receiving().path].iter().try_for_each(|path| remove_if_there(path))?;
        Ok(snapshots)
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn path(&self, meta: &SnapshotMeta) -> PathBuf {
        self.directory.join(format!("{:020}.snapshot", meta.last_log_id.map_or(0, |id| id.index)))
    }

    /// Where a snapshot of a peer is put together before it is installed.
    pub fn receiving(&self) -> SnapshotFile {
        SnapshotFile { path: self.directory.join("receiving") }
    }

    /// Where a snapshot is written before it gets its name.
    fn beside(&self) -> PathBuf {
        self.directory.join("writing")
    }

    /// Removes what could not be written whole.
    pub fn give_up(&self) {
        if let Err(error) = remove_if_there(&self.beside()) {
            tracing::warn!(%error, "an unfinished snapshot stays until the next start");
        }
    }

    /// Reads a snapshot through that another node could not use; a damaged one is doubted until the next is written.
    pub fn examine(&self, file: &SnapshotFile) {
        match file.verify() {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!("{} is damaged ({error}): a new one is written", file.path.display());
                self.doubted.store(true, Ordering::Release);
            }
            // It is whole, or a newer one has just taken its place.
            Ok(_) | Err(_) => {}
        }
    }

    pub fn is_doubted(&self) -> bool {
        self.doubted.load(Ordering::Acquire)
    }

    /// The newest snapshot whose head is whole.
    pub fn current(&self) -> io::Result<Option<(SnapshotMeta, SnapshotFile)>> {
        loop {
            match self.newest() {
                // A newer one has just taken its place.
                Err(error) if error.kind() == io::ErrorKind::NotFound && self.directory.exists() => {}
                newest => return newest,
            }
        }
    }

    fn newest(&self) -> io::Result<Option<(SnapshotMeta, SnapshotFile)>> {
        let mut found = self.list()?;
        found.sort_unstable();
        for path in found.into_iter().rev() {
            match read_meta(&mut BufReader::new(File::open(&path)?)) {
                Ok(meta) => return Ok(Some((meta, SnapshotFile { path }))),
                Err(error) => tracing::warn!("{} is no snapshot: {error}", path.display()),
            }
        }
        Ok(None)
    }

    fn list(&self) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            found.extend(Some(entry?.path()).filter(|path| path.extension().is_some_and(|end| end == "snapshot")));
        }
        Ok(found)
    }

    /// Begins a new snapshot.
    pub fn write(&self, meta: &SnapshotMeta) -> io::Result<SnapshotWriter> {
        let beside = self.beside();
        let mut file = BufWriter::with_capacity(1024 * 1024, File::create(&beside)?);
        let encoded = codec::encode(meta);
        let length = u32::try_from(encoded.len()).map_err(io::Error::other)?;
        file.write_all(&MAGIC)?;
        file.write_all(&length.to_le_bytes())?;
        file.write_all(&crc32fast::hash(&encoded).to_le_bytes())?;
        file.write_all(&encoded)?;
        Ok(SnapshotWriter {
            snapshots: self.clone(),
            path: self.path(meta),
            beside,
            file,
            hasher: crc32fast::Hasher::new(),
            records: 0,
        })
    }

    /// Makes the content of `file`, which must be whole, this node's snapshot.
    pub fn adopt(&self, meta: &SnapshotMeta, file: &SnapshotFile) -> io::Result<SnapshotFile> {
        let (beside, path) = (self.beside(), self.path(meta));
        fs::copy(&file.path, &beside)?;
        self.publish(&File::open(&beside)?, &beside, &path)
    }

    fn publish(&self, file: &File, beside: &Path, path: &Path) -> io::Result<SnapshotFile> {
        file.sync_all()?;
        fs::rename(beside, path)?;
        durable::sync_directory(&self.directory)?;
        for other in self.list()? {
            if other != path {
                fs::remove_file(&other)?;
            }
        }
        self.doubted.store(false, Ordering::Release);
        Ok(SnapshotFile { path: path.to_owned() })
    }
}

/// A snapshot that is being written.
pub struct SnapshotWriter {
    snapshots: Snapshots,
    path: PathBuf,
    beside: PathBuf,
    file: BufWriter<File>,
    hasher: crc32fast::Hasher,
    records: u64,
}

impl SnapshotWriter {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.file.write_all(bytes)
    }

    pub fn record(&mut self, key: &Key, record: &[u8]) -> io::Result<()> {
        let key = codec::encode(key);
        for length in [key.len(), record.len()] {
            let length = u32::try_from(length).ok().filter(|length| *length <= RECORD_BYTES_MAX);
            self.put(&length.ok_or_else(|| bad("a record is too large"))?.to_le_bytes())?;
        }
        self.put(&key)?;
        self.put(record)?;
        self.records += 1;
        Ok(())
    }

    /// Ends the file and puts it in place; durable when it returns. Returns it with its size in bytes.
    pub fn finish(self) -> io::Result<(SnapshotFile, u64)> {
        let (snapshots, path) = (self.snapshots.clone(), self.path.clone());
        let (file, beside) = self.end()?;
        let bytes = file.metadata()?.len();
        Ok((snapshots.publish(&file, &beside, &path)?, bytes))
    }

    /// Ends the file and takes its name away: it is there for as long as somebody holds it.
    pub fn nameless(self) -> io::Result<File> {
        let (_, beside) = self.end()?;
        let file = File::open(&beside)?;
        fs::remove_file(&beside)?;
        Ok(file)
    }

    fn end(mut self) -> io::Result<(File, PathBuf)> {
        self.put(&END.to_le_bytes())?;
        self.put(&self.records.to_le_bytes())?;
        let crc = self.hasher.clone().finalize();
        self.file.write_all(&crc.to_le_bytes())?;
        Ok((self.file.into_inner().map_err(io::IntoInnerError::into_error)?, self.beside))
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn read_u32(file: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    file.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

fn read_meta(file: &mut impl Read) -> io::Result<SnapshotMeta> {
    let mut magic = [0; 8];
    file.read_exact(&mut magic)?;
    if magic != MAGIC {
        return Err(bad("it does not begin like one"));
    }
    let (length, crc) = (read_u32(file)?, read_u32(file)?);
    if length > META_BYTES_MAX {
        return Err(bad("its head is too large"));
    }
    let mut meta = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_exact(&mut meta)?;
    if crc32fast::hash(&meta) != crc {
        return Err(bad("the checksum of its head does not fit"));
    }
    codec::decode("snapshot", &meta).map_err(|error| bad(&error.to_string()))
}

/// A reader that sums up what it reads.
struct Summing<R> {
    inner: R,
    hasher: crc32fast::Hasher,
}

impl<R: Read> Read for Summing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

impl SnapshotFile {
    /// Reads the whole file; an error where anything in it is not as it was written.
    pub fn load(&self) -> io::Result<(SnapshotMeta, State)> {
        let mut state = State::default();
        let meta = self.read(|key, record| {
            let key = codec::decode("key", key).map_err(|error| bad(&error.to_string()))?;
            state.restore(key, record).map_err(|error| bad(&error.to_string()))
        })?;
        Ok((meta, state))
    }

    /// [`SnapshotFile::load`] without building the state.
    pub(crate) fn verify(&self) -> io::Result<SnapshotMeta> {
        self.read(|_, _| Ok(()))
    }

    /// Gives each key and record to `each`.
    pub(crate) fn read(&self, mut each: impl FnMut(&[u8], &[u8]) -> io::Result<()>) -> io::Result<SnapshotMeta> {
        let mut file = BufReader::with_capacity(1024 * 1024, File::open(&self.path)?);
        let meta = read_meta(&mut file)?;
        let mut file = Summing { inner: file, hasher: crc32fast::Hasher::new() };
        let mut records = 0u64;
        loop {
            let length = read_u32(&mut file)?;
            if length == END {
                break;
            }
            let (key, record) = read_record(&mut file, length)?;
            each(&key, &record)?;
            records += 1;
        }
        let mut count = [0; 8];
        file.read_exact(&mut count)?;
        let crc = file.hasher.clone().finalize();
        if u64::from_le_bytes(count) != records || read_u32(&mut file.inner)? != crc {
            return Err(bad("its checksum does not fit"));
        }
        Ok(meta)
    }
}

fn read_record(file: &mut impl Read, key_length: u32) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let record_length = read_u32(file)?;
    let mut read = |length: u32| {
        if length > RECORD_BYTES_MAX {
            return Err(bad("a record is too large"));
        }
        let mut bytes = Vec::new();
        // Grows with what is there: a damaged length must not ask for half a gigabyte.
        file.take(u64::from(length)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 == u64::from(length) { Ok(bytes) } else { Err(bad("it ends too early")) }
    };
    Ok((read(key_length)?, read(record_length)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use openraft::CommittedLeaderId;

    use super::*;
    use crate::command::{Command, DomainPatch};
    use crate::name::{DomainName, Timestamp};
    use crate::raft::LogId;

    fn meta(index: u64) -> SnapshotMeta {
        let last_log_id = Some(LogId::new(CommittedLeaderId::new(1, 1), index));
        SnapshotMeta { last_log_id, snapshot_id: index.to_string(), ..SnapshotMeta::default() }
    }

    fn state() -> State {
        let mut state = State::default();
        for name in ["a.example", "b.example"] {
            let name = DomainName::new(name).unwrap();
            state.apply(Timestamp(1), Command::DomainAdd { name, patch: DomainPatch::default() });
        }
        state
    }

    #[test]
    fn what_was_left_half_done_is_removed() {
        let home = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(home.path()).unwrap();
        drop(snapshots.write(&meta(3)).unwrap());
        fs::write(snapshots.receiving().path, "part").unwrap();
        assert_eq!(fs::read_dir(snapshots.directory()).unwrap().count(), 2);
        Snapshots::open(home.path()).unwrap();
        assert_eq!(fs::read_dir(snapshots.directory()).unwrap().count(), 0);
        drop(snapshots.write(&meta(3)).unwrap());
        snapshots.give_up();
        assert_eq!(fs::read_dir(snapshots.directory()).unwrap().count(), 0);
    }

    fn write(snapshots: &Snapshots, index: u64) -> SnapshotFile {
        let state = state();
        let mut writer = snapshots.write(&meta(index)).unwrap();
        state.keys().try_for_each(|key| writer.record(&key, &state.record(&key).unwrap())).unwrap();
        writer.finish().unwrap().0
    }

    #[test]
    fn a_snapshot_comes_back_and_a_second_one_replaces_it() {
        let home = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(home.path()).unwrap();
        assert!(snapshots.current().unwrap().is_none());
        let first = write(&snapshots, 9);
        let second = write(&snapshots, 10);
        assert!(!first.path.exists());
        let (current, file) = snapshots.current().unwrap().unwrap();
        assert_eq!((current, &file), (meta(10), &second));
        let (loaded_meta, loaded) = file.load().unwrap();
        assert_eq!(loaded_meta, meta(10));
        let records = |state: &State| state.keys().map(|key| (key.clone(), state.record(&key))).collect::<Vec<_>>();
        assert_eq!(records(&loaded), records(&state()));
    }

    #[test]
    fn a_damaged_snapshot_is_doubted_until_there_is_another() {
        let home = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(home.path()).unwrap();
        let file = write(&snapshots, 9);
        snapshots.examine(&file);
        assert!(!snapshots.is_doubted());
        let mut bytes = fs::read(&file.path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&file.path, bytes).unwrap();
        snapshots.examine(&file);
        assert!(snapshots.is_doubted());
        write(&snapshots, 10);
        assert!(!snapshots.is_doubted());
        snapshots.examine(&file);
        assert!(!snapshots.is_doubted(), "it is gone, not damaged");
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_refused_and_an_unfinished_one_is_none() {
        let home = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(home.path()).unwrap();
        drop(snapshots.write(&meta(3)).unwrap());
        assert!(snapshots.current().unwrap().is_none());
        let file = write(&snapshots, 4);
        let whole = fs::read(&file.path).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut broken = whole.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            fs::write(&file.path, &broken).unwrap();
            assert!(file.load().is_err(), "bit {bit}");
        }
        for cut in 0..whole.len() {
            fs::write(&file.path, &whole[..cut]).unwrap();
            assert!(file.load().is_err(), "cut at {cut}");
        }
        fs::write(&file.path, &whole[..10]).unwrap();
        assert!(snapshots.current().unwrap().is_none());
    }
}
