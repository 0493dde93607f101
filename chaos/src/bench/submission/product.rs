//! outgate under the submission load: this program again, as a node or as several.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Server;
use crate::bench::process;
use crate::machine;

const LOGIN: &str = "bench@bench.test";
const PASSWORD: &str = "a password for the bench";
/// How long all nodes may take to vote and to own mail.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(100);

/// Fresh nodes that deliver to `sink`.
pub(crate) fn start(sink: SocketAddr, nodes: usize) -> Result<Server> {
    let directory = tempfile::tempdir()?;
    let (mut addresses, mut processes) = (Vec::new(), Vec::new());
    let first = Place::new(directory.path(), 1, sink)?;
    node(&["init", "--data", &first.data, "--cluster", &first.cluster])?;
    processes.push(first.run()?);
    addresses.push(first.submission);
    process::wait_for_port(first.submission)?;
    for number in 2..=nodes {
        let place = Place::new(directory.path(), number, sink)?;
        let token = first.admin(&["cluster", "token", "--output", "json"])?;
        let token: serde_json::Value = serde_json::from_str(&token)?;
        let token = token["token"].as_str().context("a token")?;
        node(&["join", &first.cluster, "--token", token, "--data", &place.data, "--cluster", &place.cluster])?;
        processes.push(place.run()?);
        addresses.push(place.submission);
        process::wait_for_port(place.submission)?;
    }
    first.wait_for(nodes)?;
    first.admin(&["domain", "add", "bench.test"])?;
    first.admin(&["settings", "set", "valid_sender_required=off", "limits_enabled=false", "max_connections=100000"])?;
    first.admin(&["user", "add", LOGIN, "--password", PASSWORD])?;
    Ok(Server { addresses, user: LOGIN, password: PASSWORD, processes, _directory: directory })
}

/// Where one node lives.
pub(crate) struct Place {
    pub(crate) data: String,
    config: PathBuf,
    pub(crate) cluster: String,
    pub(crate) submission: SocketAddr,
}

impl Place {
    pub(crate) fn new(base: &Path, number: usize, sink: SocketAddr) -> Result<Self> {
        let data = base.join(format!("data-{number}")).to_str().context("a path in UTF-8")?.to_owned();
        let config = base.join(format!("outgate-{number}.toml"));
        let cluster = format!("127.0.0.1:{}", machine::free_port()?);
        let submission = SocketAddr::from(([127, 0, 0, 1], machine::free_port()?));
        std::fs::write(
            &config,
            format!(
                "[node]\ndata_dir = \"{data}\"\nhostname = \"bench.test\"\n[cluster]\nlisten = \"{cluster}\"\n\
                 [[listener]]\naddress = \"{submission}\"\nmode = \"submission\"\n\
                 [delivery]\nrelay = \"{sink}\"\n[http]\naddress = \"127.0.0.1:0\"\n[log]\nlevel = \"error\"\n",
            ),
        )?;
        Ok(Self { data, config, cluster, submission })
    }

    pub(crate) fn run(&self) -> Result<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        Ok(command.args(["node", "run", "--config"]).arg(&self.config).stdout(Stdio::null()).spawn()?)
    }

    fn admin(&self, arguments: &[&str]) -> Result<String> {
        node(&[arguments, &["--socket", &format!("{}/control.sock", self.data)]].concat())
    }

    /// Until all nodes vote and own mail.
    fn wait_for(&self, nodes: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status: serde_json::Value =
                serde_json::from_str(&self.admin(&["cluster", "status", "--output", "json"])?)?;
            let all = status["nodes"].as_array().context("nodes")?;
            let ready = all.iter().filter(|node| node["role"] != "learner" && node["owns_mail"] == true).count();
            if ready == nodes {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{ready} of {nodes} nodes are ready: {status}");
            std::thread::sleep(PAUSE);
        }
    }
}

pub(crate) fn node(arguments: &[&str]) -> Result<String> {
    let output = Command::new(std::env::current_exe()?).arg("node").args(arguments).output()?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
