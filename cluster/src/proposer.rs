//! Takes commands of this node and has them decided by the leader, wherever that is.
//!
//! All commands that wait when a parcel can be sent go into it; at most [`PARCELS_IN_FLIGHT_MAX`] are under way, so that a
//! node under load sends few and large ones.
//!
//! Invariants:
//! * The queue holds at most [`QUEUE_COMMANDS_MAX`] commands and [`QUEUE_BYTES_MAX`] bytes; more are refused at once.
//! * Nobody waits longer than the timeout.
//! * A parcel of which it is not known whether it was decided is sent again only if that makes no difference: admissions
//!   carry an id and count once.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::command::{Command, Outcome};
use crate::handle::{Applied, ProposeError};
use crate::leadership::Leadership;
use crate::network::message::{Channel, Decided, Request, Response};
use crate::network::peers::{CallError, Peers};
use crate::sequencer::{Parcel, ParcelError, Sequencer};
use crate::store::codec::{self, Blob};
use crate::store::{Failure, Room};

const PARCELS_IN_FLIGHT_MAX: usize = 2;
pub(crate) const QUEUE_COMMANDS_MAX: usize = 16 * 1024;
pub(crate) const QUEUE_BYTES_MAX: u32 = 64 * 1024 * 1024;
/// One command alone; an import is proposed in parts.
pub(crate) const COMMAND_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How long a parcel waits for anybody to lead: an election and what comes after it.
pub(crate) const LEADER_PATIENCE: Duration = Duration::from_millis(2_000);
/// Before the same node is asked again that did not lead or could not be reached.
const SAME_LEADER_PAUSE: Duration = Duration::from_millis(20);

const FORWARD_TIMEOUT: Duration = Duration::from_secs(10);
const DEPOSED_GRACE: Duration = Duration::from_millis(100);

type Answer = Result<Applied<Outcome>, ProposeError>;

struct Waiting {
    command: Command,
    encoded: Vec<u8>,
    answer: oneshot::Sender<Answer>,
    bytes: OwnedSemaphorePermit,
}

/// Who waits for an outcome, with its place in the queue.
type Seat = (oneshot::Sender<Answer>, OwnedSemaphorePermit);

/// Takes commands in; cheap to clone.
#[derive(Clone)]
pub(crate) struct Proposer {
    queue: mpsc::Sender<Waiting>,
    bytes: Arc<Semaphore>,
    timeout: Duration,
    failure: Failure,
    room: Room,
}

/// The way to whoever decides. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Route {
    pub(crate) node: u64,
    pub(crate) leadership: Leadership,
    pub(crate) sequencer: Sequencer,
    pub(crate) peers: Peers,
}

impl Proposer {
    /// Starts the task that packs; it ends when the last handle is gone.
    pub(crate) fn start(route: Route, timeout: Duration, failure: Failure, room: Room) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE_COMMANDS_MAX);
        tokio::spawn(pack(route, timeout, waiting));
        Self { queue, bytes: Arc::new(Semaphore::new(QUEUE_BYTES_MAX as usize)), timeout, failure, room }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.room.is_there()
    }

    pub(crate) async fn propose(&self, command: Command) -> Answer {
        if let Some(sentence) = self.failure.get() {
            return Err(ProposeError::Stopped(sentence));
        }
        if !self.has_room() {
            return Err(ProposeError::DiskFull);
        }
        let encoded = codec::encode(&command);
        let size = u32::try_from(encoded.len()).ok().filter(|_| encoded.len() <= COMMAND_BYTES_MAX);
        let size = size.ok_or(ProposeError::TooLarge { bytes: encoded.len(), bytes_max: COMMAND_BYTES_MAX })?;
        let bytes = Arc::clone(&self.bytes).try_acquire_many_owned(size).map_err(|_| ProposeError::Busy)?;
        let (answer, outcome) = oneshot::channel();
        self.queue.try_send(Waiting { command, encoded, answer, bytes }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ProposeError::Busy,
            mpsc::error::TrySendError::Closed(_) => self.stopped(),
        })?;
        match tokio::time::timeout(self.timeout, outcome).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(self.stopped()),
            Err(_) => Err(ProposeError::Timeout),
        }
    }

    fn stopped(&self) -> ProposeError {
        ProposeError::Stopped(self.failure.get().unwrap_or_else(|| "it was shut down".to_owned()))
    }
}

