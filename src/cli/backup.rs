//! `outgate backup`: the replicated state in a file, and a new cluster made of one.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use outgate_cluster::OpenOptions;
use outgate_cluster::backup::{self, Backup, BackupError, Summary};

use super::Outcome;
use super::client::{Client, block_on};
use super::failure::Failure;
use super::init::{self, NewNode};
use super::output::print;

/// A backup of a million Users on a slow disk.
const PATIENCE: Duration = Duration::from_secs(900);

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Write domains, Users, settings, locks, windows, keys: everything but mail and log. Keep the file secret
    Create {
        /// Must not exist
        file: PathBuf,
        /// The node's control socket
        #[arg(long, env = "OUTGATE_SOCKET", default_value = "/var/lib/outgate/control.sock", value_name = "PATH")]
        socket: PathBuf,
    },
    /// Read a backup and say what is in it; needs no node
    Verify { file: PathBuf },
    /// Make the data directory of a new cluster's first node out of a backup
    Restore {
        file: PathBuf,
        #[command(flatten)]
        node: NewNode,
    },
}

pub(super) fn execute(args: Args) -> Outcome {
    match args.verb {
        Verb::Create { file, socket } => create(&file, socket),
        Verb::Verify { file } => print(&told(&file, read(&file)?.summary)),
        Verb::Restore { file, node } => restore(&file, &node),
    }
}

fn create(path: &Path, socket: PathBuf) -> Outcome {
    let cannot = |error: io::Error| Failure::wrong(format!("cannot write {}: {error}", path.display()));
    if path.exists() {
        return Err(cannot(io::ErrorKind::AlreadyExists.into()));
    }
    let answer = block_on(async { Client::new(socket).fetch_within("/backup", PATIENCE).await })?;
    backup::keep(answer.body().as_ref(), path).map_err(cannot)?;
    // What was written is what can be read.
    print(&told(path, read(path)?.summary))
}

fn restore(path: &Path, node: &NewNode) -> Outcome {
    let (backup, advertise) = (read(path)?, node.check()?);
    let summary = backup.summary;
    init::make_directory(node.data())?;
    let options = OpenOptions { advertise: Some(advertise.clone()), ..init::cluster_options(node.data()) };
    let tokens = block_on(async {
        let cluster = backup.restore(options).await.map_err(|error| not_restored(&error, node.data()))?;
        let tokens = init::tokens_of(&cluster).await;
        cluster.shutdown().await;
        tokens
    })?;
    print(&told(path, summary))?;
    node.finish(&advertise, &tokens)
}

fn read(path: &Path) -> Result<Backup, Failure> {
    Backup::read(path).map_err(Failure::wrong)
}

fn told(path: &Path, Summary { index, domains, users }: Summary) -> String {
    format!("{}: {domains} domains, {users} users, up to log entry {index}\n", path.display())
}

fn not_restored(error: &BackupError, data: &Path) -> Failure {
    match error {
        BackupError::Damaged(..) | BackupError::Open(_) => Failure::wrong(error),
        BackupError::Propose(_) | BackupError::Refused(_) | BackupError::Io(_) => {
            Failure::failed(format!("{error}: {} is half made, remove it and try again", data.display()))
        }
    }
}
