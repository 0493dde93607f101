//! The files of the quarantine. Everything here blocks.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::quota::Quota;
use super::{Held, QuarantineError};
use crate::durable::{create_directory, remove_if_there, sync_directory, write_durably};
use crate::mail::{Message, MessageId};

const DAY_MS: u64 = 24 * 3600 * 1000;
/// Held messages of equal content compete for one marker; this many different ones do not wait for one another.
const STRIPES: usize = 16;
/// Fields that tell messages apart; what a retry changes (Received, Date, Message-ID) is not among them.
const FINGERPRINT_FIELDS: [&str; 5] = ["From", "To", "Cc", "Subject", "Content-Type"];

pub(super) struct Store {
    directory: PathBuf,
    keep_ms: u64,
    stripes: [Mutex<()>; STRIPES],
    quota: Mutex<Quota>,
}

/// The first line of an entry's file.
#[derive(Serialize, Deserialize)]
struct Entry {
    held: Held,
    /// The marker under `once/` that goes with the entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    once: Option<String>,
}

impl Store {
    pub(super) fn open(directory: &Path, keep_days: u64) -> Result<Self, QuarantineError> {
        create_directory(&directory.join("once"))?;
        let stripes = std::array::from_fn(|_| Mutex::new(()));
        let (directory, keep_ms) = (directory.to_owned(), keep_days.saturating_mul(DAY_MS));
        let store = Self { directory, keep_ms, stripes, quota: Mutex::default() };
        let days = store.days()?.into_iter().map(|day| store.day_path(day));
        for path in days.chain([store.directory.join("once")]) {
            remove_half_written(&path)?;
            put_all_back(&path)?;
        }
        Ok(store)
    }

    pub(super) fn wants(&self, held: &Held, message: &Message) -> Result<bool, QuarantineError> {
        if self.copy_exists(&fingerprint(held, message).to_hex())? {
            return Ok(false);
        }
        if self.quota().has_room(day_of(held.id), &held.user, held.size) {
            Ok(true)
        } else {
            Err(QuarantineError::Full)
        }
    }

    pub(super) fn hold_once(&self, held: &Held, message: &Message) -> Result<bool, QuarantineError> {
        let fingerprint = fingerprint(held, message);
        let _one_at_a_time = self.stripe(fingerprint.as_bytes()[0]);
        let name = fingerprint.to_hex();
        if self.copy_exists(&name)? {
            return Ok(false);
        }
        {
            let mut quota = self.quota();
            if !quota.has_room(day_of(held.id), &held.user, held.size) {
                return Err(QuarantineError::Full);
            }
            quota.charge(&held.user, held.size);
        }
        self.hold(held, message, Some(name.to_string()))?;
        write_durably(&self.directory.join("once"), &name, &[held.id.to_string().as_bytes()])?;
        Ok(true)
    }

    pub(super) fn hold(&self, held: &Held, message: &Message, once: Option<String>) -> Result<bool, QuarantineError> {
        let day = self.day_path(day_of(held.id));
        // Each time: whoever made the directory just now may not have synced it yet.
        create_directory(&day)?;
        let first = entry_line(held, once)?;
        write_durably(&day, &format!("{}.held", held.id), &[&first, message.bytes()])?;
        Ok(true)
    }

    pub(super) fn list(
        &self,
        domain: Option<&str>,
        user: Option<&str>,
        count: usize,
    ) -> Result<Vec<Held>, QuarantineError> {
        let fits = |held: &Held| domain.is_none_or(|d| held.domain == d) && user.is_none_or(|u| held.user == u);
        let mut found = Vec::new();
        for day in self.days()?.into_iter().rev() {
            for id in self.ids(day)?.into_iter().rev() {
                if found.len() >= count {
                    return Ok(found);
                }
                match entry(id, &self.path(id)) {
                    Ok(entry) => found.extend(Some(entry.held).filter(fits)),
                    // Removed since the directory was read.
                    Err(QuarantineError::Unknown(_)) => {}
                    Err(error) => tracing::warn!(%id, %error, "quarantine entry cannot be read"),
                }
            }
        }
        Ok(found)
    }

    pub(super) fn show(&self, id: MessageId) -> Result<(Held, Message), QuarantineError> {
        read(id, &self.path(id))
    }

    pub(super) fn take(&self, id: MessageId) -> Result<(Held, Message), QuarantineError> {
        fs::rename(self.path(id), self.taken_path(id)).map_err(|error| unknown_if_absent(id, error))?;
        read(id, &self.taken_path(id)).inspect_err(|_| {
            if let Err(error) = self.put_back(id) {
                tracing::error!(%id, %error, "quarantine entry is hidden until the next start");
            }
        })
    }

    pub(super) fn put_back(&self, id: MessageId) -> Result<(), QuarantineError> {
        fs::rename(self.taken_path(id), self.path(id)).map_err(|error| unknown_if_absent(id, error))
    }

    pub(super) fn taken(&self, id: MessageId) -> Result<(), QuarantineError> {
        self.delete(id, &self.taken_path(id))?;
        // Without it a crash of the machine would bring back what was delivered.
        Ok(sync_directory(&self.day_path(day_of(id)))?)
    }

    pub(super) fn remove(&self, id: MessageId) -> Result<Option<Held>, QuarantineError> {
        self.delete(id, &self.path(id))
    }

    /// The entry in `path` with its marker.
    fn delete(&self, id: MessageId, path: &Path) -> Result<Option<Held>, QuarantineError> {
        let (held, marker) = entry(id, path).ok().map(|entry| (entry.held, entry.once)).unzip();
        fs::remove_file(path).map_err(|error| unknown_if_absent(id, error))?;
        self.remove_marker(marker.flatten())?;
        Ok(held)
    }