/// Fills one parcel after the other for as long as there are proposers.
async fn pack(route: Route, timeout: Duration, mut waiting: mpsc::Receiver<Waiting>) {
    let in_flight = Arc::new(Semaphore::new(PARCELS_IN_FLIGHT_MAX));
    let mut left_over = None;
    loop {
        let first = match left_over.take() {
            Some(first) => first,
            None => match waiting.recv().await {
                Some(first) => first,
                None => return,
            },
        };
        let Ok(permit) = Arc::clone(&in_flight).acquire_owned().await else { return };
        let (parcel, answers, next) = fill(first, &mut waiting);
        left_over = next;
        let route = route.clone();
        tokio::spawn(async move {
            let decided = tokio::time::timeout(timeout, route.decide(parcel)).await;
            distribute(decided.unwrap_or(Err(ProposeError::Timeout)), answers);
            drop(permit);
        });
    }
}

/// Takes what waits, up to the size of an entry; returns the one that did not fit any more.
fn fill(first: Waiting, waiting: &mut mpsc::Receiver<Waiting>) -> (Parcel, Vec<Seat>, Option<Waiting>) {
    let mut parcel = Parcel::of(first.command, first.encoded);
    let mut answers = vec![(first.answer, first.bytes)];
    while let Ok(next) = waiting.try_recv() {
        if !parcel.has_room_for(&next.command, next.encoded.len()) {
            return (parcel, answers, Some(next));
        }
        parcel.push(next.command, &next.encoded);
        answers.push((next.answer, next.bytes));
    }
    (parcel, answers, None)
}

impl Route {
    /// Asks whoever leads, until somebody has decided or nobody may be asked again.
    async fn decide(&self, parcel: Parcel) -> Result<Decided, ProposeError> {
        let (commands, sealed, repeatable) = (parcel.len(), Blob(parcel.sealed()), parcel.is_repeatable());
        let mut here = Some(parcel);
        loop {
            let leader = self.leadership.wait_for_leader(LEADER_PATIENCE).await.ok_or(ProposeError::NoQuorum)?;
            let tried = if leader == self.node {
                let parcel = here.take().map_or_else(|| Parcel::decode(commands, sealed.0.clone()), Ok);
                let parcel = parcel.map_err(|error| ProposeError::Stopped(error.to_string()))?;
                self.sequencer.decide(parcel).await
            } else {
                self.forward(leader, commands, &sealed).await
            };
            match tried {
                Ok(decided) => return Ok(decided),
                Err(ParcelError::Stopped(sentence)) => return Err(ProposeError::Stopped(sentence)),
                Err(ParcelError::Unknown) if !repeatable => return Err(ProposeError::Timeout),
                Err(ParcelError::Unknown | ParcelError::NotLeader) => {
                    self.leadership.wait_for_other(leader, SAME_LEADER_PAUSE).await;
                }
            }
        }
    }

    /// Has another node decide. A leader that lost its office while it was asked is not waited for.
    async fn forward(&self, leader: u64, commands: u32, sealed: &Blob) -> Result<Decided, ParcelError> {
        let request = Request::Forward { commands, encoded: sealed.clone() };
        let asked = self.peers.call(leader, Channel::Forward, &request, FORWARD_TIMEOUT);
        let answer = tokio::select! {
            answer = asked => answer,
            () = self.deposed(leader) => Err(CallError::Broken),
        };
        match answer {
            Ok(Response::Forwarded(decided)) if decided.outcomes.len() == commands as usize => Ok(decided),
            Ok(Response::NotLeader) | Err(CallError::Unreachable(_) | CallError::Unwelcome(_)) => {
                Err(ParcelError::NotLeader)
            }
            Ok(_) | Err(CallError::TimedOut | CallError::Broken | CallError::Unreadable(_)) => {
                Err(ParcelError::Unknown)
            }
        }
    }

    /// Resolves a moment after somebody else leads: what the old leader had decided is on its way by then.
    async fn deposed(&self, leader: u64) {
        self.leadership.wait_for_other(leader, FORWARD_TIMEOUT).await;
        tokio::time::sleep(DEPOSED_GRACE).await;
    }
}

fn distribute(decided: Result<Decided, ProposeError>, answers: Vec<Seat>) {
    match decided {
        Ok(Decided { index, at, outcomes }) => {
            for ((answer, _), outcome) in answers.into_iter().zip(outcomes) {
                give(answer, Ok(Applied { index, at, outcome }));
            }
        }
        Err(error) => answers.into_iter().for_each(|(answer, _)| give(answer, Err(error.clone()))),
    }
}

/// A caller that no longer waits has timed out or was cancelled.
fn give(answer: oneshot::Sender<Answer>, result: Answer) {
    drop(answer.send(result));
}
