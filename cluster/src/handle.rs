//! The face of the cluster crate: one cloneable handle to read the replica and to propose commands.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use openraft::{BasicNode, RaftMetrics};
use tokio::sync::watch;

use crate::clock::Clock;
use crate::command::{Admission, AdmissionId, Admit, Command, Outcome};
use crate::name::Timestamp;
use crate::proposer::Proposer;
use crate::raft::{self, NoPeers, Raft};
use crate::settlement::Settlement;
use crate::state::State;
use crate::store::identity::Home;
use crate::store::keeper::Keeper;
use crate::store::log::Log;
use crate::store::machine::Replica;
use crate::store::{self, Failure, Limits, Opened};
use crate::upkeep::Upkeep;

pub use crate::store::OpenError;

/// How long [`Cluster::open`] waits for the next applied entry before it gives up.
const REPLAY_STALL_MAX: Duration = Duration::from_secs(60);
/// How long [`Cluster::shutdown`] waits for the writing threads.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// A node's part in the cluster. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    node: u64,
    epoch: u64,
    raft: Raft,
    replica: Replica,
    proposer: Proposer,
    clock: Clock,
    settlement: Mutex<Settlement>,
    metrics: watch::Receiver<RaftMetrics<u64, BasicNode>>,
    failure: Failure,
    stopping: AtomicBool,
    /// What must be closed for the directory to be opened again.
    closing: Mutex<Option<Closing>>,
}

struct Closing {
    upkeep: tokio::task::JoinHandle<()>,
    keeper: Keeper,
    threads: Vec<JoinHandle<()>>,
    home: Home,
}

#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Holds `identity`, `log/`, `snapshot/` and `state/` (sled).
    pub directory: PathBuf,
    /// How long a proposal may take before [`ProposeError::Timeout`].
    pub propose_timeout: Duration,
}

/// A committed and applied command.
#[derive(Clone, Debug)]
pub struct Applied<T> {
    pub index: u64,
    pub at: Timestamp,
    pub outcome: T,
}

/// The command may or may not take effect later with `Timeout`; an [`AdmissionId`] makes a retry harmless.
#[derive(thiserror::Error, Clone, Debug)]
pub enum ProposeError {
    #[error("no quorum")]
    NoQuorum,
    #[error("not decided in time")]
    Timeout,
    #[error("too many proposals are waiting")]
    Busy,
    #[error("the disk is nearly full")]
    DiskFull,
    #[error("a command of {bytes} bytes is larger than {bytes_max}: propose it in parts")]
    TooLarge { bytes: usize, bytes_max: usize },
    #[error("the store has stopped: {0}")]
    Stopped(String),
}

impl Cluster {
    /// Makes the directory of a new cluster of one node: id 1 and a fresh cluster id.
    pub fn init(options: &OpenOptions) -> Result<(), OpenError> {
        Home::init(&options.directory)
    }

    /// Opens the directory, replays the log and waits until this node is ready to decide.
    pub async fn open(options: OpenOptions) -> Result<Self, OpenError> {
        Self::open_with(options, Limits::default()).await
    }

