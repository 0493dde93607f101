//! The face of the cluster crate: one cloneable handle to read the replica and to propose commands.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::task::JoinHandle as Task;

use crate::assembly;
use crate::clock::Clock;
use crate::command::{Actor, Admission, AdmissionId, Admit, Command, Outcome, Refusal};
use crate::leadership::Leadership;
use crate::lease::{Lease, Watch};
use crate::name::Timestamp;
use crate::network::join::{self, JoinError, Token};
use crate::network::message::{Channel, Request, Response};
use crate::network::peers::{CallError, Peers};
use crate::network::service::{PeerError, Service, Services};
use crate::network::tls;
use crate::proposer::{LEADER_PATIENCE, Proposer};
use crate::pulse::{Standing, Standings};
use crate::raft::Raft;
use crate::settlement::Settlement;
use crate::state::{NodeView, State};
use crate::store::identity::Home;
use crate::store::keeper::Keeper;
use crate::store::machine::Replica;
use crate::store::owner::{self, Owner};
use crate::store::state_hash::{StateHash, StateHashes};
use crate::store::{Failure, Limits};

pub use crate::store::OpenError;

/// How long [`Cluster::shutdown`] waits for the writing threads.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long [`Cluster::barrier`] waits for the leader's word, and for this node to catch up.
const BARRIER_TIMEOUT: Duration = Duration::from_secs(2);

/// A node's part in the cluster. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) owner: Owner,
    pub(crate) directory: PathBuf,
    pub(crate) node: u64,
    pub(crate) epoch: u64,
    pub(crate) raft: Raft,
    pub(crate) replica: Replica,
    pub(crate) leadership: Leadership,
    pub(crate) peers: Peers,
    pub(crate) standings: Standings,
    pub(crate) state_hashes: StateHashes,
    pub(crate) proposer: Proposer,
    pub(crate) clock: Clock,
    pub(crate) lease: Lease,
    pub(crate) watch: Watch,
    pub(crate) services: Services,
    pub(crate) settlement: Mutex<Settlement>,
    pub(crate) failure: Failure,
    pub(crate) stopping: AtomicBool,
    /// Set once this node knows all that was decided before it began; until then it would not know newer Users.
    pub(crate) caught_up: AtomicBool,
    /// Where other nodes are listened to.
    pub(crate) address: Option<SocketAddr>,
    /// What must be closed for the directory to be opened again.
    pub(crate) closing: Mutex<Option<Closing>>,
}

pub(crate) struct Closing {
    pub(crate) tasks: Vec<Task<()>>,
    pub(crate) keeper: Keeper,
    pub(crate) threads: Vec<JoinHandle<()>>,
    pub(crate) home: Home,
}

#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Holds `identity`, `network/`, `log/`, `snapshot/` and `state/` (sled).
    pub directory: PathBuf,
    /// How long a proposal may take before [`ProposeError::Timeout`].
    pub propose_timeout: Duration,
    /// Where other nodes are listened to; a node that listens nowhere stays alone.
    pub listen: Option<SocketAddr>,
    /// `host:port` by which other nodes reach it; where it listens, if absent.
    pub advertise: Option<String>,
}

impl OpenOptions {
    /// A node that stays alone.
    pub fn alone(directory: PathBuf, propose_timeout: Duration) -> Self {
        Self { directory, propose_timeout, listen: None, advertise: None }
    }
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
    #[error("not decided in time: it may still take effect")]
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

/// Why there is no token.
#[derive(thiserror::Error, Clone, Debug)]
pub enum TokenError {
    #[error(transparent)]
    Propose(#[from] ProposeError),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the cluster's authority cannot be read")]
    Authority,
    #[error("the random number generator does not work")]
    Random,
}

impl Cluster {
    /// Makes the directory of a new cluster of one node: id 1 and a fresh cluster id.
    pub fn init(options: &OpenOptions) -> Result<(), OpenError> {
        Home::init(&options.directory)
    }

    /// Makes the directory of a new node of the cluster that `member` (`host:port` of its cluster listener) belongs to.
    /// `address` is where the other nodes will reach the new one. Returns the node's id.
    pub async fn join(options: &OpenOptions, member: &str, token: &Token, address: &str) -> Result<u64, JoinError> {
        join::ask(&options.directory, member, token, address).await
    }

