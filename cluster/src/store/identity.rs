//! Whose directory this is: a small checksummed file, and the lock that keeps a second process out.

use std::fs::{self, File, TryLockError};
use std::hash::BuildHasher;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::network::authority::{self, CertificateError, NodeKey};
use crate::network::tls::Papers;
use crate::store::owner::Owner;
use crate::store::{OpenError, codec, durable};

const MAGIC: [u8; 8] = *b"outgid01";
const LOCK_ATTEMPTS_MAX: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    pub cluster: [u8; 16],
    pub node: u64,
    /// How often the directory was opened: one life of the process.
    pub epoch: u64,
    /// The first log entry was written: from now on a missing log is a loss.
    pub formed: bool,
}

/// An open directory; nobody else can open it as long as this lives.
#[derive(Debug)]
pub struct Home {
    directory: PathBuf,
    pub identity: Identity,
    _lock: File,
}

fn file(directory: &Path) -> PathBuf {
    directory.join("identity")
}

impl Identity {
    #[expect(clippy::disallowed_types, reason = "the id of a new cluster is the one thing that must differ")]
    fn fresh() -> Self {
        // The standard library seeds its hashers from the operating system; a cluster id needs to be unlike others, not secret.
        let half = |salt: u8| std::hash::RandomState::new().hash_one(salt).to_le_bytes();
        let mut cluster = [0; 16];
        cluster[..8].copy_from_slice(&half(0));
        cluster[8..].copy_from_slice(&half(1));
        Self { cluster, node: 1, epoch: 0, formed: false }
    }

    fn read(directory: &Path) -> Result<Self, OpenError> {
        let path = file(directory);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(OpenError::NotInitialised(directory.to_owned()));
            }
            read => read.map_err(OpenError::io(&path))?,
        };
        let body =
            durable::unseal(MAGIC, &bytes).ok_or_else(|| OpenError::damaged(&path, "its checksum does not fit"))?;
        codec::decode("identity", body).map_err(|error| OpenError::damaged(&path, error.to_string()))
    }

    fn write(&self, directory: &Path) -> Result<(), OpenError> {
        let path = file(directory);
        durable::replace(&path, &durable::seal(MAGIC, &codec::encode(self))).map_err(OpenError::io(&path))
    }
}

impl Home {
    /// Makes the directory of a new cluster's first node, with an authority that vouches for it; a half-made one from an
    /// earlier attempt is completed.
    pub fn init(directory: &Path) -> Result<(), OpenError> {
        let identity = Identity::fresh();
        let made =
            first_papers(&identity).map_err(|error| OpenError::Io(directory.to_owned(), io::Error::other(error)));
        Self::make(directory, &identity, &made?)
    }

    /// The directory of a node that joined a cluster.
    pub(crate) fn join(directory: &Path, cluster: [u8; 16], node: u64, papers: &Papers) -> Result<(), OpenError> {
        Self::make(directory, &Identity { cluster, node, epoch: 0, formed: false }, papers)
    }

    pub(crate) fn must_be_new(directory: &Path) -> Result<(), OpenError> {
        if file(directory).exists() { Err(OpenError::AlreadyInitialised(directory.to_owned())) } else { Ok(()) }
    }

    /// The identity comes last: with it the directory is a node's.
    fn make(directory: &Path, identity: &Identity, papers: &Papers) -> Result<(), OpenError> {
        durable::create_directory(directory).map_err(OpenError::io(directory))?;
        let _lock = lock(directory)?;
        Self::must_be_new(directory)?;
        papers.write(directory).map_err(OpenError::io(directory))?;
        identity.write(directory)
    }

    /// Locks the directory and begins the next epoch.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        if !file(directory).exists() {
            return Err(OpenError::NotInitialised(directory.to_owned()));
        }
        let lock = lock(directory)?;
        if let Ok(why) = fs::read_to_string(unfit(directory)) {
            return Err(OpenError::Unfit(directory.to_owned(), why));
        }
        let mut identity = Identity::read(directory)?;
        identity.epoch += 1;
        identity.write(directory)?;
        Ok(Self { directory: directory.to_owned(), identity, _lock: lock })
    }

    /// Notes why this node must not start again.
    pub(crate) fn mark_unfit(directory: &Path, why: &str) -> io::Result<()> {
        durable::replace(&unfit(directory), why.as_bytes())
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn owner(&self) -> Owner {
        Owner { cluster: self.identity.cluster, node: self.identity.node }
    }

    /// Notes that the log has begun.
    pub fn set_formed(&mut self) -> Result<(), OpenError> {
        self.identity.formed = true;
        self.identity.write(&self.directory)
    }
}

fn unfit(directory: &Path) -> PathBuf {
    directory.join("unfit")
}

fn first_papers(identity: &Identity) -> Result<Papers, CertificateError> {
    let (authority, key) = (authority::found(identity.cluster)?, NodeKey::generate()?);
    let certificate = authority::vouch(&authority, identity.cluster, identity.node, key.public())?;
    Ok(Papers { authority: authority.certificate, certificate, key: key.pem(), founding: Some(authority.private_key) })
}

/// Waits a moment for a lock that is taken: a process that was just forked holds its parent's files until it begins its
/// own program.
fn lock(directory: &Path) -> Result<File, OpenError> {
    let path = directory.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(OpenError::io(&path))?;
    for _ in 0..LOCK_ATTEMPTS_MAX {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(error)) => return Err(OpenError::Io(path, error)),
        }
    }
    Err(OpenError::InUse(directory.to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn init_open_and_every_refusal() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node");
        assert!(matches!(Home::open(&path), Err(OpenError::NotInitialised(_))));
        Home::init(&path).unwrap();
        assert!(matches!(Home::init(&path), Err(OpenError::AlreadyInitialised(_))));
        let first = Home::open(&path).unwrap();
        assert!(matches!(Home::open(&path), Err(OpenError::InUse(_))));
        let (cluster, epoch) = (first.identity.cluster, first.identity.epoch);
        drop(first);
        let second = Home::open(&path).unwrap();
        assert_eq!((second.identity.cluster, second.identity.epoch), (cluster, epoch + 1));
        drop(second);
        let mut bytes = fs::read(file(&path)).unwrap();
        bytes[20] ^= 1;
        fs::write(file(&path), bytes).unwrap();
        assert!(matches!(Home::open(&path), Err(OpenError::Damaged(..))));
    }

    #[test]
    fn two_clusters_differ() {
        assert_ne!(Identity::fresh().cluster, Identity::fresh().cluster);
    }
}
