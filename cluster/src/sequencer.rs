//! The leader's part: puts the parcels of all nodes into entries of the log.
//!
//! Whatever waits when an entry can be written goes into it, up to [`ENTRY_BYTES_MAX`]; one entry is being synced and
//! replicated while the next is filled, so that one fdatasync serves everybody who came in the meantime.
//!
//! Invariants:
//! * At most [`ENTRIES_IN_FLIGHT_MAX`] entries are with openraft, whose own queues know no bound.
//! * At most [`WAITING_MAX`] parcels wait; whoever brings more waits to bring it.
//! * Nobody waits longer than the timeout: openraft may never answer when a snapshot supersedes an entry.

use std::sync::Arc;
use std::time::Duration;

use openraft::error::ClientWriteError;
use openraft::raft::ClientWriteResult;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::clock::Clock;
use crate::command::{Command, Outcome};
use crate::name::Timestamp;
use crate::network::message::Decided;
use crate::raft::{Raft, TypeConfig};
use crate::state::State;
use crate::store::codec::{self, DecodeError};
use crate::store::entry::{Reply, Stamped};
use crate::store::machine::Replica;

const ENTRY_BYTES_MAX: usize = 64 * 1024;
const ENTRIES_IN_FLIGHT_MAX: usize = 2;
const WAITING_MAX: usize = 64;

/// Commands that travel together and are decided in one entry.
#[derive(Debug)]
pub(crate) struct Parcel {
    commands: Vec<Command>,
    /// Of all of them, one behind the other.
    encoded: Vec<u8>,
}

#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub(crate) enum ParcelError {
    /// Surely not decided.
    #[error("this node does not lead")]
    NotLeader,
    /// May be decided later.
    #[error("not decided in time")]
    Unknown,
    #[error("{0}")]
    Stopped(String),
}

type Answer = Result<Decided, ParcelError>;

struct Waiting {
    parcel: Parcel,
    answer: oneshot::Sender<Answer>,
}

/// Takes parcels in; cheap to clone.
#[derive(Clone)]
pub(crate) struct Sequencer {
    waiting: mpsc::Sender<Waiting>,
}

impl Parcel {
    /// `encoded` must be the encoding of `command`.
    pub(crate) fn of(command: Command, encoded: Vec<u8>) -> Self {
        Self { commands: vec![command], encoded }
    }

    /// The same.
    pub(crate) fn push(&mut self, command: Command, encoded: &[u8]) {
        self.commands.push(command);
        self.encoded.extend_from_slice(encoded);
    }

    pub(crate) fn has_room_for(&self, command: &Command, bytes: usize) -> bool {
        !self.is_alone() && !matches!(command, Command::Batch(_)) && self.encoded.len() + bytes <= ENTRY_BYTES_MAX
    }

    /// What [`Parcel::sealed`] gave of so many commands.
    pub(crate) fn decode(commands: u32, sealed: Vec<u8>) -> Result<Self, DecodeError> {
        let command = codec::decode("command", &sealed)?;
        if commands == 1 {
            return Ok(Self::of(command, sealed));
        }
        let all = if let Command::Batch(all) = command { all } else { Vec::new() };
        if all.is_empty() || all.len() != commands as usize {
            return Err(DecodeError::custom("command", "it is no batch of so many"));
        }
        Ok(Self { commands: all, encoded: codec::batch_body(sealed) })
    }

    /// The encoding of the one command, or of the batch of all.
    pub(crate) fn sealed(&self) -> Vec<u8> {
        if self.commands.len() == 1 {
            return self.encoded.clone();
        }
        codec::encode_batch(self.commands.len(), &self.encoded)
    }

    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.commands.len()).unwrap_or(u32::MAX)
    }

    /// A batch of a caller is an entry of its own: batches do not nest.
    fn is_alone(&self) -> bool {
        matches!(self.commands.as_slice(), [Command::Batch(_)])
    }

    /// Whether deciding it twice is the same as deciding it once.
    pub(crate) fn is_repeatable(&self) -> bool {
        self.commands.iter().all(|command| {
            matches!(command, Command::Admit(_) | Command::Tick | Command::Settle { .. } | Command::Join { .. })
        })
    }

    fn fits(&self, next: &Self) -> bool {
        !self.is_alone() && !next.is_alone() && self.encoded.len() + next.encoded.len() <= ENTRY_BYTES_MAX
    }

    fn append(&mut self, next: Self) {
        self.commands.extend(next.commands);
        self.encoded.extend_from_slice(&next.encoded);
    }

    fn stamp(mut self, at: Timestamp) -> Stamped {
        if self.commands.len() == 1
            && let Some(command) = self.commands.pop()
        {
            return Stamped::new(at, command, self.encoded);
        }
        let encoded = codec::encode_batch(self.commands.len(), &self.encoded);
        Stamped::new(at, Command::Batch(self.commands), encoded)
    }
}

