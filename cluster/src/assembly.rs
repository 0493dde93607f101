//! Puts a node's part of the cluster together: store, ways to the others, raft, and the tasks around it.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openraft::BasicNode;
use tokio::net::TcpListener;
use tokio::task::JoinHandle as Task;

use crate::clock::Clock;
use crate::command::{Authority, Command};
use crate::handle::{Closing, Inner, OpenError, OpenOptions, ProposeError};
use crate::leadership::Leadership;
use crate::lease::{self, Lease, Watch};
use crate::network::peers::Peers;
use crate::network::raft_network::Network;
use crate::network::server::{self, Host};
use crate::network::service::Services;
use crate::network::snapshot;
use crate::network::tls::{self, Credentials, Papers};
use crate::proposer::{Proposer, Route};
use crate::pulse::{self, Standings};
use crate::raft::{self, Raft};
use crate::sequencer::Sequencer;
use crate::state::State;
use crate::store::identity::Home;
use crate::store::log::Log;
use crate::store::machine::Replica;
use crate::store::{self, Failure, Limits, Opened};
use crate::upkeep::Upkeep;

/// How long a node that is alone waits for the next applied entry before it gives up.
const REPLAY_STALL_MAX: Duration = Duration::from_secs(60);
/// Between attempts to learn what was decided before this node began.
const CATCH_UP_PAUSE: Duration = Duration::from_millis(100);

/// What does not depend on raft.
struct Ground {
    credentials: Credentials,
    papers: Papers,
    listener: Option<TcpListener>,
    address: Option<SocketAddr>,
    advertised: String,
}

