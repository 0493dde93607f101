//! What `outgate dev` tells when the node accepts mail: a file for scripts, a text for people.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::folder::{Folder, Secrets, write_private};
use super::provision::{ALICE, BOB, DOMAIN, NETWORK};
use super::serve::Serve;
use super::sink::Sink;
use super::{Args, NODE};
use crate::cli::Outcome;
use crate::cli::failure::Failure;

pub(super) struct Ready {
    file: Option<PathBuf>,
    root: PathBuf,
    ca: PathBuf,
    socket: PathBuf,
    data: PathBuf,
    secrets: Secrets,
    sink: SocketAddr,
    messages: String,
    relay: Option<String>,
    pid: Option<u32>,
    pub(super) submission: SocketAddr,
    submissions: SocketAddr,
    http: SocketAddr,
}

impl Ready {
    pub(super) fn new(args: &Args, folder: &Folder, sink: &Sink, serve: &Serve) -> Self {
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            file: args.ready_file.clone(),
            root: folder.root().to_owned(),
            ca: folder.ca(),
            socket: folder.socket(),
            data: folder.data(),
            secrets: folder.secrets.clone(),
            sink: sink.address(),
            messages: format!("http://{}{}", serve.http, super::serve::CAPTURED),
            relay: args.relay.clone(),
            pid: None,
            submission: unknown,
            submissions: unknown,
            http: unknown,
        }
    }

    /// Takes over what the node bound.
    pub(super) fn fill(&mut self, pid: Option<u32>, status: &Value) -> Outcome {
        let address = |value: &Value| {
            let text = value.as_str().or_else(|| value[0].as_str());
            let parsed = text.and_then(|text| text.parse().ok());
            parsed.ok_or_else(|| Failure::failed(format!("the node does not tell its addresses: {status}")))
        };
        self.pid = pid;
        self.submission = address(&status["submission"])?;
        self.submissions = address(&status["submissions"])?;
        self.http = address(&status["http"])?;
        Ok(())
    }

    /// Atomically: whoever sees the file sees all of it.
    pub(super) fn write(&self) -> Outcome {
        let Some(file) = &self.file else { return Ok(()) };
        write_private(file, format!("{:#}\n", self.json()).as_bytes())
    }

    pub(super) fn remove(&self) {
        if let Some(file) = &self.file
            && let Err(error) = std::fs::remove_file(file)
        {
            tracing::debug!(%error, "there was no ready file");
        }
    }

    fn json(&self) -> Value {
        json!({
            "nodes": [{
                "id": NODE,
                "pid": self.pid,
                "submission": self.submission.to_string(),
                "submissions": self.submissions.to_string(),
                "http": format!("http://{}", self.http),
                "socket": self.socket,
                "data_dir": self.data,
            }],
            "ca_file": self.ca,
            "admin": { "username": "admin", "password": self.secrets.admin, "token": self.secrets.token },
            "users": [
                { "login": ALICE, "password": self.secrets.alice },
                { "login": BOB, "password": self.secrets.bob },
                { "login": DOMAIN, "password": self.secrets.domain },
            ],
            "sink": { "smtp": self.sink.to_string(), "messages": self.messages },
        })
    }

    pub(super) fn greeting(&self) -> String {
        let Self { submission, submissions, http, .. } = self;
        let (socket, root, ca) = (self.socket.display(), self.root.display(), self.ca.display());
        let Secrets { alice, bob, domain, .. } = &self.secrets;
        let delivers = match &self.relay {
            Some(relay) => format!("to {relay}"),
            None => format!("into the sink, see {}", self.messages),
        };
        let (host, port) = (submission.ip(), submission.port());
        format!(
            "outgate takes mail.\n\n\
             \x20 submission   {submission} (STARTTLS), {submissions} (TLS), CA {ca}\n\
             \x20 delivers     {delivers}\n\
             \x20 health       http://{http}/readyz, metrics http://{http}/metrics\n\
             \x20 users        {ALICE}  {alice}\n\
             \x20              {BOB}    {bob}\n\
             \x20              {DOMAIN}        {domain}  (any sender of the domain)\n\
             \x20              {NETWORK}     without a password, as network\n\
             \x20 kept in      {root}\n\n\
             {DOMAIN} does not exist in DNS, so valid_sender_required is off here; all limits are the defaults.\n\n\
             Send something:\n\
             \x20 swaks --server {host} --port {port} --tls --auth-user {ALICE} --auth-password {alice} --from {ALICE} --to {BOB}\n\
             Look at it:\n\
             \x20 export OUTGATE_SOCKET={socket}\n\
             \x20 outgate log search\n\
             \x20 outgate user show {ALICE}\n\
             End with Ctrl-C.\n"
        )
    }
}
