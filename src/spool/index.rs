//! The durable, queryable copy of the ledger in sled, so that a start need not read every segment.
//!
//! It holds up to a position in the segments; a start reads only what is behind it. The segments alone hold
//! the truth: an index that does not open or does not fit is moved aside and made anew.
//!
//! sled's `flush` never calls fsync, values above 8 KiB may land in files that are not synced either, and opening
//! may panic: hence the chunks, the fdatasync on sled's file and the `catch_unwind`.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use bincode::Options;
use serde::{Deserialize, Serialize};

use super::Whose;
use super::ledger::Live;
use super::segment::Location;
use crate::mail::MessageId;

const CHUNK_MAX_BYTES: usize = 7 * 1024;
const SEGMENT_SIZE_BYTES: usize = 8 << 20;
const CACHE_BYTES: u64 = 8 << 20;
/// One byte: sorts before every chunk and cannot be one.
const POSITION_KEY: &[u8] = b"p";

/// The segments' end as the index knows it.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Position {
    pub(super) segment: u64,
    pub(super) offset: u64,
}

/// One commit: everything that changed up to a position.
pub(super) struct Commit {
    pub(super) position: Position,
    batch: sled::Batch,
}

#[derive(Serialize)]
struct EntryRef<'a> {
    location: Location,
    accepted: bool,
    meta: &'a [u8],
    progress: Option<&'a [u8]>,
    whose: Whose,
}

#[derive(Deserialize)]
struct Entry {
    location: Location,
    accepted: bool,
    meta: Vec<u8>,
    progress: Option<Vec<u8>>,
    whose: Whose,
}

pub(super) struct Index {
    db: sled::Db,
    file: File,
}

/// What an index held when it was opened.
pub(super) struct Loaded {
    pub(super) position: Position,
    pub(super) messages: Vec<(MessageId, Live)>,
}

fn codec() -> impl Options {
    bincode::DefaultOptions::new().with_limit(64 << 20)
}

impl Commit {
    pub(super) fn new(position: Position) -> Self {
        let mut batch = sled::Batch::default();
        if let Ok(value) = codec().serialize(&position) {
            batch.insert(POSITION_KEY, value);
        }
        Self { position, batch }
    }

    pub(super) fn put(&mut self, id: MessageId, live: &mut Live) {
        let Live { location, accepted, whose, .. } = *live;
        let entry = EntryRef { location, accepted, meta: &live.meta, progress: live.progress.as_deref(), whose };
        // Cannot fail: the metadata was bounded when the message came. If it ever did, the old entry would stay.
        let Ok(value) = codec().serialize(&entry) else { return };
        let mut count: u16 = 0;
        for chunk in value.chunks(CHUNK_MAX_BYTES) {
            self.batch.insert(&key(id, count), chunk);
            count = count.saturating_add(1);
        }
        (count..live.chunks).for_each(|chunk| self.batch.remove(&key(id, chunk)));
        live.chunks = count;
    }

    pub(super) fn remove(&mut self, id: MessageId, chunks: u16) {
        (0..chunks).for_each(|chunk| self.batch.remove(&key(id, chunk)));
    }
}

fn key(id: MessageId, chunk: u16) -> [u8; 18] {
    let mut key = [0; 18];
    key[..16].copy_from_slice(&id.to_bytes());
    key[16..].copy_from_slice(&chunk.to_be_bytes());
    key
}

impl Index {
    /// Opens or makes the index; one that cannot be read is moved aside. `None` = nothing usable was in it. Blocks.
    pub(super) fn open(directory: &Path) -> io::Result<(Self, Option<Loaded>)> {
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let index = Self::open_or_create(directory)?;
            let loaded = index.load()?;
            io::Result::Ok((index, loaded))
        }));
        match opened {
            Ok(Ok(opened)) => return Ok(opened),
            Ok(Err(error)) => tracing::error!(%error, path = %directory.display(), "the queue's index is damaged"),
            Err(_panic) => tracing::error!(path = %directory.display(), "the queue's index cannot be opened"),
        }
        Ok((Self::rebuild(directory)?, None))
    }

    /// Moves what is there aside (one copy is kept) and begins an empty index.
    pub(super) fn rebuild(directory: &Path) -> io::Result<Self> {
        let aside = aside(directory);
        if aside.exists() {
            std::fs::remove_dir_all(&aside)?;
        }
        if directory.exists() {
            std::fs::rename(directory, &aside)?;
        }
        Self::open_or_create(directory)
    }

    fn open_or_create(directory: &Path) -> io::Result<Self> {
        let is_new = !directory.join("db").exists();
        let config = sled::Config::new().path(directory).segment_size(SEGMENT_SIZE_BYTES).cache_capacity(CACHE_BYTES);
        let db = config.open().map_err(io::Error::other)?;
        let file = File::open(directory.join("db"))?;
        if is_new {
            db.flush().map_err(io::Error::other)?;
            file.sync_all()?;
            File::open(directory.join("conf"))?.sync_all()?;
            File::open(directory)?.sync_all()?;
            if let Some(parent) = directory.parent() {
                File::open(parent)?.sync_all()?;
            }
        }
        Ok(Self { db, file })
    }

    fn load(&self) -> io::Result<Option<Loaded>> {
        let Some(position) = self.db.get(POSITION_KEY).map_err(io::Error::other)? else { return Ok(None) };
        let position = codec().deserialize(&position).map_err(io::Error::other)?;
        let mut messages = Vec::new();
        let mut value: Vec<u8> = Vec::new();
        let mut chunks: u16 = 0;
        let mut rows = self.db.iter().filter(|row| !matches!(row, Ok((key, _)) if key == POSITION_KEY)).peekable();
        while let Some(row) = rows.next() {
            let (row_key, chunk) = row.map_err(io::Error::other)?;
            let id = id_of(&row_key).filter(|&id| row_key[..] == key(id, chunks)).ok_or_else(broken)?;
            value.extend_from_slice(&chunk);
            chunks += 1;
            let goes_on = matches!(rows.peek(), Some(Ok((next, _))) if id_of(next) == Some(id));
            if !goes_on {
                messages.push((id, decode(&value, chunks)?));
                value.clear();
                chunks = 0;
            }
        }
        Ok(Some(Loaded { position, messages }))
    }

    /// Durable when it returns. Blocks; only one thread may call it.
    pub(super) fn commit(&self, commit: Commit) -> io::Result<()> {
        self.db.apply_batch(commit.batch).map_err(io::Error::other)?;
        self.db.flush().map_err(io::Error::other)?;
        self.file.sync_data()
    }
}

fn aside(directory: &Path) -> PathBuf {
    directory.with_extension("damaged")
}

fn id_of(key: &[u8]) -> Option<MessageId> {
    (key.len() == 18).then(|| key.get(..16)?.try_into().ok().map(MessageId::from_bytes)).flatten()
}

fn decode(value: &[u8], chunks: u16) -> io::Result<Live> {
    let Entry { location, accepted, meta, progress, whose } = codec().deserialize(value).map_err(|_| broken())?;
    Ok(Live { location, accepted, whose, meta: meta.into(), progress: progress.map(Into::into), chunks })
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "an entry is not whole")
}
