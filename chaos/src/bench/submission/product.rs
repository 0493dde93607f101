//! outgate under the submission load: this program again, as a node.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::Server;
use crate::bench::process;
use crate::machine;

const LOGIN: &str = "bench@bench.test";
const PASSWORD: &str = "a password for the bench";

/// A fresh node that delivers to `sink`.
pub(crate) fn start(sink: SocketAddr) -> Result<Server> {
    let directory = tempfile::tempdir()?;
    let (data, config) = (directory.path().join("data"), directory.path().join("outgate.toml"));
    let port = machine::free_port()?;
    std::fs::write(
        &config,
        format!(
            "[node]\ndata_dir = \"{}\"\nhostname = \"bench.test\"\n[[listener]]\naddress = \"127.0.0.1:{port}\"\nmode = \"submission\"\n\
             [delivery]\nrelay = \"{sink}\"\n[http]\naddress = \"127.0.0.1:0\"\n[log]\nlevel = \"warn\"\n",
            data.display()
        ),
    )?;
    let data_text = data.to_str().context("a path in UTF-8")?;
    node(&["init", "--data", data_text, "--hostname", "bench.test"])?;
    let process = Command::new(std::env::current_exe()?)
        .args(["node", "run", "--config"])
        .arg(&config)
        .stdout(Stdio::null())
        .spawn()?;
    let server = Server {
        address: SocketAddr::from(([127, 0, 0, 1], port)),
        user: LOGIN,
        password: PASSWORD,
        pid: process.id(),
        process,
        _directory: directory,
    };
    process::wait_for_port(server.address)?;
    let socket = data.join("control.sock");
    let admin = |arguments: &[&str]| node(&[arguments, &["--socket", socket.to_str().unwrap_or_default()]].concat());
    admin(&["domain", "add", "bench.test"])?;
    admin(&["settings", "set", "valid_sender_required=off", "limits_enabled=false", "max_connections=100000"])?;
    admin(&["user", "add", LOGIN, "--password", PASSWORD])?;
    Ok(server)
}

fn node(arguments: &[&str]) -> Result<()> {
    let output = Command::new(std::env::current_exe()?).arg("node").args(arguments).output()?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
