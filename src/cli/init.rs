//! `outgate init`: the data directory of a new cluster of one node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use outgate_cluster::{Cluster, OpenError, OpenOptions};

use super::Outcome;
use super::failure::Failure;
use super::output::print;
use crate::config::NodeConfig;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Data directory of the node
    #[arg(long, value_name = "DIR", default_value = "/var/lib/outgate")]
    data: PathBuf,
    /// Name in the greeting and in Received; this machine's where absent
    #[arg(long)]
    hostname: Option<String>,
}

/// A command of the smallest cluster is decided in milliseconds; this is the patience with a slow disk.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn execute(args: &Args) -> Outcome {
    make(&args.data)?;
    let config = args.data.join("outgate.toml");
    if config.exists() {
        return print(&format!("made {}, kept {}\n", args.data.display(), config.display()));
    }
    let text = config_text(&args.data, args.hostname.as_deref().unwrap_or_default());
    std::fs::write(&config, text)
        .map_err(|error| Failure::failed(format!("cannot write {}: {error}", config.display())))?;
    print(&format!("made {}\nnext: outgate run --config {}\n", args.data.display(), config.display()))
}

/// Where the replicated state lives in a data directory.
fn cluster_options(data: &Path) -> OpenOptions {
    let node = NodeConfig { data_dir: data.to_owned(), ..NodeConfig::default() };
    OpenOptions { directory: node.cluster_dir(), propose_timeout: PROPOSE_TIMEOUT }
}

/// Makes directory and node.
pub(super) fn make(data: &Path) -> Outcome {
    let cannot = |error: std::io::Error| Failure::wrong(format!("cannot make {}: {error}", data.display()));
    std::fs::create_dir_all(data).map_err(cannot)?;
    make_private(data).map_err(cannot)?;
    Cluster::init(&cluster_options(data)).map_err(|error| match &error {
        OpenError::AlreadyInitialised(_) => {
            Failure::wrong(format!("{error}: to begin anew, move {} away", data.display()))
        }
        OpenError::NotInitialised(_) | OpenError::InUse(_) | OpenError::Damaged(..) | OpenError::Io(..) => {
            Failure::wrong(error)
        }
    })
}

/// Mail, password hashes and keys are nobody else's business.
pub(super) fn make_private(directory: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))
}

fn config_text(data: &Path, hostname: &str) -> String {
    let text = |value: &str| toml::Value::String(value.to_owned()).to_string();
    format!(
        "# outgate's configuration; every key with its default is in the sample that comes with outgate.\n\
         # Settings of domains and users are not here: outgate settings, outgate domain, outgate user.\n\n\
         [node]\ndata_dir = {}\nhostname = {}\n\n\
         [[listener]]\naddress = \"0.0.0.0:587\"\nmode = \"submission\"\n\n\
         [[listener]]\naddress = \"0.0.0.0:465\"\nmode = \"submissions\"\n",
        text(&data.display().to_string()),
        text(hostname),
    )
}
