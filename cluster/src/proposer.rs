//! Packs commands into log entries and hands each caller its own outcome.
//!
//! All commands that wait when an entry can be written go into it as one batch of at most [`BATCH_BYTES_MAX`]; one entry is
//! being synced while the next is filled and applied, so that one fdatasync serves everybody who came in the meantime.
//!
//! Invariants:
//! * At most [`ENTRIES_IN_FLIGHT_MAX`] entries are with openraft, whose own queues know no bound.
//! * The queue holds at most [`QUEUE_COMMANDS_MAX`] commands and [`QUEUE_BYTES_MAX`] bytes; more are refused at once.
//! * A batch that a caller proposes is an entry of its own: batches do not nest.
//! * Nobody waits longer than the timeout: openraft may never answer when a snapshot supersedes an entry.

use std::sync::Arc;
use std::time::Duration;

use openraft::error::ClientWriteError;
use openraft::raft::ClientWriteResult;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::clock::Clock;
use crate::command::{Command, Outcome};
use crate::handle::{Applied, ProposeError};
use crate::name::Timestamp;
use crate::raft::{Raft, TypeConfig};
use crate::store::entry::{Reply, Stamped};
use crate::store::{Failure, Room, codec};

pub(crate) const BATCH_BYTES_MAX: usize = 64 * 1024;
pub(crate) const ENTRIES_IN_FLIGHT_MAX: usize = 2;
pub(crate) const QUEUE_COMMANDS_MAX: usize = 16 * 1024;
pub(crate) const QUEUE_BYTES_MAX: u32 = 64 * 1024 * 1024;
/// One command alone; an import is proposed in parts.
pub(crate) const COMMAND_BYTES_MAX: usize = 16 * 1024 * 1024;

type Answer = Result<Applied<Outcome>, ProposeError>;

struct Waiting {
    command: Command,
    encoded: Vec<u8>,
    answer: oneshot::Sender<Answer>,
    _bytes: OwnedSemaphorePermit,
}

impl Waiting {
    fn is_batch(&self) -> bool {
        matches!(self.command, Command::Batch(_))
    }
}

/// Takes commands in; cheap to clone.
#[derive(Clone)]
pub(crate) struct Proposer {
    queue: mpsc::Sender<Waiting>,
    bytes: Arc<Semaphore>,
    timeout: Duration,
    failure: Failure,
    room: Room,
}

