//! `outgate dev`: a node to try out, with everything around it.
//!
//! The node is a process of its own, started from a generated configuration just as an operator would start it,
//! so nothing here can differ from production but its surroundings: a CA, a domain, users, a sink that captures
//! what is delivered, and a trickle of mail. All of it lives in one folder; the same folder gives the same
//! passwords, certificates and mail again.
//!
//! Invariants: the node ends when this process ends, however it ends (the node watches its standard input);
//! a node that was killed stays dead until somebody asks for it.

mod certificates;
mod folder;
mod process;
mod provision;
mod ready;
mod serve;
mod sink;
mod traffic;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::Subcommand;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use super::client::{Client, block_on};
use super::failure::Failure;
use super::output::print;
use super::{Outcome, init};
use crate::config::is_host_port;
use folder::Folder;
use process::NodeProcess;
use ready::Ready;
use serve::{Restart, Serve};
use sink::Sink;

/// Until nodes can join, there is one.
const NODE: u64 = 1;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// How many nodes; this version runs one
    #[arg(long, default_value_t = 1)]
    nodes: u64,
    /// Folder that keeps everything; outgate-dev in the user's state directory where absent
    #[arg(long, global = true, value_name = "DIR")]
    data: Option<PathBuf>,
    /// STARTTLS; 0 = any free port
    #[arg(long, default_value_t = 2587)]
    submission_port: u16,
    /// TLS from the first byte; 0 = any free port
    #[arg(long, default_value_t = 2465)]
    submissions_port: u16,
    /// Health and metrics; 0 = any free port
    #[arg(long, default_value_t = 8080)]
    http_port: u16,
    /// Deliver there instead of to the sink
    #[arg(long, value_name = "HOST:PORT")]
    relay: Option<String>,
    /// No messages by itself
    #[arg(long)]
    no_traffic: bool,
    /// Written when the node accepts mail: addresses, passwords and the like as JSON
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Verb {
    /// Start a node again that was killed
    Restart { id: u64 },
}

pub(super) fn execute(args: Args) -> Outcome {
    let root = args.data.clone().unwrap_or_else(folder::default_root);
    if let Some(Verb::Restart { id }) = args.verb {
        if id != NODE {
            return Err(Failure::wrong(format!("there is no node {id}: this version runs node {NODE}")));
        }
        if !root.is_dir() {
            return Err(Failure::wrong(format!("{} is not there: name the folder with --data", root.display())));
        }
        let client = Client::new(root.join(folder::CONTROL));
        let answer = block_on(async { client.post(&format!("/dev/restart/{id}"), &Value::Null).await })?;
        return print(&format!("node {id} runs as process {}\n", answer["pid"]));
    }
    if args.nodes != NODE {
        return Err(Failure::wrong(format!("--nodes {}: this version runs one node: give --nodes 1", args.nodes)));
    }
    if let Some(relay) = args.relay.as_deref().filter(|relay| !is_host_port(relay)) {
        return Err(Failure::wrong(format!("--relay {relay}: give host:port such as 127.0.0.1:2525")));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| Failure::failed(format!("cannot begin: {error}")))?;
    runtime.block_on(Box::pin(run(args, Folder::open(root)?)))
}

async fn run(args: Args, folder: Folder) -> Outcome {
    let cannot = |what: &'static str| move |error: std::io::Error| Failure::failed(format!("cannot {what}: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot("catch signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot("catch signals"))?;
    let sink = Sink::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.map_err(cannot("start the sink"))?;
    let mut serve = Serve::start(&sink, &folder.control()).await.map_err(cannot("serve what the sink captured"))?;
    let mut scene = Scene { ready: Ready::new(&args, &folder, &sink, &serve), args, folder };
    let mut node = tokio::select! {
        node = scene.first_start(&sink) => node?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    print(&scene.ready.greeting())?;
    let traffic = (!scene.args.no_traffic).then(|| traffic::start(&scene.folder, scene.ready.submission));
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            ended = node.ended() => print(&format!("node {NODE} has ended ({ended}); start it again: outgate dev restart {NODE} --data {}\n", scene.folder.root().display()))?,
            Some(restart) = serve.restarts.recv() => scene.restart(&mut node, restart).await,
        }
    }
    if let Some(traffic) = traffic {
        traffic.abort();
    }
    scene.ready.remove();
    node.stop().await.map_err(cannot("end the node"))
}

/// What stays the same while nodes come and go.
struct Scene {
    args: Args,
    folder: Folder,
    ready: Ready,
}

impl Scene {
    /// Makes what is missing, starts the node, fills it, and says that it is ready.
    async fn first_start(&mut self, sink: &Sink) -> Result<NodeProcess, Failure> {
        self.ready.remove();
        certificates::make(&self.folder)?;
        let relay = self.args.relay.clone().unwrap_or_else(|| sink.address().to_string());
        self.folder.write_config(&self.args, &relay)?;
        if !self.folder.is_initialised() {
            init::make(&self.folder.data())?;
        }
        let mut node = self.start().await?;
        provision::provision(&Client::new(self.folder.socket()), &self.folder.secrets).await?;
        self.announce(&mut node).await?;
        Ok(node)
    }

    async fn start(&self) -> Result<NodeProcess, Failure> {
        let mut node = NodeProcess::spawn(&self.folder)?;
        node.wait_until_it_answers(&Client::new(self.folder.socket())).await?;
        Ok(node)
    }

    async fn announce(&mut self, node: &mut NodeProcess) -> Outcome {
        let status = node.wait_until_ready(&Client::new(self.folder.socket())).await?;
        self.ready.fill(node.id(), &status)?;
        self.ready.write()
    }

    async fn restart(&mut self, node: &mut NodeProcess, request: Restart) {
        let answer = self.restarted(node, request.id).await;
        if request.answer.send(answer.map_err(|failure| failure.to_string())).is_err() {
            tracing::debug!("whoever asked for the restart has gone");
        }
    }

    async fn restarted(&mut self, node: &mut NodeProcess, id: u64) -> Result<Option<u32>, Failure> {
        if id != NODE {
            return Err(Failure::wrong(format!("there is no node {id}")));
        }
        if node.is_running() {
            return Err(Failure::failed(format!("node {id} is running")));
        }
        *node = self.start().await?;
        self.announce(node).await?;
        Ok(node.id())
    }
}
