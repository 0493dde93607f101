//! A node as an operator runs it: its own process, its own data, driven by the command line.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::client::Client;
use super::sink::Sink;
use super::wait_at_most;

pub const PASSWORD: &str = "correct horse battery staple";

pub struct TestNode {
    directory: TempDir,
    config: PathBuf,
    process: Option<Child>,
    /// The network namespace in which the process runs.
    pub within: Option<String>,
    /// Variables of the process from the next start on.
    environment: Vec<(&'static str, String)>,
    /// Kills and restarts on other ports, as everything here takes port 0.
    pub submission: SocketAddr,
    pub submissions: SocketAddr,
    pub http: SocketAddr,
}

impl TestNode {
    /// A node that delivers everything to `sink`, with the domain `demo.test` and the mailbox user `alice@demo.test`.
    pub fn with_alice(sink: &Sink) -> Self {
        let node = Self::start(&format!("[delivery]\nrelay = \"{}\"\n", sink.address));
        node.ok(&["domain", "add", "demo.test", "contact=postmaster@demo.test"]);
        node.ok(&["settings", "set", "valid_sender_required=off"]);
        node.ok(&["user", "add", "alice@demo.test", "--password", PASSWORD]);
        node
    }

    /// A fresh node; `config` is added to what every test needs.
    pub fn start(config: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), config)
    }

    pub fn start_in(directory: TempDir, config: &str) -> Self {
        let mut node = Self::prepare(directory, config);
        let init = outgate(&["init", "--data", node.data().to_str().unwrap(), "--hostname", "filter.test"]);
        assert!(init.status.success(), "init: {}", String::from_utf8_lossy(&init.stderr));
        node.restart();
        node
    }

    /// A node's configuration, before there is a node.
    pub fn prepare(directory: TempDir, config: &str) -> Self {
        let data = directory.path().join("data");
        let file = directory.path().join("outgate.toml");
        let listeners = if config.contains("[[listener]]") { "" } else { LISTENERS };
        let http = if config.contains("[http]") { "" } else { "[http]\naddress = \"127.0.0.1:0\"\n" };
        std::fs::write(
            &file,
            format!(
                "{config}\n{listeners}{http}[node]\ndata_dir = \"{}\"\nhostname = \"filter.test\"\n",
                data.display()
            ),
        )
        .unwrap();
        let nowhere = "127.0.0.1:1".parse().unwrap();
        Self {
            directory,
            config: file,
            process: None,
            within: None,
            environment: Vec::new(),
            submission: nowhere,
            submissions: nowhere,
            http: nowhere,
        }
    }

    /// Counts from the next start on.
    pub fn add_config(&self, text: &str) {
        let config = std::fs::read_to_string(&self.config).unwrap();
        std::fs::write(&self.config, format!("{config}{text}")).unwrap();
    }

    /// The program on this node's machine, with its clock.
    pub fn program(&self) -> Command {
        let mut command = super::net::command(self.within.as_deref(), env!("CARGO_BIN_EXE_outgate"));
        command.envs(self.environment.iter().cloned());
        command
    }

    /// From the next start on the machine's clock is wrong by this, such as `-2h`.
    pub fn set_clock(&mut self, library: &str, offset: &str) {
        let wrong = [("LD_PRELOAD", library), ("FAKETIME", offset), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
        self.environment = wrong.map(|(name, value)| (name, value.to_owned())).to_vec();
    }

    /// Starts the process (again) and waits until it takes mail.
    pub fn restart(&mut self) {
        self.spawn();
        self.wait_until_ready();
    }

    /// Starts the process (again), whether it will take mail or not.
    pub fn spawn(&mut self) {
        self.stop();
        let log = std::fs::File::options().create(true).append(true).open(self.log_path()).unwrap();
        let mut command = self.program();
        command
            .args(["run", "--config"])
            .arg(&self.config)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null());
        self.process = Some(command.spawn().unwrap());
    }

    pub fn wait_until_ready(&mut self) {
        let status = wait_at_most(Duration::from_secs(30), "a node that accepts mail", || self.status_when_ready());
        let address = |key: &str| status[key].as_str().or_else(|| status[key][0].as_str()).unwrap().parse().unwrap();
        self.submission = address("submission");
        self.submissions = address("submissions");
        self.http = address("http");
    }

    fn status_when_ready(&mut self) -> Option<Value> {
        if let Some(exit) = self.process.as_mut()?.try_wait().unwrap() {
            panic!("the node ended with {exit}:\n{}", self.log());
        }
        let output = self.cli(&["status", "--output", "json"]);
        let status: Value = output.status.success().then(|| serde_json::from_slice(&output.stdout).ok())??;
        (status["ready"] == true).then_some(status)
    }

    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("node.log")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().unwrap().id()
    }

    pub fn has_ended(&mut self) -> bool {
        self.process.as_mut().is_none_or(|process| process.try_wait().unwrap().is_some())
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            signal(process.id(), "TERM");
            wait_at_most(Duration::from_secs(60), "a node that ends by SIGTERM", || process.try_wait().unwrap());
        }
    }

    pub fn hang_up(&self) {
        signal(self.pid(), "HUP");
    }

    /// Runs an admin verb against this node.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        let socket = self.data().join("control.sock");
        Command::new(env!("CARGO_BIN_EXE_outgate")).args(arguments).arg("--socket").arg(socket).output().unwrap()
    }

    /// The same, which must succeed; its output.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.cli(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        let text = self.ok(&[arguments, &["--output", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
    }

    /// `None` where the node does not run.
    pub fn cluster_status(&self) -> Option<Value> {
        self.process.as_ref()?;
        let output = self.cli(&["cluster", "status", "--output", "json"]);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).ok())?
    }

    /// Attempts everything in the queue now; nothing where the node does not run.
    pub fn retry_all(&self) {
        let list = self.cli(&["queue", "list", "--output", "json"]);
        let Ok(Value::Array(queued)) = serde_json::from_slice(&list.stdout) else { return };
        for message in queued {
            self.cli(&["queue", "retry", message["id"].as_str().unwrap()]);
        }
    }

    pub fn lock_of(&self, login: &str) -> Value {
        self.json(&["user", "show", login])["lock"].clone()
    }

    pub fn login(&self, login: &str) -> Client {
        Client::login(self.submission, login, PASSWORD)
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        let mut client = std::net::TcpStream::connect(self.http).unwrap();
        let mut text = String::new();
        std::io::Write::write_all(
            &mut client,
            format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes(),
        )
        .unwrap();
        std::io::Read::read_to_string(&mut client, &mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the node's log ---\n{}", self.log());
        }
        self.kill();
    }
}

const LISTENERS: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\nmode = \"submission\"\n[[listener]]\naddress = \"127.0.0.1:0\"\nmode = \"submissions\"\n";

/// The program without a node.
pub fn outgate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_outgate")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn signal(pid: u32, name: &str) {
    Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap();
}