impl Sequencer {
    /// Starts the task that fills entries; it ends when the last handle is gone.
    pub(crate) fn start(raft: Raft, replica: Replica, clock: Clock, timeout: Duration) -> Self {
        let (sender, waiting) = mpsc::channel(WAITING_MAX);
        tokio::spawn(fill_entries(raft, replica, clock, timeout, waiting));
        Self { waiting: sender }
    }

    pub(crate) async fn decide(&self, parcel: Parcel) -> Answer {
        let stopped = || ParcelError::Stopped("it was shut down".to_owned());
        let (answer, answered) = oneshot::channel();
        self.waiting.send(Waiting { parcel, answer }).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }
}

/// Fills one entry after the other for as long as there is anybody to bring parcels.
async fn fill_entries(
    raft: Raft,
    replica: Replica,
    clock: Clock,
    timeout: Duration,
    mut waiting: mpsc::Receiver<Waiting>,
) {
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
        let (parcel, shares, next) = fill(first, &mut waiting);
        left_over = next;
        if !clock.is_set() {
            // It has just begun and has company: its clock may be hours off.
            fail_all(shares, &ParcelError::NotLeader);
            continue;
        }
        clock.catch_up(replica.read(State::now));
        propose(&raft, parcel.stamp(clock.now()), shares, timeout, permit).await;
    }
}

/// One bringer's part of an entry.
struct Share {
    count: u32,
    answer: oneshot::Sender<Answer>,
}

/// Takes what waits, up to the size of an entry; returns the one that did not fit any more.
fn fill(first: Waiting, waiting: &mut mpsc::Receiver<Waiting>) -> (Parcel, Vec<Share>, Option<Waiting>) {
    let mut shares = vec![Share { count: first.parcel.len(), answer: first.answer }];
    let mut parcel = first.parcel;
    while let Ok(next) = waiting.try_recv() {
        if !parcel.fits(&next.parcel) {
            return (parcel, shares, Some(next));
        }
        shares.push(Share { count: next.parcel.len(), answer: next.answer });
        parcel.append(next.parcel);
    }
    (parcel, shares, None)
}

async fn propose(raft: &Raft, stamped: Stamped, shares: Vec<Share>, timeout: Duration, permit: OwnedSemaphorePermit) {
    match raft.client_write_ff(stamped).await {
        Err(fatal) => fail_all(shares, &ParcelError::Stopped(fatal.to_string())),
        Ok(answer) => {
            tokio::spawn(async move {
                match tokio::time::timeout(timeout, answer).await {
                    Err(_) => fail_all(shares, &ParcelError::Unknown),
                    Ok(Err(_)) => fail_all(shares, &ParcelError::Stopped("it was shut down".to_owned())),
                    Ok(Ok(result)) => distribute(result, shares),
                }
                drop(permit);
            });
        }
    }
}

fn distribute(result: ClientWriteResult<TypeConfig>, shares: Vec<Share>) {
    let response = match result {
        Ok(response) => response,
        Err(ClientWriteError::ForwardToLeader(_) | ClientWriteError::ChangeMembershipError(_)) => {
            return fail_all(shares, &ParcelError::NotLeader);
        }
    };
    let (index, Reply { at, outcome }) = (response.log_id.index, response.data);
    let commands: u32 = shares.iter().map(|share| share.count).sum();
    // A single command, or the batch of a caller, was not wrapped.
    let outcomes = match (outcome, commands) {
        (Outcome::Batch(outcomes), 2..) => outcomes,
        (outcome, _) => vec![outcome],
    };
    let mut outcomes = outcomes.into_iter();
    for Share { count, answer } in shares {
        let outcomes: Vec<Outcome> = outcomes.by_ref().take(count as usize).collect();
        give(answer, Ok(Decided { index, at, outcomes }));
    }
}

fn fail_all(shares: Vec<Share>, error: &ParcelError) {
    shares.into_iter().for_each(|share| give(share.answer, Err(error.clone())));
}

/// A bringer that no longer waits has timed out or was cancelled.
fn give(answer: oneshot::Sender<Answer>, result: Answer) {
    drop(answer.send(result));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn settle(epoch: u64) -> (Command, Vec<u8>) {
        let command = Command::Settle { node: 1, epoch };
        let encoded = codec::encode(&command);
        (command, encoded)
    }

    #[test]
    fn a_parcel_arrives_as_it_was_sent_and_a_wrong_number_is_refused() {
        let ((first, encoded), (second, more)) = (settle(1), settle(2));
        let mut parcel = Parcel::of(first, encoded);
        let one = Parcel::decode(1, parcel.sealed()).unwrap();
        assert_eq!((&one.commands, &one.encoded), (&parcel.commands, &parcel.encoded));
        parcel.push(second, &more);
        let two = Parcel::decode(2, parcel.sealed()).unwrap();
        assert_eq!((&two.commands, &two.encoded), (&parcel.commands, &parcel.encoded));
        assert!(Parcel::decode(3, parcel.sealed()).is_err() && Parcel::decode(2, more.clone()).is_err());
        assert!(Parcel::decode(0, more).is_err());
        let callers_batch = Parcel::decode(1, parcel.sealed()).unwrap();
        assert!(callers_batch.is_alone() && callers_batch.len() == 1);
    }
}