pub(crate) async fn assemble(options: OpenOptions, limits: Limits) -> Result<Arc<Inner>, OpenError> {
    let failure = Failure::default();
    let (mut home, opened) = open_store(&options, &limits, &failure).await?;
    let io = |error: io::Error| OpenError::Io(options.directory.clone(), error);
    let ground = prepare(&options, &home).await?;
    let (node, log, replica) = (home.identity.node, opened.log.clone(), opened.machine.replica().clone());
    let peers = Peers::new(ground.credentials.clone(), replica.clone());
    let config = Arc::new(raft::config(limits.log_entries_kept));
    let network = Network(peers.clone(), opened.machine.snapshots().clone());
    let raft = Raft::new(node, config, network, opened.log.clone(), opened.machine.clone()).await;
    let raft = raft.map_err(|error| io(io::Error::other(error)))?;
    let alone = match begin(&raft, &ground, &log, &replica, &failure).await {
        Ok(alone) => alone,
        Err(error) => {
            // Without this raft's task would hold the files for as long as the process lives.
            drop(raft.shutdown().await);
            return Err(io(error));
        }
    };
    if alone && !home.identity.formed {
        home.set_formed()?;
    }
    let (founding, advertised) = (founding(&ground), ground.advertised.clone());
    let inner = start(&options, limits, home, opened, ground, (raft, peers, failure), alone);
    if let Some(authority) = founding.filter(|_| alone) {
        form(&inner, authority, &advertised).await.map_err(|error| io(io::Error::other(error)))?;
        tls::forget_founding(&options.directory).map_err(io)?;
    }
    let arrival = tokio::spawn(arrive(Arc::clone(&inner), advertised));
    if let Some(closing) = lock(&inner.closing).as_mut() {
        closing.tasks.push(arrival);
    }
    Ok(inner)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn founding(ground: &Ground) -> Option<Authority> {
    let private_key = ground.papers.founding.clone()?;
    Some(Authority { certificate: ground.papers.authority.clone(), private_key })
}

/// The first command of a cluster; an earlier life may have had it decided already.
async fn form(inner: &Inner, authority: Authority, advertised: &str) -> Result<(), ProposeError> {
    if inner.replica.read(|state| state.authority().is_none()) {
        inner.proposer.propose(Command::Form { authority, address: advertised.to_owned() }).await?;
    }
    Ok(())
}

/// Until this node knows what was decided before it began, and the others know where it is now.
async fn arrive(inner: Arc<Inner>, advertised: String) {
    while inner.barrier().await.is_err() || inner.replica.read(|state| state.node(inner.node).is_none()) {
        tokio::time::sleep(CATCH_UP_PAUSE).await;
    }
    if inner.runs_from_an_older_disk() {
        return inner.stop_for_good("this node's disk is older than what the other nodes know of it");
    }
    inner.caught_up.store(true, Ordering::Release);
    let is_known = || inner.replica.read(|state| state.node(inner.node)).is_some_and(|node| node.address == advertised);
    while !advertised.is_empty() && !is_known() {
        let command = Command::NodeSet { node: inner.node, address: Some(advertised.clone()), draining: None };
        if let Err(error) = inner.proposer.propose(command).await {
            tracing::debug!(%error, "the others do not know this node's address yet");
        }
        tokio::time::sleep(CATCH_UP_PAUSE).await;
    }
}

impl Inner {
    /// Whether a later life of this node has taken part already: an old copy of its disk would use its admission ids again,
    /// and deny what it has acknowledged. A node that is alone has nobody who would know, and may have settled by now what
    /// earlier lives left, which looks the same; any other one takes part only behind this.
    fn runs_from_an_older_disk(&self) -> bool {
        let is_alone = self.caught_up.load(Ordering::Acquire);
        let is_known = || self.replica.read(|state| state.knows_epoch(self.node, self.epoch));
        !is_alone && is_known() && lock(&self.settlement).is_untouched()
    }
}

/// Opens the files on a thread that may block.
async fn open_store(options: &OpenOptions, limits: &Limits, failure: &Failure) -> Result<(Home, Opened), OpenError> {
    let (directory, limits, failure) = (options.directory.clone(), limits.clone(), failure.clone());
    let listen = options.listen;
    let opening = tokio::task::spawn_blocking(move || {
        let mut home = Home::open(&directory)?;
        let opened = store::open(&home, &limits, &failure)?;
        let nodes = opened.machine.replica().read(|state| state.nodes().len());
        if listen.is_none() && nodes > 1 {
            return Err(OpenError::NotListening(nodes));
        }
        if opened.log.extent().last.is_some() && !home.identity.formed {
            home.set_formed()?;
        }
        Ok((home, opened))
    });
    opening.await.map_err(|error| OpenError::Io(options.directory.clone(), io::Error::other(error))).flatten()
}

async fn prepare(options: &OpenOptions, home: &Home) -> Result<Ground, OpenError> {
    let directory = tls::directory(&options.directory);
    let papers = Papers::read(&options.directory).map_err(OpenError::io(&directory))?;
    let credentials = Credentials::new(home.identity.cluster, home.identity.node, &papers);
    let credentials = credentials.map_err(OpenError::io(&directory))?;
    let io = |error: io::Error| OpenError::Io(options.directory.clone(), error);
    let listener = match options.listen {
        Some(address) => Some(server::bind(address).await.map_err(io)?),
        None => None,
    };
    let address = listener.as_ref().map(TcpListener::local_addr).transpose().map_err(io)?;
    let advertised = options.advertise.clone().or_else(|| address.map(|address| address.to_string()));
    Ok(Ground { credentials, papers, listener, address, advertised: advertised.unwrap_or_default() })
}

/// Forms the cluster where this is its first node, and waits until a node that is alone can decide. True = it is alone.
async fn begin(raft: &Raft, ground: &Ground, log: &Log, replica: &Replica, failure: &Failure) -> io::Result<bool> {
    let node = ground.credentials.node;
    let held = log.extent().last;
    if held.is_none() && ground.papers.founding.is_some() {
        let members = BTreeMap::from([(node, BasicNode::new(&ground.advertised))]);
        raft.initialize(members).await.map_err(io::Error::other)?;
    }
    // Asked of raft itself: its metrics are not there yet.
    let voters = raft.with_raft_state(|state| state.membership_state.effective().voter_ids().collect::<Vec<_>>()).await;
    let alone = voters.map_err(io::Error::other)? == [node];
    if alone {
        ready(raft, held.map_or(0, |id| id.index), replica, failure).await?;
    }
    Ok(alone)
}

/// Waits until this node leads and everything that its log held is applied.
async fn ready(raft: &Raft, last: u64, replica: &Replica, failure: &Failure) -> io::Result<()> {
    let node = raft.metrics().borrow().id;
    let mut metrics = raft.metrics();
    loop {
        let (leads, applied) = {
            let seen = metrics.borrow_and_update();
            if let Err(fatal) = &seen.running_state {
                return Err(io::Error::other(failure.get().unwrap_or_else(|| fatal.to_string())));
            }
            (seen.current_leader == Some(node), seen.last_applied)
        };
        if leads && applied.is_some_and(|id| id.index >= last) && replica.applied() >= applied {
            return Ok(());
        }
        match tokio::time::timeout(REPLAY_STALL_MAX, metrics.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(io::Error::other("raft has stopped")),
            Err(_) => return Err(io::Error::new(io::ErrorKind::TimedOut, "the log was not replayed in time")),
        }
    }
}

/// Starts everything that runs around raft.
fn start(
    options: &OpenOptions,
    limits: Limits,
    home: Home,
    opened: Opened,
    ground: Ground,
    (raft, peers, failure): (Raft, Peers, Failure),
    alone: bool,
) -> Arc<Inner> {
    let (node, epoch, replica) = (home.identity.node, home.identity.epoch, opened.machine.replica().clone());
    let clock = Clock::anchored();
    if alone {
        clock.follow(0, replica.read(State::now));
    }
    let standings = Standings::default();
    let leadership = Leadership::new(node, clock.clone(), raft.metrics(), standings.clone());
    let sequencer = Sequencer::start(raft.clone(), replica.clone(), clock.clone(), options.propose_timeout);
    let route = Route { node, leadership: leadership.clone(), sequencer: sequencer.clone(), peers: peers.clone() };
    let proposer = Proposer::start(route, options.propose_timeout, failure.clone(), opened.room.clone());
    let inner = Arc::new(Inner {
        owner: home.owner(),
        directory: options.directory.clone(),
        node,
        epoch,
        raft,
        replica,
        leadership,
        peers,
        standings,
        state_hashes: opened.keeper.state_hashes(),
        proposer,
        lease: Lease::new(clock.clone()),
        watch: Watch::new(clock.clone()),
        services: Services::default(),
        clock,
        settlement: Mutex::default(),
        failure,
        stopping: false.into(),
        caught_up: alone.into(),
        address: ground.address,
        closing: Mutex::default(),
    });
    let upkeep = upkeep(&inner, &opened, limits);
    let tasks = tasks(&inner, upkeep, sequencer, ground);
    let closing = Closing { tasks, keeper: opened.keeper, threads: opened.threads, home };
    *lock(&inner.closing) = Some(closing);
    inner
}

fn upkeep(inner: &Inner, opened: &Opened, limits: Limits) -> Upkeep {
    Upkeep {
        raft: inner.raft.clone(),
        replica: inner.replica.clone(),
        clock: inner.clock.clone(),
        leadership: inner.leadership.clone(),
        proposer: inner.proposer.clone(),
        watch: inner.watch.clone(),
        log: opened.log.clone(),
        keeper: opened.keeper.clone(),
        snapshots: opened.machine.snapshots().clone(),
        standings: inner.standings.clone(),
        failure: inner.failure.clone(),
        room: opened.room.clone(),
        limits,
        snapshot_at: 0,
        snapshot_has_room: true,
        hashed: (0, 0),
    }
}

fn tasks(inner: &Arc<Inner>, upkeep: Upkeep, sequencer: Sequencer, ground: Ground) -> Vec<Task<()>> {
    let (raft, purges, failure) = (inner.raft.clone(), upkeep.log.purges(), inner.failure.clone());
    let receiver = snapshot::Receiver { raft, purges, failure };
    let pulse = pulse::run(Arc::clone(inner));
    let mut tasks = vec![tokio::spawn(upkeep.run()), tokio::spawn(pulse), tokio::spawn(lease::run(Arc::clone(inner)))];
    let Ground { credentials, listener, .. } = ground;
    if let Some(listener) = listener {
        let host = Host {
            credentials,
            epoch: inner.epoch,
            raft: inner.raft.clone(),
            replica: inner.replica.clone(),
            leadership: inner.leadership.clone(),
            sequencer,
            proposer: inner.proposer.clone(),
            watch: inner.watch.clone(),
            services: inner.services.clone(),
            state_hashes: inner.state_hashes.clone(),
            receiving: tokio::sync::Mutex::default(),
            receiver,
        };
        tasks.push(tokio::spawn(server::serve(listener, Arc::new(host))));
    }
    tasks
}
