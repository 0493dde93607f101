//! Each node asks every other four times a second how it stands: what time it has, how far it is, and what its state was.
//! Who answers is reached.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::clock::{Clock, median};
use crate::comparison::deviation;
use crate::handle::Inner;
use crate::network::message::{Channel, Request, Response};
use crate::network::peers::Peers;
use crate::state::State;
use crate::store::identity::Home;
use crate::store::state_hash::StateHash;

const INTERVAL: Duration = Duration::from_millis(250);
/// Until the first clocks were compared, without which nothing is stamped.
const INTERVAL_AT_FIRST: Duration = Duration::from_millis(20);
/// A clock that was read longer ago does not count.
const OFFSET_AGE_MAX_MS: u64 = 1_000;
const ANSWER_TIMEOUT: Duration = Duration::from_millis(400);
/// The machine's clock is told to be wrong when it is this far off the median.
const SKEW_MAX_MS: i64 = 5_000;

/// How another node stood when it was last heard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing {
    /// When it was asked and answered, in milliseconds by this node's uncorrected clock.
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

    pub(crate) fn note(&self, node: u64, standing: Standing) {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).insert(node, standing);
    }
}

/// Until its task is ended.
pub(crate) async fn run(inner: Arc<Inner>) {
    let (mut is_skewed, mut asking) = (false, BTreeMap::new());
    loop {
        let others: Vec<u64> = inner.replica.read(State::nodes).iter().map(|other| other.id).collect();
        let others: Vec<u64> = others.into_iter().filter(|id| *id != inner.node).collect();
        inner.ask_those_that_answered(&others, &mut asking);
        tokio::time::sleep(if inner.clock.is_set() { INTERVAL } else { INTERVAL_AT_FIRST }).await;
        inner.follow_clocks(&others, &mut is_skewed);
        inner.compare(&others);
    }
}

impl Inner {
    /// One that is silent holds up no other: who can be reached is known by how lately each answered.
    fn ask_those_that_answered(&self, others: &[u64], asking: &mut BTreeMap<u64, JoinHandle<()>>) {
        asking.retain(|_, asked| !asked.is_finished());
        for node in others {
            asking.entry(*node).or_insert_with(|| {
                tokio::spawn(ask(*node, self.peers.clone(), self.clock.clone(), self.standings.clone()))
            });
        }
    }

    fn follow_clocks(&self, others: &[u64], is_skewed: &mut bool) {
        let now_ms = self.clock.raw_ms();
        let is_fresh = |standing: &Standing| now_ms.saturating_sub(standing.heard_ms) <= OFFSET_AGE_MAX_MS;
        let told = others.iter().filter_map(|node| self.standings.of(*node)).filter(is_fresh);
        let offsets: Vec<i64> = told.map(|standing| standing.clock_offset_ms).chain([0]).collect();
        // A minority may be the one whose clocks are wrong.
        if offsets.len() > others.len().div_ceil(2)
            && let Some(offset) = median(offsets)
        {
            self.clock.follow(offset, self.replica.read(State::now));
            let was_skewed = std::mem::replace(is_skewed, offset.abs() > SKEW_MAX_MS);
            if *is_skewed && !was_skewed {
                tracing::error!(offset_ms = offset, "this machine's clock is wrong: the other nodes' is followed");
            }
        }
    }

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

async fn ask(node: u64, peers: Peers, clock: Clock, standings: Standings) {
    if let Some(standing) = standing_of(node, &peers, &clock).await {
        standings.note(node, standing);
    }
}

async fn standing_of(node: u64, peers: &Peers, clock: &Clock) -> Option<Standing> {
    let asked_ms = clock.raw_ms();
    let answer = peers.call(node, Channel::Control, &Request::Ping, ANSWER_TIMEOUT).await;
    let answered_ms = clock.raw_ms();
    let Ok(Response::Pong(pong)) = answer else { return None };
    let midway_ms = asked_ms + (answered_ms - asked_ms) / 2;
    let clock_offset_ms = i64::try_from(i128::from(pong.wall_ms) - i128::from(midway_ms)).ok()?;
    Some(Standing {
        heard_ms: asked_ms,
        clock_offset_ms,
        applied: pong.applied,
        epoch: pong.epoch,
        version: pong.version,
        state_hashes: pong.state_hashes,
    })
}
