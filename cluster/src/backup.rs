//! Backups: the replicated state in a file, and a new cluster made of one.
//!
//! The file is a snapshot. A restored cluster is another cluster: it has a new id, a new authority and one node, and takes
//! everything else from the file, rate windows and locks included. The records come in through the log, so that nodes
//! which join later learn them like everything else.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::PoisonError;

use crate::command::{Command, Outcome, Refusal};
use crate::handle::{Cluster, OpenError, OpenOptions, ProposeError};
use crate::state::{Key, State};
use crate::store::codec::{self, Blob};
use crate::store::snapshot::SnapshotFile;

/// Records that go in one command.
const PART_MAX_BYTES: usize = 256 * 1024;

/// What a backup holds, in short.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Summary {
    /// The last log entry that is in it.
    pub index: u64,
    pub domains: usize,
    pub users: u64,
}

/// A backup that was read as a whole.
pub struct Backup {
    pub summary: Summary,
    /// Its records in their order, in parts of [`PART_MAX_BYTES`], without those that belong to the old cluster's nodes.
    parts: Vec<Vec<(Key, Blob)>>,
}

#[derive(thiserror::Error, Debug)]
pub enum BackupError {
    #[error("{0} is no whole backup: {1}")]
    Damaged(String, io::Error),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Propose(#[from] ProposeError),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("cannot write the backup: {0}")]
    Io(#[from] io::Error),
}

impl Cluster {
    /// A backup of everything that was acknowledged anywhere before the call, as a file without a name.
    pub async fn backup(&self) -> Result<File, BackupError> {
        self.barrier().await?;
        let keeper =
            self.inner.closing.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|it| it.keeper.clone());
        let keeper = keeper.ok_or_else(|| ProposeError::Stopped("it was shut down".to_owned()))?;
        Ok(keeper.backup().await?)
    }
}

impl Backup {
    /// An error where anything in the file is not as it was written. Blocks.
    pub fn read(path: &Path) -> Result<Self, BackupError> {
        let (mut state, mut parts, mut bytes) = (State::default(), vec![Vec::new()], 0);
        let read = SnapshotFile { path: path.to_owned() }.read(|key, record| {
            let key: Key = codec::decode("key", key).map_err(io::Error::other)?;
            state.restore(key.clone(), record).map_err(io::Error::other)?;
            if key.is_of_nodes() {
                return Ok(());
            }
            if bytes >= PART_MAX_BYTES {
                parts.push(Vec::new());
                bytes = 0;
            }
            bytes += record.len();
            if let Some(part) = parts.last_mut() {
                part.push((key, Blob(record.to_vec())));
            }
            Ok(())
        });
        let meta = read.map_err(|error| BackupError::Damaged(path.display().to_string(), error))?;
        let domains = state.domains();
        let users = domains.iter().map(|domain| domain.users).sum();
        let summary = Summary { index: meta.last_log_id.map_or(0, |id| id.index), domains: domains.len(), users };
        Ok(Self { summary, parts })
    }

    /// Makes `options.directory`, which must hold no node, the first node of a new cluster with what is in the backup.
    pub async fn restore(self, options: OpenOptions) -> Result<Cluster, BackupError> {
        Cluster::init(&options)?;
        let cluster = Cluster::open(options).await?;
        for records in self.parts {
            let proposed = cluster.propose(Command::Restore { records }).await;
            let failed = match proposed.map(|applied| applied.outcome) {
                Ok(Outcome::Refused(refusal)) => BackupError::Refused(refusal),
                Ok(_) => continue,
                Err(error) => BackupError::Propose(error),
            };
            cluster.shutdown().await;
            return Err(failed);
        }
        Ok(cluster)
    }
}

/// Copies a backup to a place where nothing may be yet; on disk, whole and readable by its owner alone when it returns.
/// Blocks.
pub fn keep(mut backup: impl io::Read, path: &Path) -> io::Result<u64> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut beside = path.as_os_str().to_owned();
    beside.push(".part");
    if path.exists() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let mut write = || {
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        let bytes = io::copy(&mut backup, &mut file)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent)?.sync_all()?;
        Ok(bytes)
    };
    let written: io::Result<u64> = write();
    if written.is_err() {
        // It may never have been there.
        std::fs::remove_file(&beside).ok();
    }
    written
}
