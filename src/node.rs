//! A node: puts the parts together in order, and takes them down in reverse.
//!
//! Order matters twice. At the start the stores are opened and what a crash left undecided is decided
//! before the first listener is bound. At the end the listeners close first, so that no message is taken
//! that the stores could no longer keep.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use outgate_cluster::{AdmissionId, AdmissionVerdict, Cluster, Command, DomainName, OpenOptions};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::clock::now_ms;
use crate::config::Config;
use crate::dns::Dns;
use crate::listener::{FAREWELL_TIMEOUT, Listeners};
use crate::maillog::{Event, Maillog, Record, Status};
use crate::metrics::Metrics;
use crate::mirror::Disks;
use crate::quarantine::{Held, Quarantine};
use crate::queue::{AdmissionTag, Queue, QueueParts, Route, Undecided};
use crate::spool::SpoolError;
use crate::submission::Line;
use crate::take_over;
use crate::tls::{ServerTls, TlsError};
use crate::user::{Directory, Sessions};
use crate::web;

/// How long a decision may take before the client hears 451.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);
const _: () = assert!(
    FAREWELL_TIMEOUT.as_secs() > 2 * PROPOSE_TIMEOUT.as_secs(),
    "a message whose judgement has begun is never cut off"
);
/// How long the notes on what a crash left open may take before the node begins without.
/// Between complaints.
const DECIDE_PATIENCE: Duration = Duration::from_secs(30);
/// How soon a lost quorum closes the listeners, and a regained one opens them.
const READINESS_INTERVAL: Duration = Duration::from_millis(100);
/// How often what is too old leaves quarantine.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(3600);

/// A running node.
pub struct Node {
    pub line: Arc<Line>,
    pub submission: Vec<SocketAddr>,
    pub http: SocketAddr,
    pub control_socket: PathBuf,
    listeners: Arc<Listeners>,
    listening: Arc<AtomicBool>,
    servers: web::Servers,
    tls: ServerTls,
    tasks: Vec<JoinHandle<()>>,
}

impl Node {
    /// Opens the stores and begins; mail is accepted as soon as there is a quorum and what a crash left is decided.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let config = Arc::new(config);
        let hostname = config.node.effective_hostname();
        // First of all, because it tells a directory that is none of ours before anything is written there.
        let cluster = open_cluster(&config).await?;
        let tls = ServerTls::load(&config.tls, &config.certificate, &config.node.data_dir, &hostname)?;
        let (line, undecided) = open_line(&config, hostname, cluster).await?;
        let line = Arc::new(line);
        let listeners = Arc::new(Listeners::start(&config.listener, line.clone(), tls.clone()).await?);
        listeners.close();
        let listening = Arc::new(AtomicBool::new(false));
        let servers = web::Servers::start(web_parts(&line, &listeners, &listening)).await?;
        line.queue.start();
        tracing::info!(submission = ?listeners.addresses(), http = %servers.http, "started");
        let tasks = vec![
            tokio::spawn(take_mail(line.clone(), listeners.clone(), listening.clone(), undecided)),
            tokio::spawn(take_over::run(line.clone())),
            tokio::spawn(expire_quarantine(line.quarantine.clone(), line.maillog.clone())),
        ];
        Ok(Self {
            submission: listeners.addresses(),
            http: servers.http,
            control_socket: servers.control_socket.clone(),
            line,
            listeners,
            listening,
            servers,
            tls,
            tasks,
        })
    }

    /// Resolves with the reason when the node cannot go on.
    pub async fn failed(&self) -> String {
        tokio::select! {
            reason = self.line.cluster.failed() => reason,
            reason = self.line.queue.failed() => reason,
        }
    }

    /// Reads the certificate files again; on an error the old certificate stays.
    pub fn reload_tls(&self) -> Result<(), TlsError> {
        self.tls.reload()
    }

    /// Finishes open transactions, writes everything down and stops.
    pub async fn shutdown(self) {
        for task in &self.tasks {
            task.abort();
        }
        self.listening.store(false, Ordering::Relaxed);
        self.listeners.shutdown().await;
        self.servers.shutdown().await;
        self.line.queue.shutdown().await;
        self.line.maillog.shutdown().await;
        self.line.cluster.shutdown().await;
        tracing::info!("stopped");
    }
}