    /// Opens the directory. A node that is alone is ready to decide when this returns; one of several begins to look for
    /// the others.
    pub async fn open(options: OpenOptions) -> Result<Self, OpenError> {
        Self::open_with(options, Limits::default()).await
    }

    /// [`Cluster::open`] with other limits than the usual ones.
    pub async fn open_with(options: OpenOptions, limits: Limits) -> Result<Self, OpenError> {
        Ok(Self { inner: assembly::assemble(options, limits).await? })
    }

    /// Reads the local replica; `read` must be short, it holds the state's lock.
    pub fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        self.inner.replica.read(read)
    }

    /// The log's clock as this node estimates it now, for advice; only the leader's stamp decides.
    pub fn now(&self) -> Timestamp {
        self.inner.clock.now()
    }

    /// Marks a directory as this node's, or refuses it where it is another's. Blocks.
    pub fn claim(&self, directory: &Path) -> Result<(), OpenError> {
        owner::claim(directory, self.inner.owner)
    }

    pub fn node_id(&self) -> u64 {
        self.inner.node
    }

    /// Under which this node owns mail, as far as it knows; 0 = it never did.
    pub fn owner_epoch(&self) -> u64 {
        self.read(|state| state.ownership(self.inner.node)).epoch
    }

    /// The other nodes that own mail, as far as this one knows.
    pub fn other_owners(&self) -> Vec<NodeView> {
        let nodes = self.read(State::nodes).into_iter();
        nodes.filter(|node| node.ownership.up && node.id != self.inner.node).collect()
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
        let Applied { index, at, outcome } = self.have_decided(Command::Admit(admit)).await?;
        let Outcome::Admission(outcome) = outcome else {
            return Err(ProposeError::Stopped("an admission was answered with another outcome".to_owned()));
        };
        Ok(Applied { index, at, outcome })
    }

    /// Has a command decided; when it returns, this node's replica knows of it.
    pub async fn propose(&self, command: Command) -> Result<Applied<Outcome>, ProposeError> {
        let applied = self.have_decided(command).await?;
        if !self.inner.leadership.wait_for_applied(applied.index, BARRIER_TIMEOUT).await {
            tracing::warn!(index = applied.index, "this node is far behind the leader");
        }
        Ok(applied)
    }

    async fn have_decided(&self, command: Command) -> Result<Applied<Outcome>, ProposeError> {
        if self.inner.stopping.load(Ordering::Acquire) {
            return Err(ProposeError::Stopped("it was shut down".to_owned()));
        }
        self.inner.proposer.propose(command).await
    }

    /// True while this node can have decisions made: a leader with a majority is there, and this node knows all that was
    /// decided before it began.
    pub fn is_ready(&self) -> bool {
        self.inner.leadership.has_quorum() && self.inner.runs()
    }

    /// True while a node that was ready may go on promising decisions: [`Cluster::is_ready`], or an election is under way
    /// among a majority that this node is part of.
    pub fn has_majority(&self) -> bool {
        self.inner.leadership.has_majority() && self.inner.runs()
    }

    /// False while the disk is nearly full: nothing that is asked here is decided ([`ProposeError::DiskFull`]).
    pub fn has_room(&self) -> bool {
        self.inner.proposer.has_room()
    }

    /// After it, [`Cluster::read`] sees everything that was acknowledged anywhere before the call.
    pub async fn barrier(&self) -> Result<(), ProposeError> {
        self.inner.barrier().await
    }

    /// Whether this node may act for the mail that it owns: deliver it, above all. False at the latest when others take
    /// over from it.
    pub fn holds_lease(&self) -> bool {
        self.inner.lease.holds()
    }

    /// Answers what the services of other nodes ask from now on.
    pub fn serve(&self, service: Service) {
        self.inner.services.set(service);
    }

    /// Asks the service of another node; waits at most `limit`.
    pub async fn ask(&self, node: u64, question: Vec<u8>, limit: Duration) -> Result<Vec<u8>, PeerError> {
        self.inner.peers.ask_service(node, question, limit).await.map_err(|error| match error {
            CallError::Unreachable(_) | CallError::Unwelcome(_) => PeerError::Unreachable(node, error.to_string()),
            CallError::TimedOut | CallError::Broken | CallError::Unreadable(_) => {
                PeerError::Unanswered(node, error.to_string())
            }
        })
    }

