//! Each node asks every other four times a second how it stands: what time it has, how far it is, and what its state was.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::clock::{Clock, median};
use crate::comparison::deviation;
use crate::handle::Inner;
use crate::network::message::{Channel, Request, Response};
use crate::network::peers::Peers;
use crate::state::State;
use crate::store::identity::Home;
use crate::store::state_hash::StateHash;

const INTERVAL: Duration = Duration::from_millis(250);
const ANSWER_TIMEOUT: Duration = Duration::from_millis(400);
/// The machine's clock is told to be wrong when it is this far off the median.
const SKEW_MAX_MS: i64 = 5_000;

/// How another node stood when it was last heard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing {
    /// When it was heard, in milliseconds by this node's uncorrected clock.
    pub heard_ms: u64,
    /// Its machine's clock minus this one's.
    pub clock_offset_ms: i64,
    pub applied: u64,
    pub epoch: u64,
    pub version: String,
    /// Of its state, newest last.
    pub state_hashes: Vec<StateHash>,
}

/// What the others last said. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Standings {
    table: Arc<Mutex<BTreeMap<u64, Standing>>>,
}

impl Standings {
    pub(crate) fn of(&self, node: u64) -> Option<Standing> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).get(&node).cloned()
    }

    fn note(&self, node: u64, standing: Standing) {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).insert(node, standing);
    }
}

#[cfg(test)]
impl Standings {
    pub(crate) fn note_heard(&self, node: u64, heard_ms: u64) {
        let (version, state_hashes) = (String::new(), Vec::new());
        self.note(node, Standing { heard_ms, clock_offset_ms: 0, applied: 0, epoch: 0, version, state_hashes });
    }
}

/// Until its task is ended.
pub(crate) async fn run(inner: Arc<Inner>) {
    let Inner { node, peers, replica, clock, standings, .. } = &*inner;
    let mut is_skewed = false;
    loop {
        let others: Vec<u64> =
            replica.read(State::nodes).iter().map(|other| other.id).filter(|id| id != node).collect();
        let asked = others.iter().map(|other| tokio::spawn(ask(*other, peers.clone(), clock.clone())));
        let mut offsets = vec![0];
        for (other, asked) in others.iter().zip(asked.collect::<Vec<_>>()) {
            if let Ok(Some(standing)) = asked.await {
                offsets.push(standing.clock_offset_ms);
                standings.note(*other, standing);
            }
        }
        // A minority may be the one whose clocks are wrong.
        if offsets.len() > others.len().div_ceil(2)
            && let Some(offset) = median(offsets)
        {
            clock.follow(offset, replica.read(State::now));
            let was_skewed = std::mem::replace(&mut is_skewed, offset.abs() > SKEW_MAX_MS);
            if is_skewed && !was_skewed {
                tracing::error!(offset_ms = offset, "this machine's clock is wrong: the other nodes' is followed");
            }
        }
        inner.compare(&others);
        tokio::time::sleep(INTERVAL).await;
    }
}

impl Inner {
    /// Stops the store for good where its state is not that of the others. Nodes of other versions may keep it otherwise.
    fn compare(&self, others: &[u64]) {
        let same_version = |standing: &Standing| standing.version == env!("CARGO_PKG_VERSION");
        let told = others.iter().filter_map(|node| Some((*node, self.standings.of(*node).filter(same_version)?)));
        let hashes = told.map(|(node, standing)| (node, standing.state_hashes)).collect();
        let Some(index) = deviation(&self.state_hashes.all(), &hashes, others.len() + 1, self.leadership.leader())
        else {
            return;
        };
        self.stop_for_good(&format!("this node's state differs from the other nodes' behind log entry {index}"));
    }

    /// Stops the store; it does not open again.
    pub(crate) fn stop_for_good(&self, why: &str) {
        if self.failure.is_set() {
            return;
        }
        if let Err(error) = Home::mark_unfit(&self.directory, why) {
            tracing::error!(%error, "cannot note that this node must not start again");
        }
        self.failure.set(format!("{why}: remove it and join anew"));
    }
}

async fn ask(node: u64, peers: Peers, clock: Clock) -> Option<Standing> {
    let asked_ms = clock.raw_ms();
    let answer = peers.call(node, Channel::Control, &Request::Ping, ANSWER_TIMEOUT).await;
    let answered_ms = clock.raw_ms();
    let Ok(Response::Pong(pong)) = answer else { return None };
    let midway_ms = asked_ms + (answered_ms - asked_ms) / 2;
    let clock_offset_ms = i64::try_from(i128::from(pong.wall_ms) - i128::from(midway_ms)).ok()?;
    Some(Standing {
        heard_ms: answered_ms,
        clock_offset_ms,
        applied: pong.applied,
        epoch: pong.epoch,
        version: pong.version,
        state_hashes: pong.state_hashes,
    })
}
