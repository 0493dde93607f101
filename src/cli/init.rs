//! `outgate init`: the data directory of a new cluster's first node, and the tokens of the next two.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use outgate_cluster::{Actor, Cluster, OpenError, OpenOptions};

use super::Outcome;
use super::client::block_on;
use super::failure::Failure;
use super::output::print;
use crate::config::{NodeConfig, is_host_port, is_hostname};

/// Where nodes listen to each other, if nothing else is said.
pub(super) const CLUSTER_PORT: u16 = 7587;
/// Three nodes are the smallest cluster that survives the loss of one.
const TOKENS: usize = 2;
const TOKEN_VALID: Duration = Duration::from_secs(24 * 3_600);
/// A command of the smallest cluster is decided in milliseconds; this is the patience with a slow disk.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Where and as whom the first node of a cluster will run.
#[derive(clap::Args)]
pub(super) struct NewNode {
    /// Data directory of the node
    #[arg(long, value_name = "DIR", default_value = "/var/lib/outgate")]
    data: PathBuf,
    /// Name in the greeting and in Received; this machine's where absent
    #[arg(long)]
    hostname: Option<String>,
    /// Where the other nodes will reach this one; its host name and port 7587 where absent
    #[arg(long, value_name = "HOST:PORT")]
    cluster: Option<String>,
}

pub(super) fn execute(node: &NewNode) -> Outcome {
    let advertise = node.check()?;
    make(&node.data)?;
    let tokens = block_on(tokens(&node.data, &advertise))?;
    node.finish(&advertise, &tokens)
}

impl NewNode {
    pub(super) fn data(&self) -> &Path {
        &self.data
    }

    /// Where the other nodes will reach it.
    pub(super) fn check(&self) -> Result<String, Failure> {
        check_hostname(self.hostname.as_deref())?;
        let node = NodeConfig { hostname: self.hostname.clone().unwrap_or_default(), ..NodeConfig::default() };
        let default = || format!("{}:{CLUSTER_PORT}", node.effective_hostname());
        let advertise = self.cluster.clone().unwrap_or_else(default);
        check_address(&advertise)?;
        Ok(advertise)
    }

    /// Writes the configuration and says what comes next.
    pub(super) fn finish(&self, advertise: &str, tokens: &[String]) -> Outcome {
        let data = absolute(&self.data)?;
        let told = write_config(&data, self.hostname.as_deref().unwrap_or_default(), advertise)?;
        let mut text = format!("{told}next: outgate run --config {}\n", config_path(&data).display());
        text.push_str("two more nodes join, each on its own machine and within a day, with\n");
        for token in tokens {
            writeln!(text, "  outgate join {advertise} --token {token}").map_err(Failure::failed)?;
        }
        print(&text)
    }
}

/// Empty is this machine's, as in the configuration.
pub(super) fn check_hostname(given: Option<&str>) -> Outcome {
    match given.filter(|name| !name.is_empty() && !is_hostname(name)) {
        None => Ok(()),
        Some(name) => Err(Failure::wrong(format!("--hostname `{name}`: give a host name such as mx1.example.com"))),
    }
}

pub(super) fn check_address(text: &str) -> Outcome {
    if is_host_port(text) {
        return Ok(());
    }
    Err(Failure::wrong(format!("`{text}` is no place that other nodes can reach: give --cluster host:port")))
}

pub(super) fn absolute(data: &Path) -> Result<PathBuf, Failure> {
    data.canonicalize().map_err(|error| Failure::failed(format!("cannot use {}: {error}", data.display())))
}

/// The replicated state begins here: it holds the authority and the tokens before anybody asks for them.
async fn tokens(data: &Path, advertise: &str) -> Result<Vec<String>, Failure> {
    let options = OpenOptions { advertise: Some(advertise.to_owned()), ..cluster_options(data) };
    let cluster = Cluster::open(options).await.map_err(Failure::failed)?;
    let tokens = tokens_of(&cluster).await;
    cluster.shutdown().await;
    tokens
}

/// For the next nodes.
pub(super) async fn tokens_of(cluster: &Cluster) -> Result<Vec<String>, Failure> {
    let mut tokens = Vec::new();
    for _ in 0..TOKENS {
        let made = cluster.token(TOKEN_VALID, Actor("init".to_owned())).await;
        tokens.push(made.map_err(Failure::failed)?.to_string());
    }
    Ok(tokens)
}

/// Where the replicated state lives in a data directory.
pub(super) fn cluster_options(data: &Path) -> OpenOptions {
    let node = NodeConfig { data_dir: data.to_owned(), ..NodeConfig::default() };
    OpenOptions::alone(node.cluster_dir(), PROPOSE_TIMEOUT)
}

/// Makes directory and node.
pub(super) fn make(data: &Path) -> Outcome {
    make_directory(data)?;
    Cluster::init(&cluster_options(data)).map_err(|error| not_made(&error, data))
}

pub(super) fn make_directory(data: &Path) -> Outcome {
    let cannot = |error: std::io::Error| Failure::wrong(format!("cannot make {}: {error}", data.display()));
    std::fs::create_dir_all(data).map_err(cannot)?;
    make_private(data).map_err(cannot)
}

pub(super) fn not_made(error: &OpenError, data: &Path) -> Failure {
    match error {
        OpenError::AlreadyInitialised(_) => {
            Failure::wrong(format!("{error}: to begin anew, move {} away", data.display()))
        }
        OpenError::NotInitialised(_)
        | OpenError::InUse(_)
        | OpenError::Foreign(..)
        | OpenError::Damaged(..)
        | OpenError::Unfit(..)
        | OpenError::NotListening(_)
        | OpenError::Io(..) => Failure::wrong(error),
    }
}

/// Mail, password hashes and keys are nobody else's business.
pub(super) fn make_private(directory: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))
}

pub(super) fn config_path(data: &Path) -> PathBuf {
    data.join("outgate.toml")
}

/// Writes the node's configuration unless there is one; what was done.
pub(super) fn write_config(data: &Path, hostname: &str, advertise: &str) -> Result<String, Failure> {
    let config = config_path(data);
    if config.exists() {
        return Ok(format!("made {}, kept {}\n", data.display(), config.display()));
    }
    std::fs::write(&config, config_text(data, hostname, advertise))
        .map_err(|error| Failure::failed(format!("cannot write {}: {error}", config.display())))?;
    Ok(format!("made {}\n", data.display()))
}

fn config_text(data: &Path, hostname: &str, advertise: &str) -> String {
    let text = |value: &str| toml::Value::String(value.to_owned()).to_string();
    let port = advertise.rsplit_once(':').map_or("7587", |(_, port)| port);
    format!(
        "# outgate's configuration; every key with its default is in the sample that comes with outgate.\n\
         # Settings of domains and users are not here: outgate settings, outgate domain, outgate user.\n\n\
         [node]\ndata_dir = {}\nhostname = {}\n\n\
         [cluster]\nlisten = \"0.0.0.0:{port}\"\nadvertise = {}\n\n\
         [[listener]]\naddress = \"0.0.0.0:587\"\nmode = \"submission\"\n\n\
         [[listener]]\naddress = \"0.0.0.0:465\"\nmode = \"submissions\"\n",
        text(&data.display().to_string()),
        text(hostname),
        text(advertise),
    )
}
