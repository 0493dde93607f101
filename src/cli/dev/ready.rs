//! What `outgate dev` tells when the node accepts mail: a file for scripts, a text for people.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::Args;
use super::folder::{Folder, Secrets, write_private};
use super::member::Member;
use super::provision::{ALICE, BOB, DOMAIN, NETWORK};
use super::serve::Serve;
use super::sink::Sink;
use crate::cli::Outcome;

pub(super) struct Ready {
    file: Option<PathBuf>,
    root: PathBuf,
    ca: PathBuf,
    secrets: Secrets,
    sink: SocketAddr,
    messages: String,
    relay: Option<String>,
}

impl Ready {
    pub(super) fn new(args: &Args, folder: &Folder, sink: &Sink, serve: &Serve) -> Self {
        Self {
            file: args.ready_file.clone(),
            root: folder.root().to_owned(),
            ca: folder.ca(),
            secrets: folder.secrets.clone(),
            sink: sink.address(),
            messages: format!("http://{}{}", serve.http, super::serve::CAPTURED),
            relay: args.relay.clone(),
        }
    }

    /// Atomically: whoever sees the file sees all of it.
    pub(super) fn write(&self, members: &[Member]) -> Outcome {
        let Some(file) = &self.file else { return Ok(()) };
        write_private(file, format!("{:#}\n", self.json(members)).as_bytes())
    }

    pub(super) fn remove(&self) {
        if let Some(file) = &self.file
            && let Err(error) = std::fs::remove_file(file)
        {
            tracing::debug!(%error, "there was no ready file");
        }
    }

    fn json(&self, members: &[Member]) -> Value {
        json!({
            "nodes": members.iter().map(node).collect::<Vec<_>>(),
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

    pub(super) fn greeting(&self, members: &[Member]) -> String {
        let Secrets { alice, bob, domain, .. } = &self.secrets;
        let delivers = match &self.relay {
            Some(relay) => format!("to {relay}"),
            None => format!("into the sink, see {}", self.messages),
        };
        let nodes: String = members.iter().map(listeners).collect();
        let first = members.first().and_then(|member| Some((member.bound.as_ref()?.submission, member.place.socket())));
        let (submission, socket) = first.map_or_else(Default::default, |(submission, socket)| {
            (format!("--server {} --port {}", submission.ip(), submission.port()), socket.display().to_string())
        });
        let (root, ca) = (self.root.display(), self.ca.display());
        format!(
            "outgate takes mail.\n\n{nodes}\
             \x20 CA           {ca}\n\
             \x20 delivers     {delivers}\n\
             \x20 users        {ALICE}  {alice}\n\
             \x20              {BOB}    {bob}\n\
             \x20              {DOMAIN}        {domain}  (any sender of the domain)\n\
             \x20              {NETWORK}     without a password, as network\n\
             \x20 kept in      {root}\n\n\
             {DOMAIN} does not exist in DNS, so valid_sender_required is off here; all limits are the defaults.\n\n\
             Send something, to any node:\n\
             \x20 swaks {submission} --tls --auth-user {ALICE} --auth-password {alice} --from {ALICE} --to {BOB}\n\
             Look at it, through any node:\n\
             \x20 export OUTGATE_SOCKET={socket}\n\
             \x20 outgate cluster status\n\
             \x20 outgate log search\n\
             \x20 outgate user show {ALICE}\n\
             Kill one with kill -9 and start it again: outgate dev restart ID --data {root}\n\
             End with Ctrl-C.\n"
        )
    }
}

fn listeners(member: &Member) -> String {
    let Some(bound) = &member.bound else { return String::new() };
    let (id, submission, submissions, http) = (member.place.id, bound.submission, bound.submissions, bound.http);
    format!("  node {id}       {submission} (STARTTLS), {submissions} (TLS), http://{http}/readyz, /metrics\n")
}

fn node(member: &Member) -> Value {
    let bound = member.bound.as_ref();
    json!({
        "id": member.place.id,
        "pid": member.process.id(),
        "submission": bound.map(|bound| bound.submission.to_string()),
        "submissions": bound.map(|bound| bound.submissions.to_string()),
        "http": bound.map(|bound| format!("http://{}", bound.http)),
        "socket": member.place.socket(),
        "data_dir": member.place.data(),
    })
}
