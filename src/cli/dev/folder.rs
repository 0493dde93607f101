//! The folder of `outgate dev`: what all its nodes share, and passwords.

use std::fs::{File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::NODES_MAX;
use super::place::Place;
use crate::cli::Outcome;
use crate::cli::failure::Failure;

/// The socket of a running `outgate dev` within its folder.
pub(super) const CONTROL: &str = "dev.sock";
/// Random octets of a password.
const PASSWORD_OCTETS: usize = 15;
/// `sun_path` has 108 octets, and a socket is made under a longer name first.
const SOCKET_PATH_MAX: usize = 92;

/// An open folder; one `outgate dev` at a time.
pub(super) struct Folder {
    root: PathBuf,
    pub(super) secrets: Secrets,
    _lock: File,
}

/// Passwords that stay the same for a folder.
#[derive(Serialize, Deserialize, Clone)]
pub(super) struct Secrets {
    pub(super) admin: String,
    pub(super) token: String,
    pub(super) alice: String,
    pub(super) bob: String,
    pub(super) domain: String,
    pub(super) traffic: String,
}

/// `$XDG_STATE_HOME/outgate-dev`, by default below the home directory.
pub(super) fn default_root() -> PathBuf {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    state.or_else(home).unwrap_or_default().join("outgate-dev")
}

impl Folder {
    pub(super) fn open(root: PathBuf) -> Result<Self, Failure> {
        let cannot = |error: std::io::Error| Failure::wrong(format!("cannot use {}: {error}", root.display()));
        if root.join("cluster").join("identity").exists() {
            let root = root.display();
            return Err(Failure::wrong(format!(
                "{root} holds a node that outgate dev did not make: give another --data"
            )));
        }
        std::fs::create_dir_all(&root).map_err(cannot)?;
        std::fs::set_permissions(&root, Permissions::from_mode(0o700)).map_err(cannot)?;
        let root = root.canonicalize().map_err(cannot)?;
        let lock = OpenOptions::new().create(true).append(true).open(root.join("lock")).map_err(cannot)?;
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(Failure::wrong(format!(
                "{} is in use by another outgate dev: give another --data",
                root.display()
            )));
        }
        let secrets = secrets(&root.join("secrets.json"))?;
        let folder = Self { root, secrets, _lock: lock };
        if folder.place(NODES_MAX).socket().as_os_str().len() > SOCKET_PATH_MAX {
            return Err(Failure::wrong(format!(
                "{} is too long for a socket: give a shorter --data",
                folder.root.display()
            )));
        }
        Ok(folder)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn control(&self) -> PathBuf {
        self.root.join(CONTROL)
    }

    pub(super) fn ca(&self) -> PathBuf {
        self.root.join("ca.pem")
    }

    pub(super) fn ca_key(&self) -> PathBuf {
        self.root.join("ca-key.pem")
    }

    /// The place of a node, whether it is there yet or not.
    pub(super) fn place(&self, id: u64) -> Place {
        Place::new(&self.root, id)
    }

    /// How many nodes an earlier run has left here.
    pub(super) fn nodes(&self) -> u64 {
        (1..=NODES_MAX).take_while(|id| self.place(*id).is_initialised()).count() as u64
    }
}

/// Writes as a whole or not at all, readable by the owner alone.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> Outcome {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let fresh = PathBuf::from(name);
    let write = || {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)
    };
    write().map_err(|error: std::io::Error| Failure::failed(format!("cannot write {}: {error}", path.display())))
}

fn secrets(path: &Path) -> Result<Secrets, Failure> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|error| Failure::failed(format!("{}: {error}: remove it to get new passwords", path.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let fresh = Secrets {
                admin: random()?,
                token: random()?,
                alice: random()?,
                bob: random()?,
                domain: random()?,
                traffic: random()?,
            };
            write_private(path, serde_json::to_string(&fresh).map_err(Failure::failed)?.as_bytes())?;
            Ok(fresh)
        }
        Err(error) => Err(Failure::failed(format!("cannot read {}: {error}", path.display()))),
    }
}

fn random() -> Result<String, Failure> {
    let mut octets = [0; PASSWORD_OCTETS];
    aws_lc_rs::rand::fill(&mut octets).map_err(|_| Failure::failed("this machine gives no random numbers"))?;
    Ok(URL_SAFE_NO_PAD.encode(octets))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_folder_keeps_its_passwords_to_itself_and_has_one_user_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("dev");
        let first = Folder::open(root.clone()).ok().unwrap();
        let alice = first.secrets.alice.clone();
        assert_eq!(std::fs::metadata(root.join("secrets.json")).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Folder::open(root.clone()).err().map(|failure| failure.code()), Some(2));
        drop(first);
        assert_eq!(Folder::open(root).ok().unwrap().secrets.alice, alice);
    }
}