    /// The node that leads, as far as this one knows.
    pub fn leader(&self) -> Option<u64> {
        self.inner.leadership.leader()
    }

    /// Which nodes vote.
    pub fn voters(&self) -> Vec<u64> {
        self.inner.raft.metrics().borrow().membership_config.membership().voter_ids().collect()
    }

    /// The index of the last entry that this node has applied.
    pub fn applied(&self) -> u64 {
        self.inner.replica.applied().map_or(0, |id| id.index)
    }

    /// The first index that this node's log still holds.
    pub fn log_begins(&self) -> u64 {
        self.inner.raft.metrics().borrow().purged.map_or(0, |purged| purged.index + 1)
    }

    /// How another node stood when it was last heard, and how many milliseconds ago that was.
    pub fn standing(&self, node: u64) -> Option<(Standing, u64)> {
        let standing = self.inner.standings.of(node)?;
        let silent_ms = self.inner.clock.raw_ms().saturating_sub(standing.heard_ms);
        Some((standing, silent_ms))
    }

    /// Hashes of this node's state behind the last entries at which all nodes were asked for it, newest last.
    pub fn state_hashes(&self) -> Vec<StateHash> {
        self.inner.state_hashes.all()
    }

    /// Where this node listens to others.
    pub fn address(&self) -> Option<SocketAddr> {
        self.inner.address
    }

    /// Makes a token with which one node can join within `valid`.
    pub async fn token(&self, valid: Duration, actor: Actor) -> Result<Token, TokenError> {
        self.barrier().await?;
        let authority = self.read(|state| state.authority().cloned()).ok_or(ProposeError::NoQuorum)?;
        let authority = tls::certificate(&authority.certificate).map_err(|_| TokenError::Authority)?;
        let token = Token::new(&authority).map_err(|_| TokenError::Random)?;
        let valid_ms = u64::try_from(valid.as_millis()).unwrap_or(u64::MAX);
        let put = Command::TokenPut { token: token.hash(), valid_ms, actor };
        if let Outcome::Refused(refusal) = self.propose(put).await?.outcome {
            return Err(refusal.into());
        }
        Ok(token)
    }

    /// Resolves with one sentence when the store can no longer go on (an fsync error, a damaged log).
    pub async fn failed(&self) -> String {
        self.inner.failure.wait().await
    }

    /// Writes a last checkpoint and stops; without it the node runs on when the last handle is gone. The directory can be opened again afterwards.
    pub async fn shutdown(&self) {
        self.inner.stopping.store(true, Ordering::Release);
        let closing = self.inner.closing.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Closing { tasks, keeper, threads, home }) = closing else { return };
        for task in tasks {
            task.abort();
            drop(task.await);
        }
        self.inner.peers.close();
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

impl Inner {
    fn runs(&self) -> bool {
        self.caught_up.load(Ordering::Acquire) && !self.failure.is_set() && !self.stopping.load(Ordering::Acquire)
    }

    pub(crate) async fn barrier(&self) -> Result<(), ProposeError> {
        self.read_after(&Request::ReadIndex).await
    }

    /// Waits until this node has applied what the leader's answer to `question` says.
    pub(crate) async fn read_after(&self, question: &Request) -> Result<(), ProposeError> {
        let leader = self.leadership.wait_for_leader(LEADER_PATIENCE).await.ok_or(ProposeError::NoQuorum)?;
        let index = if leader == self.node {
            if matches!(question, Request::Lease) && !self.watch.note(self.node) {
                return Err(ProposeError::NoQuorum);
            }
            let asked = tokio::time::timeout(BARRIER_TIMEOUT, self.raft.get_read_log_id()).await;
            let (read, _) = asked.map_err(|_| ProposeError::Timeout)?.map_err(|_| ProposeError::NoQuorum)?;
            read
        } else {
            match self.peers.call(leader, Channel::Control, question, BARRIER_TIMEOUT).await {
                Ok(Response::ReadIndex(read)) => read,
                Ok(_) | Err(_) => return Err(ProposeError::NoQuorum),
            }
        };
        let reached = self.leadership.wait_for_applied(index.map_or(0, |id| id.index), BARRIER_TIMEOUT).await;
        if reached { Ok(()) } else { Err(ProposeError::Timeout) }
    }
}