    /// [`Cluster::open`] with other limits than the usual ones.
    pub async fn open_with(options: OpenOptions, limits: Limits) -> Result<Self, OpenError> {
        let failure = Failure::default();
        let (mut home, opened) = open_store(&options, &limits, &failure).await?;
        let io = |error: io::Error| OpenError::Io(options.directory.clone(), error);
        let (node, log, replica) = (home.identity.node, opened.log.clone(), opened.machine.replica().clone());
        let config = Arc::new(raft::config(limits.log_entries_kept));
        let raft = Raft::new(node, config, NoPeers, opened.log, opened.machine).await;
        let raft = raft.map_err(|error| io(io::Error::other(error)))?;
        if let Err(error) = lead(&raft, node, &log, &replica, &failure).await {
            // Without this raft's task would hold the files for as long as the process lives.
            drop(raft.shutdown().await);
            return Err(io(error));
        }
        if !home.identity.formed {
            home.set_formed()?;
        }
        let clock = Clock::anchored(replica.read(State::now));
        let proposer =
            Proposer::start(raft.clone(), clock, options.propose_timeout, failure.clone(), opened.room.clone());
        let upkeep = Upkeep {
            raft: raft.clone(),
            replica: replica.clone(),
            clock,
            proposer: proposer.clone(),
            log,
            keeper: opened.keeper.clone(),
            failure: failure.clone(),
            room: opened.room,
            limits,
            snapshot_at: 0,
        };
        let (epoch, upkeep) = (home.identity.epoch, tokio::spawn(upkeep.run()));
        let inner = Inner {
            node,
            epoch,
            proposer,
            metrics: raft.metrics(),
            raft,
            replica,
            clock,
            settlement: Mutex::default(),
            failure,
            stopping: AtomicBool::new(false),
            closing: Mutex::new(Some(Closing { upkeep, keeper: opened.keeper, threads: opened.threads, home })),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Reads the local replica; `read` must be short, it holds the state's lock.
    pub fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        self.inner.replica.read(read)
    }

    /// The log's clock as this node estimates it now, for advice; only the leader's stamp decides.
    pub fn now(&self) -> Timestamp {
        self.inner.clock.now()
    }

    pub fn node_id(&self) -> u64 {
        self.inner.node
    }

    /// This life of the process; grows with each [`Cluster::open`].
    pub fn epoch(&self) -> u64 {
        self.inner.epoch
    }

    /// The next admission id of this node; the id stays unsettled until [`Cluster::settle`].
    pub fn next_admission(&self) -> AdmissionId {
        let sequence = self.inner.settlement.lock().unwrap_or_else(PoisonError::into_inner).issue();
        AdmissionId { node: self.inner.node, epoch: self.inner.epoch, sequence }
    }

    /// Says that the answer to this admission is safe elsewhere (or no longer matters).
    pub fn settle(&self, id: AdmissionId) {
        if (id.node, id.epoch) == (self.inner.node, self.inner.epoch) {
            self.inner.settlement.lock().unwrap_or_else(PoisonError::into_inner).settle(id.sequence);
        }
    }

    /// Decides one message; fills in `settled_below` itself.
    pub async fn admit(&self, mut admit: Admit) -> Result<Applied<Admission>, ProposeError> {
        admit.settled_below = self.inner.settlement.lock().unwrap_or_else(PoisonError::into_inner).settled_below();
        let Applied { index, at, outcome } = self.propose(Command::Admit(admit)).await?;
        let Outcome::Admission(outcome) = outcome else {
            return Err(ProposeError::Stopped("an admission was answered with another outcome".to_owned()));
        };
        Ok(Applied { index, at, outcome })
    }

    pub async fn propose(&self, command: Command) -> Result<Applied<Outcome>, ProposeError> {
        if self.inner.stopping.load(Ordering::Acquire) {
            return Err(ProposeError::Stopped("it was shut down".to_owned()));
        }
        self.inner.proposer.propose(command).await
    }

    /// True while this node can decide (a leader with a quorum is known).
    pub fn is_ready(&self) -> bool {
        let metrics = self.inner.metrics.borrow();
        metrics.current_leader == Some(self.inner.node)
            && metrics.running_state.is_ok()
            && !self.inner.failure.is_set()
            && !self.inner.stopping.load(Ordering::Acquire)
    }

    /// Resolves with one sentence when the store can no longer go on (an fsync error, a damaged log).
    pub async fn failed(&self) -> String {
        self.inner.failure.wait().await
    }

    /// Writes a last checkpoint and stops; without it the node runs on when the last handle is gone. The directory can be opened again afterwards.
    pub async fn shutdown(&self) {
        self.inner.stopping.store(true, Ordering::Release);
        let closing = self.inner.closing.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Closing { upkeep, keeper, threads, home }) = closing else { return };
        upkeep.abort();
        drop(upkeep.await);
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::warn!("stopping raft: {error}");
        }
        if let Err(error) = keeper.checkpoint().await {
            tracing::warn!("the last checkpoint was not written: {error}");
        }
        drop(keeper);
        let joined = tokio::task::spawn_blocking(move || threads.into_iter().for_each(|thread| drop(thread.join())));
        if tokio::time::timeout(STOP_TIMEOUT, joined).await.is_err() {
            tracing::warn!("the store's threads did not end in time");
        }
        drop(home);
    }
}

/// Opens the files on a thread that may block.
async fn open_store(options: &OpenOptions, limits: &Limits, failure: &Failure) -> Result<(Home, Opened), OpenError> {
    let (directory, limits, failure) = (options.directory.clone(), limits.clone(), failure.clone());
    let opening = tokio::task::spawn_blocking(move || {
        let mut home = Home::open(&directory)?;
        let opened = store::open(&home, &limits, &failure)?;
        if opened.log.extent().last.is_some() && !home.identity.formed {
            home.set_formed()?;
        }
        Ok((home, opened))
    });
    opening.await.map_err(|error| OpenError::Io(options.directory.clone(), io::Error::other(error))).flatten()
}

/// Forms the cluster where the log is empty, and waits until this node can decide.
async fn lead(raft: &Raft, node: u64, log: &Log, replica: &Replica, failure: &Failure) -> io::Result<()> {
    let held = log.extent().last;
    if held.is_none() {
        let members = BTreeMap::from([(node, BasicNode::default())]);
        raft.initialize(members).await.map_err(io::Error::other)?;
    }
    ready(raft, held.map_or(0, |id| id.index), replica, failure).await
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
