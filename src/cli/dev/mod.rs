//! `outgate dev`: a cluster to try out, with everything around it.
//!
//! The nodes are processes of their own, on 127.0.0.1, 127.0.0.2 …, started from generated configurations and joined by
//! tokens just as an operator would do it, so nothing here can differ from production but its surroundings: a CA, a
//! domain, users, a sink that captures what is delivered, and a trickle of mail. All of it lives in one folder; the same
//! folder gives the same passwords, certificates and mail again.
//!
//! Invariants: the nodes end when this process ends, however it ends (they watch their standard input); a node that was
//! killed stays dead until somebody asks for it.

mod certificates;
mod folder;
mod member;
mod place;
mod process;
mod provision;
mod ready;
mod serve;
mod sink;
mod traffic;

use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::client::{Client, block_on};
use super::failure::Failure;
use super::output::{print, remark};
use super::{Outcome, init, join};
use crate::config::is_host_port;
use folder::Folder;
use member::Member;
use place::Place;
use ready::Ready;
use serve::{Restart, Restarted, Serve};
use sink::Sink;

/// More than anybody wants on a laptop.
const NODES_MAX: u64 = 9;
/// How long a node that was started again may take to accept mail where the others run.
const READY_PATIENCE: Duration = Duration::from_secs(10);
const READY_POLL: Duration = Duration::from_millis(50);

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// How many nodes, each a process of its own
    #[arg(long, default_value_t = 3)]
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
    /// Written when all nodes accept mail: addresses, passwords and the like as JSON
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
        return restart(&root, id);
    }
    if !(1..=NODES_MAX).contains(&args.nodes) {
        return Err(Failure::wrong(format!("--nodes {}: give 1…{NODES_MAX}", args.nodes)));
    }
    if let Some(relay) = args.relay.as_deref().filter(|relay| !is_host_port(relay)) {
        return Err(Failure::wrong(format!("--relay {relay}: give host:port such as 127.0.0.1:2525")));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| Failure::failed(format!("cannot begin: {error}")))?;
    let folder = Folder::open(root)?;
    let kept = folder.nodes();
    if kept != 0 && kept != args.nodes {
        let root = folder.root().display();
        return Err(Failure::wrong(format!("{root} holds {kept} nodes: give --nodes {kept}, or another --data")));
    }
    runtime.block_on(Box::pin(run(args, folder)))
}

/// Asks the running `outgate dev` to start one of its nodes again.
fn restart(root: &Path, id: u64) -> Outcome {
    if !root.is_dir() {
        return Err(Failure::wrong(format!("{} is not there: name the folder with --data", root.display())));
    }
    if !Place::new(root, id).is_initialised() {
        return Err(Failure::wrong(format!("there is no node {id} in {}", root.display())));
    }
    let client = Client::new(root.join(folder::CONTROL));
    let answer = block_on(async { client.post(&format!("/dev/restart/{id}"), &Value::Null).await })?;
    print(&format!("node {id} runs as process {}\n", answer["pid"]))?;
    if answer["ready"] == true {
        return Ok(());
    }
    remark(&format!("node {id} takes no mail yet: a majority of the nodes must run"))
}

async fn takes_mail(node: Client) {
    while !node.get("/status").await.is_ok_and(|status| status["ready"] == true) {
        tokio::time::sleep(READY_POLL).await;
    }
}

async fn run(args: Args, folder: Folder) -> Outcome {
    let cannot = |what: &'static str| move |error: std::io::Error| Failure::failed(format!("cannot {what}: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot("catch signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot("catch signals"))?;
    let sink = Sink::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.map_err(cannot("start the sink"))?;
    let mut serve = Serve::start(&sink, &folder.control()).await.map_err(cannot("serve what the sink captured"))?;
    let mut scene = Scene { ready: Ready::new(&args, &folder, &sink, &serve), args, folder, members: Vec::new() };
    tokio::select! {
        started = scene.first_start(&sink) => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    }
    print(&scene.ready.greeting(&scene.members))?;
    let submission = scene.members.iter().filter_map(|member| Some(member.bound.as_ref()?.submission)).collect();
    let traffic = (!scene.args.no_traffic).then(|| traffic::start(&scene.folder, submission));
    let root = scene.folder.root().display().to_string();
    let (ready, mut became_ready) = mpsc::unbounded_channel();
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            (id, ended) = any_ended(&mut scene.members) => print(&format!("node {id} has ended ({ended}); start it again: outgate dev restart {id} --data {root}\n"))?,
            Some(restart) = serve.restarts.recv() => tokio::select! {
                () = scene.restart(restart, &ready) => {}
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            },
            Some(waiting) = became_ready.recv() => {
                scene.ready.write(&scene.members)?;
                drop(waiting.map(|(answer, pid)| answer.send(Ok(Restarted { pid, ready: true }))));
            }
        }
    }
    if let Some(traffic) = traffic {
        traffic.abort();
    }
    scene.ready.remove();
    scene.stop().await.map_err(cannot("end the nodes"))
}