async fn open_cluster(config: &Config) -> anyhow::Result<Cluster> {
    let options = OpenOptions {
        directory: config.node.cluster_dir(),
        propose_timeout: PROPOSE_TIMEOUT,
        listen: config.cluster.listen,
        advertise: Some(config.cluster.advertise.clone()).filter(|address| !address.is_empty()),
    };
    Ok(Cluster::open(options).await?)
}

async fn open_line(config: &Arc<Config>, hostname: String, cluster: Cluster) -> anyhow::Result<(Line, Vec<Undecided>)> {
    let data = &config.node.data_dir;
    // Another node's mail is not ours to deliver.
    for part in ["queue", "quarantine", "maillog"] {
        cluster.claim(&data.join(part))?;
    }
    let metrics = Arc::new(Metrics::default());
    let dns = Dns::new(&config.dns)?;
    let maillog = Maillog::open(&data.join("maillog"), config.maillog.keep_days).context("the mail log")?;
    let quarantine = Quarantine::open(&data.join("quarantine"), config.quarantine.keep_days)?;
    let sessions = Sessions::default();
    let (disks, left) =
        Disks::open(&data.join("queue"), &config.spool, &metrics, &cluster, &quarantine, &maillog, &sessions).await?;
    let settle = cluster.clone();
    let routes = cluster.clone();
    let lease = cluster.clone();
    let of_delivery = disks.clone();
    let parts = QueueParts {
        config: config.clone(),
        dns: dns.clone(),
        disks: disks.clone(),
        maillog: maillog.clone(),
        metrics: metrics.clone(),
        on_settled: Arc::new(move |tag| settle.settle(admission_id(tag))),
        find_route: Arc::new(move |domain| domain_route(&routes, domain)),
        may_deliver: Arc::new(move || lease.holds_lease() && of_delivery.is_back()),
    };
    let (queue, undecided) = Queue::open(parts, left).await?;
    let directory = Directory::new(config.clone(), cluster.clone(), metrics.clone(), sessions);
    let config = config.clone();
    let line = Line { config, hostname, cluster, directory, dns, disks, queue, quarantine, maillog, metrics };
    Ok((line, undecided))
}

/// Asks the replicated state what became of the messages that a crash caught between store and note, and sees to it that
/// nobody has to ask for an admission of an earlier life again: the first one of this life makes the state forget them.
async fn decide(line: &Line, undecided: Vec<Undecided>) {
    let Line { cluster, queue, disks, .. } = line;
    let decided = |message: Undecided| {
        let admission = cluster.read(|state| state.admission(admission_id(message.admission)));
        let accepted = admission.is_some_and(|admission| admission.verdict == AdmissionVerdict::Accepted);
        tracing::info!(id = %message.id, accepted, "decided a message that a crash had left open");
        (message, accepted)
    };
    let decisions = undecided.into_iter().map(decided).collect();
    let noted = async {
        queue.decide(decisions).await?;
        disks.all_confirmed().await;
        Ok::<(), SpoolError>(())
    };
    tokio::pin!(noted);
    let mut patience = tokio::time::interval_at(Instant::now() + DECIDE_PATIENCE, DECIDE_PATIENCE);
    loop {
        tokio::select! {
            noted = &mut noted => match noted {
                Ok(()) => break,
                Err(error) => return tracing::error!(%error, "what a crash had left open is not noted"),
            },
            _ = patience.tick() => {
                tracing::warn!("no mail is taken yet: the disk has no room, or no other node keeps copies");
            }
            // A node that was declared down meanwhile gets no copies kept before it is back.
            () = tokio::time::sleep(READINESS_INTERVAL) => {
                if cluster.is_ready() && !take_over::owns_mail(cluster) {
                    take_over::come_back(line).await;
                }
            }
        }
    }
    if let Some(epoch) = cluster.epoch().checked_sub(1)
        && let Err(error) = cluster.propose(Command::Settle { node: cluster.node_id(), epoch }).await
    {
        tracing::warn!(%error, "earlier admissions stay in memory until the next start");
    }
}