impl Proposer {
    /// Starts the task that packs; it ends when the last handle is gone.
    pub(crate) fn start(raft: Raft, clock: Clock, timeout: Duration, failure: Failure, room: Room) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE_COMMANDS_MAX);
        tokio::spawn(pack(raft, clock, timeout, waiting));
        Self { queue, bytes: Arc::new(Semaphore::new(QUEUE_BYTES_MAX as usize)), timeout, failure, room }
    }

    pub(crate) async fn propose(&self, command: Command) -> Answer {
        if let Some(sentence) = self.failure.get() {
            return Err(ProposeError::Stopped(sentence));
        }
        if !self.room.is_there() {
            return Err(ProposeError::DiskFull);
        }
        let encoded = codec::encode(&command);
        let size = u32::try_from(encoded.len()).ok().filter(|_| encoded.len() <= COMMAND_BYTES_MAX);
        let size = size.ok_or(ProposeError::TooLarge { bytes: encoded.len(), bytes_max: COMMAND_BYTES_MAX })?;
        let bytes = Arc::clone(&self.bytes).try_acquire_many_owned(size).map_err(|_| ProposeError::Busy)?;
        let (answer, outcome) = oneshot::channel();
        self.queue.try_send(Waiting { command, encoded, answer, _bytes: bytes }).map_err(|error| match error {
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

/// Fills one entry after the other for as long as there are proposers.
async fn pack(raft: Raft, clock: Clock, timeout: Duration, mut waiting: mpsc::Receiver<Waiting>) {
    let in_flight = Arc::new(Semaphore::new(ENTRIES_IN_FLIGHT_MAX));
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
        let (batch, next) = fill(first, &mut waiting);
        left_over = next;
        propose_entry(&raft, clock.now(), batch, timeout, permit).await;
    }
}

/// Takes what waits, up to the size of an entry; returns the one that did not fit any more.
fn fill(first: Waiting, waiting: &mut mpsc::Receiver<Waiting>) -> (Vec<Waiting>, Option<Waiting>) {
    let mut bytes = if first.is_batch() { BATCH_BYTES_MAX } else { first.encoded.len() };
    let mut batch = vec![first];
    while bytes < BATCH_BYTES_MAX {
        match waiting.try_recv() {
            Ok(next) if next.is_batch() || bytes + next.encoded.len() > BATCH_BYTES_MAX => return (batch, Some(next)),
            Ok(next) => {
                bytes += next.encoded.len();
                batch.push(next);
            }
            Err(_) => break,
        }
    }
    (batch, None)
}

async fn propose_entry(
    raft: &Raft,
    at: Timestamp,
    batch: Vec<Waiting>,
    timeout: Duration,
    permit: OwnedSemaphorePermit,
) {
    let (stamped, answers) = stamp(at, batch);
    match raft.client_write_ff(stamped).await {
        Err(fatal) => fail_all(answers, &ProposeError::Stopped(fatal.to_string())),
        Ok(answer) => {
            tokio::spawn(async move {
                match tokio::time::timeout(timeout, answer).await {
                    Err(_) => fail_all(answers, &ProposeError::Timeout),
                    Ok(Err(_)) => fail_all(answers, &ProposeError::Stopped("it was shut down".to_owned())),
                    Ok(Ok(result)) => distribute(result, answers),
                }
                drop(permit);
            });
        }
    }
}

fn stamp(at: Timestamp, batch: Vec<Waiting>) -> (Stamped, Vec<oneshot::Sender<Answer>>) {
    let mut encodings = Vec::with_capacity(batch.len());
    let mut commands = Vec::with_capacity(batch.len());
    let mut answers = Vec::with_capacity(batch.len());
    for Waiting { command, encoded, answer, .. } in batch {
        encodings.push(encoded);
        commands.push(command);
        answers.push(answer);
    }
    let stamped = match (commands.pop(), encodings.pop()) {
        (Some(command), Some(encoded)) if commands.is_empty() => Stamped::new(at, command, encoded),
        (command, encoded) => {
            commands.extend(command);
            encodings.extend(encoded);
            let encoded = codec::encode_batch(encodings.iter().map(Vec::as_slice));
            Stamped::new(at, Command::Batch(commands), encoded)
        }
    };
    (stamped, answers)
}

fn distribute(result: ClientWriteResult<TypeConfig>, answers: Vec<oneshot::Sender<Answer>>) {
    let response = match result {
        Ok(response) => response,
        Err(ClientWriteError::ForwardToLeader(_) | ClientWriteError::ChangeMembershipError(_)) => {
            return fail_all(answers, &ProposeError::NoQuorum);
        }
    };
    let (index, Reply { at, outcome }) = (response.log_id.index, response.data);
    if let [_] = answers.as_slice() {
        return answers
            .into_iter()
            .zip([outcome])
            .for_each(|(answer, outcome)| give(answer, Applied { index, at, outcome }));
    }
    let Outcome::Batch(outcomes) = outcome else {
        return fail_all(answers, &ProposeError::Stopped("a batch was answered with another outcome".to_owned()));
    };
    for (answer, outcome) in answers.into_iter().zip(outcomes) {
        give(answer, Applied { index, at, outcome });
    }
}

/// A caller that no longer waits has timed out or was cancelled.
fn give(answer: oneshot::Sender<Answer>, applied: Applied<Outcome>) {
    drop(answer.send(Ok(applied)));
}

fn fail_all(answers: Vec<oneshot::Sender<Answer>>, error: &ProposeError) {
    for answer in answers {
        drop(answer.send(Err(error.clone())));
    }
}
