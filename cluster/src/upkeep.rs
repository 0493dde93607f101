//! What a node does by itself: it asks for snapshots and notices when raft has stopped; and where it leads, it lets time
//! pass and has the membership follow the table of nodes.

use std::time::Duration;

use openraft::{BasicNode, RaftMetrics};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::clock::Clock;
use crate::command::Command;
use crate::leadership::Leadership;
use crate::lease::{self, Watch};
use crate::membership;
use crate::proposer::Proposer;
use crate::pulse::{Standing, Standings};
use crate::raft::Raft;
use crate::state::State;
use crate::store::codec;
use crate::store::entry::Stamped;
use crate::store::keeper::Keeper;
use crate::store::log::Log;
use crate::store::machine::Replica;
use crate::store::snapshot::Snapshots;
use crate::store::{Failure, Limits, Room};

const INTERVAL: Duration = Duration::from_millis(500);
/// A node that was not heard for longer is not waited for.
const HEARD_MAX_MS: u64 = 3_000;

pub(crate) struct Upkeep {
    pub(crate) raft: Raft,
    pub(crate) replica: Replica,
    pub(crate) clock: Clock,
    pub(crate) leadership: Leadership,
    pub(crate) proposer: Proposer,
    pub(crate) watch: Watch,
    pub(crate) log: Log,
    pub(crate) keeper: Keeper,
    pub(crate) snapshots: Snapshots,
    pub(crate) standings: Standings,
    pub(crate) failure: Failure,
    pub(crate) room: Room,
    pub(crate) limits: Limits,
    /// The log's end when the last snapshot was asked for.
    pub(crate) snapshot_at: u64,
    /// Whether there was room for the last one that was due.
    pub(crate) snapshot_has_room: bool,
    /// When all nodes were last asked for the hash of their state, and behind which entry.
    pub(crate) hashed: (u64, u64),
}

/// Resolves with the reason when raft's task has ended.
async fn end_of_raft(metrics: &mut watch::Receiver<RaftMetrics<u64, BasicNode>>) -> String {
    match metrics.wait_for(|metrics| metrics.running_state.is_err()).await {
        Ok(metrics) => metrics.running_state.as_ref().map_or_else(ToString::to_string, |()| String::new()),
        Err(_) => "its task is gone".to_owned(),
    }
}

impl Upkeep {
    /// Until the store stops.
    pub(crate) async fn run(mut self) {
        let mut metrics = self.raft.metrics();
        let stopped = self.failure.clone();
        let mut interval = tokio::time::interval(INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = stopped.wait() => return,
                why = end_of_raft(&mut metrics) => return stopped.set(format!("raft has stopped: {why}")),
                _ = interval.tick() => self.work().await,
            }
        }
    }

    /// A leader whose disk is nearly full goes on leading. One that nobody follows would pile up entries that nobody decides.
    async fn work(&mut self) {
        let has_room = self.room.look();
        if let Some(term) = self.leadership.term_led().filter(|_| self.leadership.has_quorum()) {
            self.tick().await;
            self.declare_down(term).await;
            membership::follow(&self.raft, &self.replica.read(State::nodes)).await;
            if has_room {
                self.hash_state().await;
            }
        }
        if has_room && self.snapshot_due() {
            self.snapshot_at = self.end();
            if let Err(fatal) = self.raft.trigger().snapshot().await {
                tracing::warn!("no snapshot: {fatal}");
            }
        }
    }

    /// Past the proposer, which would carry it to a later leader: an entry of this term that is decided lies before
    /// whatever a later leader grants its leases behind.
    async fn declare_down(&self, term: u64) {
        for (node, owner_epoch) in self.watch.condemn(term, &self.replica.read(lease::owners)) {
            if self.leadership.term_led() != Some(term) || !self.clock.is_set() {
                return;
            }
            tracing::warn!(node, owner_epoch, "the node is declared down: it missed its lease");
            self.write(Command::NodeDown { node, owner_epoch }).await;
        }
    }

    /// An entry of this leader's own, also where the disk has no room for anybody else's.
    async fn write(&self, command: Command) {
        let encoded = codec::encode(&command);
        self.clock.catch_up(self.replica.read(State::now));
        match self.raft.client_write_ff(Stamped::new(self.clock.now(), command, encoded)).await {
            Ok(answer) => drop(timeout(INTERVAL, answer).await),
            Err(error) => tracing::warn!(%error, "the leader cannot write an entry of its own yet"),
        }
    }

    fn end(&self) -> u64 {
        self.log.extent().last.map_or(0, |id| id.index)
    }

    /// Locks, blocks and old counters expire by the log's time, which stands still without entries.
    async fn tick(&self) {
        let now = self.clock.now();
        let (seen, due) = self.replica.read(|state| (state.now(), state.next_due()));
        let is_early = due.is_none_or(|due| due > now)
            && u128::from(now.millis_since(seen)) < self.limits.idle_tick_interval.as_millis();
        if !is_early && self.clock.is_set() {
            self.write(Command::Tick).await;
        }
    }

    /// Has all nodes take the hash of their state, where something has happened since the last.
    async fn hash_state(&mut self) {
        let (at_ms, index) = self.hashed;
        let now_ms = self.clock.raw_ms();
        let is_early = u128::from(now_ms.saturating_sub(at_ms)) < self.limits.state_hash_interval.as_millis();
        let nothing_new = self.replica.applied().is_none_or(|applied| applied.index <= index);
        let is_idle = nothing_new && self.all_have_hashed(index);
        if is_early || is_idle || self.replica.read(|state| state.nodes().len()) < 2 {
            return;
        }
        match self.proposer.propose(Command::StateHash).await {
            Ok(applied) => self.hashed = (now_ms, applied.index),
            Err(error) => tracing::debug!("no state hash: {error}"),
        }
    }

    /// This node and all that were heard of late.
    fn all_have_hashed(&self, index: u64) -> bool {
        let now_ms = self.clock.raw_ms();
        let is_there = |standing: &Standing| now_ms.saturating_sub(standing.heard_ms) < HEARD_MAX_MS;
        let nodes = self.replica.read(State::nodes);
        let others = nodes.iter().filter_map(|node| self.standings.of(node.id)).filter(is_there);
        let mut all = others.map(|standing| standing.state_hashes).chain([self.keeper.state_hashes().all()]);
        all.all(|hashes| hashes.iter().any(|hash| hash.index == index))
    }

    fn snapshot_due(&mut self) -> bool {
        let extent = self.log.extent();
        let large = extent.bytes >= self.limits.snapshot_log_bytes_min.max(self.keeper.snapshot_bytes());
        let long = extent.entries as u64 >= self.limits.snapshot_log_entries_max;
        // What stays in the log below a snapshot must not by itself make the next one due.
        let is_due = (large || long) && self.end() > self.snapshot_at + self.limits.log_entries_kept;
        if !is_due && !self.snapshots.is_doubted() {
            return false;
        }
        let bytes = self.keeper.snapshot_bytes().max(extent.bytes);
        let has_room = self.room.has(bytes);
        if !has_room && self.snapshot_has_room {
            tracing::warn!("a snapshot may need {bytes} bytes, which are not free: the log grows until they are");
        }
        self.snapshot_has_room = has_room;
        has_room
    }
}
