//! Backups: the replicated state in a file, and a new cluster made of one.
//!
//! The file is a snapshot. A restored cluster is another cluster: it has a new id, a new authority and one node, and takes
//! everything else from the file, rate windows and locks included. The records come in through the log, so that nodes
//! which join later learn them like everything else.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::PoisonError;

use crate::command::{Command, Outcome, Refusal};
use crate::handle::{Cluster, OpenError, OpenOptions, ProposeError};
use crate::state::Key;
use crate::store::codec::{self, Blob};
use crate::store::snapshot::SnapshotFile;

/// Records that go in one command.
const PART_MAX_BYTES: usize = 256 * 1024;

/// What a backup holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Summary {
    /// The last log entry that is in it.
    pub index: u64,
    pub domains: usize,
    pub users: u64,
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

/// Reads the whole file; an error where anything in it is not as it was written. Blocks.
pub fn verify(path: &Path) -> Result<Summary, BackupError> {
    let file = SnapshotFile { path: path.to_owned() };
    let (meta, state) = file.load().map_err(|error| damaged(path, error))?;
    let domains = state.domains();
    let users = domains.iter().map(|domain| domain.users).sum();
    Ok(Summary { index: meta.last_log_id.map_or(0, |id| id.index), domains: domains.len(), users })
}

/// Makes `options.directory`, which must hold no node, the first node of a new cluster with what is in the backup.
pub async fn restore(path: &Path, options: OpenOptions) -> Result<Cluster, BackupError> {
    verify(path)?;
    Cluster::init(&options)?;
    let cluster = Cluster::open(options).await?;
    for records in parts(path)? {
        if let Outcome::Refused(refusal) = cluster.propose(Command::Restore { records }).await?.outcome {
            return Err(refusal.into());
        }
    }
    Ok(cluster)
}

/// The records of the file, in their order, without those that belong to the old cluster's nodes.
fn parts(path: &Path) -> Result<Vec<Vec<(Key, Blob)>>, BackupError> {
    let (mut parts, mut part, mut bytes) = (Vec::new(), Vec::new(), 0);
    let file = SnapshotFile { path: path.to_owned() };
    let read = file.read(|key, record| {
        let key: Key = codec::decode("key", key).map_err(io::Error::other)?;
        if key.is_of_nodes() {
            return Ok(());
        }
        bytes += record.len();
        part.push((key, Blob(record.to_vec())));
        if bytes >= PART_MAX_BYTES {
            parts.push(std::mem::take(&mut part));
            bytes = 0;
        }
        Ok(())
    });
    read.map_err(|error| damaged(path, error))?;
    parts.push(part);
    Ok(parts)
}

fn damaged(path: &Path, error: io::Error) -> BackupError {
    BackupError::Damaged(path.display().to_string(), error)
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
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    let bytes = io::copy(&mut backup, &mut file)?;
    file.flush()?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()?;
    Ok(bytes)
}
