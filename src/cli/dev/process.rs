//! The node as a process of its own.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::Instant;

use super::place::Place;
use crate::cli::client::Client;
use crate::cli::failure::Failure;

/// Patience with a start, which may have a long log to read.
const START_TIMEOUT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);
/// Patience with an end, which lets transactions finish.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// Lines of a node's log that explain why it did not start.
const LOG_TAIL: usize = 5;

pub(super) struct NodeProcess {
    child: Child,
    /// The node ends when this is closed: it does not outlive us, whatever ends us.
    _stdin: Option<ChildStdin>,
    ended: Option<ExitStatus>,
    log: PathBuf,
}

impl NodeProcess {
    pub(super) fn spawn(place: &Place) -> Result<Self, Failure> {
        let log = place.log();
        let cannot = |error: std::io::Error| Failure::failed(format!("cannot start a node: {error}"));
        let output = OpenOptions::new().create(true).append(true).mode(0o600).open(&log).map_err(cannot)?;
        let mut child = Command::new(std::env::current_exe().map_err(cannot)?)
            .args(["run", "--end-with-stdin", "--config"])
            .arg(place.config())
            .stdin(Stdio::piped())
            .stdout(output.try_clone().map_err(cannot)?)
            .stderr(output)
            // Its own group: Ctrl-C in the terminal is for us, who then end the node.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(cannot)?;
        let stdin = child.stdin.take();
        Ok(Self { child, _stdin: stdin, ended: None, log })
    }

    /// `None` once it has ended.
    pub(super) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    pub(super) fn is_running(&mut self) -> bool {
        self.ended.is_none() && matches!(self.child.try_wait(), Ok(None))
    }

    /// Resolves once with how it ended, and never again.
    pub(super) async fn ended(&mut self) -> String {
        if self.ended.is_some() {
            return std::future::pending().await;
        }
        match self.child.wait().await {
            Ok(status) => {
                self.ended = Some(status);
                status.to_string()
            }
            Err(error) => format!("its end is not known: {error}"),
        }
    }

    pub(super) async fn wait_until_it_answers(&mut self, client: &Client) -> Result<Value, Failure> {
        self.wait_for(client, |_| true).await
    }

    /// The node's status once it accepts mail.
    pub(super) async fn wait_until_ready(&mut self, client: &Client) -> Result<Value, Failure> {
        self.wait_for(client, |status| status["ready"] == true).await
    }

    async fn wait_for(&mut self, client: &Client, enough: impl Fn(&Value) -> bool) -> Result<Value, Failure> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if !self.is_running() {
                return Err(Failure::wrong(format!("the node did not start: {}", self.last_words())));
            }
            if let Ok(status) = client.get("/status").await
                && enough(&status)
            {
                return Ok(status);
            }
            if Instant::now() > deadline {
                let log = self.log.display();
                return Err(Failure::failed(format!("the node does not become ready, see {log}")));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let told: Vec<&str> = lines.iter().rev().take(LOG_TAIL).rev().copied().collect();
        match told.iter().rev().find_map(|line| line.strip_prefix("outgate: ")) {
            Some(line) => line.to_owned(),
            None => told.join(" / "),
        }
    }

    /// SIGTERM.
    pub(super) fn terminate(&mut self) -> std::io::Result<()> {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        let Some(pid) = pid.filter(|_| self.is_running()) else { return Ok(()) };
        Ok(rustix::process::kill_process(pid, rustix::process::Signal::TERM)?)
    }

    /// Waits for the end, which lets transactions finish.
    pub(super) async fn wait(&mut self) -> std::io::Result<()> {
        match tokio::time::timeout(STOP_TIMEOUT, self.child.wait()).await {
            Ok(ended) => ended.map(drop),
            Err(_) => self.child.kill().await,
        }
    }
}