/// The next node that ends, and how.
async fn any_ended(members: &mut [Member]) -> (u64, String) {
    let mut endings: Vec<_> = members.iter_mut().map(|member| Box::pin(member.ended())).collect();
    poll_fn(|context| {
        let mut polled = endings.iter_mut().map(|ending| Pin::as_mut(ending).poll(context));
        polled.find(Poll::is_ready).unwrap_or(Poll::Pending)
    })
    .await
}

/// Who asked for a restart and has not heard of it yet, with the process.
type Waiting = Option<(oneshot::Sender<Result<Restarted, String>>, Option<u32>)>;

/// Whoever asked hears in time that the node is not ready; the ready file is written whenever it is.
async fn tell_when_ready(
    client: Client,
    (answer, pid): (oneshot::Sender<Result<Restarted, String>>, Option<u32>),
    ready: mpsc::UnboundedSender<Waiting>,
) {
    let mut is_ready = pin!(takes_mail(client));
    let waiting = match tokio::time::timeout(READY_PATIENCE, &mut is_ready).await {
        Ok(()) => Some((answer, pid)),
        Err(_) => {
            drop(answer.send(Ok(Restarted { pid, ready: false })));
            is_ready.await;
            None
        }
    };
    // Nobody listens any more where everything ends.
    drop(ready.send(waiting));
}

/// What stays the same while nodes come and go.
struct Scene {
    args: Args,
    folder: Folder,
    ready: Ready,
    members: Vec<Member>,
}

impl Scene {
    /// Makes what is missing, starts the nodes, fills them, and says that they are ready.
    async fn first_start(&mut self, sink: &Sink) -> Outcome {
        self.ready.remove();
        let relay = self.args.relay.clone().unwrap_or_else(|| sink.address().to_string());
        for id in 1..=self.args.nodes {
            let place = self.folder.place(id);
            certificates::make(&self.folder, &place)?;
            place.write_config(&self.args, &relay)?;
            self.make(&place).await?;
            self.members.push(Member::start(place).await?);
        }
        for member in &mut self.members {
            member.wait_until_ready().await?;
        }
        if let Some(first) = self.members.first() {
            provision::provision(&first.client(), &self.folder.secrets).await?;
        }
        self.ready.write(&self.members)
    }

    /// The first node makes the cluster, the others join it.
    async fn make(&mut self, place: &Place) -> Outcome {
        if place.is_initialised() {
            return Ok(());
        }
        let Some(first) = self.members.first_mut() else { return init::make(&place.data()) };
        first.wait_until_ready().await?;
        let made = first.client().post("/cluster/tokens", &json!({})).await?;
        let token = made["token"].as_str().unwrap_or_default();
        let (member, own) = (first.place.cluster_address()?.to_string(), place.cluster_address()?.to_string());
        join::make(&place.data(), &member, token, &own).await.map(drop)
    }

    /// The process is there when it returns; whether it takes mail may depend on others that are down.
    async fn restart(&mut self, Restart { id, answer }: Restart, ready: &mpsc::UnboundedSender<Waiting>) {
        match self.restarted(id).await {
            Ok((client, pid)) => drop(tokio::spawn(tell_when_ready(client, (answer, pid), ready.clone()))),
            Err(failure) => drop(answer.send(Err(failure.to_string()))),
        }
    }

    async fn restarted(&mut self, id: u64) -> Result<(Client, Option<u32>), Failure> {
        let member = self.members.iter_mut().find(|member| member.place.id == id);
        let member = member.ok_or_else(|| Failure::wrong(format!("there is no node {id}")))?;
        member.restart().await?;
        Ok((member.client(), member.process.id()))
    }

    /// All at once: the last ones would wait for a quorum that ends with them.
    async fn stop(&mut self) -> std::io::Result<()> {
        for member in &mut self.members {
            member.process.terminate()?;
        }
        for member in &mut self.members {
            member.process.wait().await?;
        }
        Ok(())
    }
}