    fn remove_marker(&self, marker: Option<String>) -> io::Result<()> {
        marker.map_or(Ok(()), |marker| remove_if_there(&self.directory.join("once").join(marker)))
    }

    /// What is held here becomes `path`, and is not held any more.
    pub(super) fn move_to(&self, id: MessageId, path: &Path) -> io::Result<()> {
        let marker = entry(id, &self.path(id)).ok().and_then(|entry| entry.once);
        fs::rename(self.path(id), path)?;
        self.remove_marker(marker)
    }

    pub(super) fn expire(&self, now_ms: u64) -> Result<Vec<(MessageId, Option<Held>)>, QuarantineError> {
        let before_ms = now_ms.saturating_sub(self.keep_ms);
        let mut expired = Vec::new();
        for day in self.days()?.into_iter().filter(|day| day * DAY_MS < before_ms) {
            for id in self.ids(day)?.into_iter().filter(|id| id.timestamp_ms() < before_ms) {
                expired.push((id, self.remove(id)?));
            }
            self.expire_copies(day, before_ms)?;
            if (day + 1) * DAY_MS < before_ms && names(&self.day_path(day))?.next().is_none() {
                fs::remove_dir(self.day_path(day))?;
            }
        }
        Ok(expired)
    }

    /// Whether the marker names a copy that is still held.
    fn copy_exists(&self, marker: &str) -> io::Result<bool> {
        match fs::read_to_string(self.directory.join("once").join(marker)) {
            Ok(id) => Ok(id.parse().is_ok_and(|id| self.path(id).exists())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Days that have a directory, oldest first.
    pub(super) fn days(&self) -> io::Result<Vec<u64>> {
        let mut days: Vec<u64> = names(&self.directory)?.filter_map(|name| name.parse().ok()).collect();
        days.sort_unstable();
        Ok(days)
    }

    /// Ids held of one day, oldest first.
    pub(super) fn ids(&self, day: u64) -> io::Result<Vec<MessageId>> {
        let id_of = |name: String| name.strip_suffix(".held")?.parse().ok();
        let mut ids: Vec<MessageId> = names(&self.day_path(day))?.filter_map(id_of).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    pub(super) fn path(&self, id: MessageId) -> PathBuf {
        self.day_path(day_of(id)).join(format!("{id}.held"))
    }

    pub(super) fn taken_path(&self, id: MessageId) -> PathBuf {
        self.day_path(day_of(id)).join(format!("{id}.releasing"))
    }

    pub(super) fn day_path(&self, day: u64) -> PathBuf {
        self.directory.join(day.to_string())
    }

    fn quota(&self) -> MutexGuard<'_, Quota> {
        self.quota.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stripe(&self, byte: u8) -> MutexGuard<'_, ()> {
        self.stripes[usize::from(byte) % STRIPES].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first line of an entry's file.
pub(super) fn entry_line(held: &Held, once: Option<String>) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(&Entry { held: held.clone(), once })?;
    line.push(b'\n');
    Ok(line)
}

fn entry(id: MessageId, path: &Path) -> Result<Entry, QuarantineError> {
    let file = File::open(path).map_err(|error| unknown_if_absent(id, error))?;
    let mut line = Vec::new();
    BufReader::new(file).read_until(b'\n', &mut line)?;
    Ok(serde_json::from_slice(&line).map_err(io::Error::from)?)
}

fn read(id: MessageId, path: &Path) -> Result<(Held, Message), QuarantineError> {
    let bytes = Bytes::from(fs::read(path).map_err(|error| unknown_if_absent(id, error))?);
    let end = memchr::memchr(b'\n', &bytes).ok_or_else(|| damaged(id))?;
    let entry: Entry = serde_json::from_slice(&bytes[..end]).map_err(io::Error::from)?;
    Ok((entry.held, Message::new(bytes.slice(end + 1..))))
}

pub(super) fn day_of(id: MessageId) -> u64 {
    id.timestamp_ms() / DAY_MS
}

fn fingerprint(held: &Held, message: &Message) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let mut add = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    add(held.user.as_bytes());
    add(held.identity.as_deref().unwrap_or_default().as_bytes());
    for name in FINGERPRINT_FIELDS {
        message.named(name).for_each(|header| add(header.value));
        add(name.as_bytes());
    }
    add(message.body());
    hasher.finalize()
}

fn remove_half_written(directory: &Path) -> io::Result<()> {
    names(directory)?.filter(|name| name.ends_with(".tmp")).try_for_each(|name| fs::remove_file(directory.join(name)))
}

/// What a crash left taken out.
fn put_all_back(directory: &Path) -> io::Result<()> {
    for name in names(directory)? {
        if let Some(id) = name.strip_suffix(".releasing") {
            fs::rename(directory.join(&name), directory.join(format!("{id}.held")))?;
        }
    }
    Ok(())
}

/// Names that are UTF-8; ours all are. A directory that is gone has none.
pub(super) fn names(directory: &Path) -> io::Result<impl Iterator<Item = String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => Some(entries),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let name = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
    Ok(entries.into_iter().flatten().filter_map(name))
}

fn unknown_if_absent(id: MessageId, error: io::Error) -> QuarantineError {
    if error.kind() == ErrorKind::NotFound { QuarantineError::Unknown(id) } else { QuarantineError::Io(error) }
}

fn damaged(id: MessageId) -> QuarantineError {
    QuarantineError::Io(io::Error::new(ErrorKind::InvalidData, format!("the file of message {id} is damaged")))
}