pub(crate) fn admission_id(tag: AdmissionTag) -> AdmissionId {
    AdmissionId { node: tag.node, epoch: tag.epoch, sequence: tag.sequence }
}

/// The route that a domain has in the replicated state; the form was checked when it was set.
fn domain_route(cluster: &Cluster, domain: &str) -> Option<Route> {
    let view = cluster.read(|state| state.domain(&DomainName::new(domain).ok()?))?;
    let auth = view.route_auth.as_deref().and_then(|text| text.split_once(':'));
    Route::parse(&view.route?, auth.map(|(user, password)| (user.to_owned(), password.to_owned())))
}

fn web_parts(line: &Line, listeners: &Listeners, listening: &Arc<AtomicBool>) -> web::Parts {
    let modes = line.config.listener.iter().map(|listener| listener.mode);
    web::Parts {
        hostname: line.hostname.clone(),
        listeners: modes.zip(listeners.addresses()).collect(),
        http: line.config.http.address,
        control_socket: line.config.node.control_socket_path(),
        cluster: line.cluster.clone(),
        queue: line.queue.clone(),
        quarantine: line.quarantine.clone(),
        disks: line.disks.clone(),
        maillog: line.maillog.clone(),
        metrics: line.metrics.clone(),
        listening: listening.clone(),
    }
}

/// Opens the listeners once what a crash left is decided, and from then on as long as this node can decide and does not
/// drain; otherwise it refuses TCP, so that clients take the next address of the name at once.
async fn take_mail(line: Arc<Line>, listeners: Arc<Listeners>, listening: Arc<AtomicBool>, undecided: Vec<Undecided>) {
    let cluster = &line.cluster;
    while !cluster.is_ready() || cluster.barrier().await.is_err() {
        tokio::time::sleep(READINESS_INTERVAL).await;
    }
    take_over::come_back(&line).await;
    decide(&line, undecided).await;
    loop {
        let owns_mail = take_over::owns_mail(cluster);
        let has_room = line.has_room() || is_alone(cluster);
        // Without a lease it may have been declared down, and not know it yet.
        let listens = listening.load(Ordering::Relaxed);
        let may_decide = cluster.is_ready() || (listens && cluster.has_majority());
        let may_take = may_decide && owns_mail && cluster.holds_lease();
        let ready = may_take && !is_draining(cluster) && has_room;
        if listening.swap(ready, Ordering::Relaxed) != ready {
            if ready {
                tracing::info!("accepting mail");
                listeners.open();
            } else {
                let (leader, draining) = (cluster.leader(), is_draining(cluster));
                tracing::warn!(?leader, draining, disk_has_room = line.has_room(), "refusing mail");
                listeners.close();
            }
        }
        if cluster.is_ready() && !owns_mail {
            take_over::come_back(&line).await;
        }
        tokio::time::sleep(READINESS_INTERVAL).await;
    }
}

/// A full disk of the only node is told with 452: there is no other that a client could take instead.
fn is_alone(cluster: &Cluster) -> bool {
    cluster.read(|state| state.nodes().len()) == 1
}

fn is_draining(cluster: &Cluster) -> bool {
    cluster.read(|state| state.node(cluster.node_id())).is_some_and(|node| node.draining)
}

async fn expire_quarantine(quarantine: Quarantine, maillog: Maillog) {
    loop {
        let now = now_ms();
        match quarantine.expire(now).await {
            Ok(gone) => gone.into_iter().for_each(|(id, held)| maillog.record(expired(id, held.as_ref(), now))),
            Err(error) => tracing::error!(%error, "cannot expire the quarantine"),
        }
        tokio::time::sleep(EXPIRY_INTERVAL).await;
    }
}

fn expired(id: crate::mail::MessageId, held: Option<&Held>, at_ms: u64) -> Record {
    let origin = held.map(Held::origin).unwrap_or_default();
    let (by, detail) = ("outgate".to_owned(), "left quarantine".to_owned());
    let event = Event::Change { origin, status: Status::Expired, by, detail };
    Record { at_ms, id, event }
}
