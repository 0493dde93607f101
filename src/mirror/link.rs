//! What each other node has to hear of the copies that it keeps for us.
//!
//! Marks go in batches, in order, one batch at a time. After any failure the node is in doubt: nothing is queued for it
//! until it has told what it keeps, and was told what that comes to.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::Mirrors;
use super::letter::{Answer, Mark, Question, What};
use super::placing::Parcel;
use crate::mail::MessageId;
use crate::spool::Whose;

const INTERVAL: Duration = Duration::from_millis(500);
/// In one batch.
const MARKS_MAX: usize = 4_096;
const MARKS_MAX_BYTES: usize = 4 << 20;
/// That wait for a node; above, it is in doubt.
const WAITING_MAX: usize = 500_000;
const FAREWELL_PAUSE: Duration = Duration::from_millis(10);
const MARKS_TIMEOUT: Duration = Duration::from_secs(5);
const INVENTORY_TIMEOUT: Duration = Duration::from_secs(10);
/// A late copy of what was placed elsewhere is found at the latest then.
const DOUBT_INTERVAL: Duration = Duration::from_secs(300);
/// Copies that are made again at once.
const PLACING_MAX: usize = 16;
/// In a row; then there is a pause, because nobody seems to take copies.
const FAILURES_MAX: usize = 16;
/// How long a node that owns mail may be silent before what it may keep is copied elsewhere.
const PATIENCE: Duration = Duration::from_secs(10);

/// The ways to all other nodes.
#[derive(Default)]
pub(super) struct Links {
    table: Mutex<BTreeMap<u64, Arc<Link>>>,
}

struct Link {
    outbox: Mutex<Outbox>,
    work: Notify,
}

struct Outbox {
    marks: VecDeque<Mark>,
    doubtful: bool,
    /// When it came into doubt; while a node is out, that is now.
    doubted_at: Instant,
    /// A batch is being told.
    busy: bool,
    comparing: bool,
    compared_at: Option<Instant>,
    /// What this node lost, and was there when it was last compared.
    given: BTreeSet<MessageId>,
}

impl Links {
    fn get(&self, node: u64) -> Arc<Link> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            let (marks, doubted_at) = (VecDeque::new(), Instant::now());
            let outbox = Outbox {
                marks,
                doubtful: true,
                doubted_at,
                busy: false,
                comparing: false,
                compared_at: None,
                given: BTreeSet::new(),
            };
            Arc::new(Link { outbox: Mutex::new(outbox), work: Notify::new() })
        };
        Arc::clone(table.entry(node).or_insert_with(new))
    }

    pub(super) fn tell(&self, node: u64, id: MessageId, what: What) {
        self.push(node, Mark { id: id.into(), what });
    }

    pub(super) fn push(&self, node: u64, mark: Mark) {
        let link = self.get(node);
        let mut outbox = link.outbox();
        if outbox.doubtful {
            return;
        }
        outbox.marks.push_back(mark);
        if outbox.marks.len() > WAITING_MAX {
            outbox.doubt();
        }
        link.work.notify_one();
    }

    /// Waits until these nodes know all, at most `limit`.
    pub(super) async fn are_told(&self, nodes: &[u64], limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let links: Vec<Arc<Link>> = nodes.iter().map(|node| self.get(*node)).collect();
        while links.iter().any(|link| link.outbox().is_waiting()) {
            if Instant::now() > until {
                return false;
            }
            tokio::time::sleep(FAREWELL_PAUSE).await;
        }
        true
    }

    /// Whether these nodes keep nothing any more that this one has lost.
    pub(super) fn are_made_up(&self, nodes: &[u64]) -> bool {
        let is_made_up = |outbox: &Outbox| outbox.compared_at.is_some() && outbox.given.is_empty();
        nodes.iter().all(|node| is_made_up(&self.get(*node).outbox()))
    }

    /// What the node keeps may not be what it should.
    pub(super) fn doubt(&self, node: u64) {
        self.get(node).outbox().doubt();
    }

    /// The node is out, and will be in doubt when it is back.
    fn lose(&self, node: u64) {
        let link = self.get(node);
        let mut outbox = link.outbox();
        outbox.doubt();
        outbox.doubted_at = Instant::now();
    }
}

impl Link {
    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It may keep copies that are not known here, and is likely to say so soon.
    fn may_say_more(&self) -> bool {
        let outbox = self.outbox();
        let is_open = outbox.doubtful || outbox.comparing || outbox.compared_at.is_none();
        is_open && outbox.doubted_at.elapsed() < PATIENCE
    }
}

impl Outbox {
    fn doubt(&mut self) {
        if !self.doubtful {
            self.doubted_at = Instant::now();
        }
        self.doubtful = true;
        self.marks.clear();
    }

    fn is_waiting(&self) -> bool {
        self.busy || self.comparing || self.doubtful || !self.marks.is_empty()
    }

    fn take_batch(&mut self) -> Vec<Mark> {
        let mut bytes = 0;
        let fits = |mark: &&Mark| {
            bytes += match &mark.what {
                What::Progress(state) => state.len(),
                What::Accepted | What::Done => 0,
            };
            bytes <= MARKS_MAX_BYTES
        };
        let count = self.marks.iter().take(MARKS_MAX).take_while(fits).count().max(1).min(self.marks.len());
        self.marks.drain(..count).collect()
    }
}

/// Keeps every other node informed and makes lost copies again, for as long as anybody uses the disks.
pub(super) async fn run(mirrors: Weak<Mirrors>) {
    let mut tasks = BTreeMap::new();
    while let Some(mirrors) = mirrors.upgrade() {
        let here = mirrors.cluster.node_id();
        let nodes = mirrors.cluster.read(|state| state.nodes());
        for node in nodes.iter().filter(|node| node.id != here && node.ownership.epoch > 0) {
            tasks.entry(node.id).or_insert_with(|| tokio::spawn(inform(Arc::downgrade(&mirrors), node.id)));
        }
        let out: Vec<u64> =
            mirrors.cluster.read(|state| tasks.keys().copied().filter(|id| state.is_out(*id)).collect());
        for node in out {
            mirrors.links.lose(node);
            mirrors.copies().lose(node);
        }
        let up = nodes.iter().filter(|node| node.id != here && node.ownership.up);
        let is_early = up.clone().any(|node| mirrors.links.get(node.id).may_say_more());
        if mirrors.are_needed() && up.count() > 0 && !is_early {
            mirrors.make_again().await;
        }
        mirrors.forget_damage(
            &tasks.keys().copied().filter(|id| nodes.iter().any(|node| node.id == *id)).collect::<Vec<_>>(),
        );
        mirrors.count_missing();
        drop(mirrors);
        tokio::time::sleep(INTERVAL).await;
    }
    tasks.into_values().for_each(|task| task.abort());
}

/// One node, for as long as it is a member.
async fn inform(mirrors: Weak<Mirrors>, node: u64) {
    while let Some(mirrors) = mirrors.upgrade() {
        let link = mirrors.links.get(node);
        if mirrors.cluster.read(|state| state.is_out(node)) {
            drop(mirrors);
            tokio::time::sleep(INTERVAL).await;
            continue;
        }
        let told = mirrors.tell_batch(node, &link).await;
        drop(mirrors);
        match told {
            Ok(true) => {}
            // Marks that come within a moment go together.
            Ok(false) => drop(tokio::time::timeout(INTERVAL, link.work.notified()).await),
            Err(why) => {
                tracing::debug!(node, why, "a mirror is in doubt");
                link.outbox().doubt();
                tokio::time::sleep(INTERVAL).await;
            }
        }
    }
}

impl Mirrors {
    /// One batch, or a comparison where the node is in doubt. False = nothing was to be told.
    async fn tell_batch(&self, node: u64, link: &Link) -> Result<bool, String> {
        let is_doubtful = {
            let mut outbox = link.outbox();
            let interval = if outbox.given.is_empty() { DOUBT_INTERVAL } else { INTERVAL };
            let old = outbox.compared_at.is_none_or(|at| at.elapsed() > interval);
            outbox.comparing = std::mem::take(&mut outbox.doubtful) || old;
            outbox.comparing
        };
        if is_doubtful {
            let compared = self.compare(node, link).await;
            link.outbox().comparing = false;
            return compared.map(|()| true);
        }
        let batch = {
            let mut outbox = link.outbox();
            let batch = outbox.take_batch();
            outbox.busy = !batch.is_empty();
            batch
        };
        if batch.is_empty() {
            return Ok(false);
        }
        let told = self.tell(node, batch).await;
        link.outbox().busy = false;
        told.map(|()| true)
    }

    async fn tell(&self, node: u64, batch: Vec<Mark>) -> Result<(), String> {
        let accepted: Vec<MessageId> =
            batch.iter().filter(|mark| mark.what == What::Accepted).map(|mark| mark.id.into()).collect();
        self.have_done_in(node, &Question::Marks(batch), MARKS_TIMEOUT).await?;
        for id in accepted {
            let waited = self.copies().confirmed(id, node);
            waited.into_iter().for_each(|then| then());
        }
        Ok(())
    }

    /// Marks that are queued meanwhile stay behind those that follow from the comparison.
    async fn compare(&self, node: u64, link: &Link) -> Result<(), String> {
        let asked = self.copies().clock();
        let listed = self.inventory(node).await?;
        let own = self.spool.list(Whose::Ours).await.map_err(|error| error.to_string())?;
        let (is_first, given) = {
            let outbox = link.outbox();
            (outbox.compared_at.is_none(), outbox.given.clone())
        };
        let lost = self.lost(&listed, is_first, &given);
        if !lost.is_empty() {
            tracing::warn!(node, messages = lost.len(), "what this node's disk may have lost is given to its mirror");
            self.give(node, &Vec::from_iter(lost.iter().copied())).await?;
        }
        let mut marks = self.copies().reconcile(node, &listed, asked, &lost);
        for message in own {
            if let Some(progress) = message.progress.filter(|_| listed.contains_key(&message.id)) {
                marks.push(Mark { id: message.id.into(), what: What::Progress(Vec::from(progress).into()) });
            }
        }
        tracing::debug!(node, kept = listed.len(), told = marks.len(), "compared with a mirror");
        let mut outbox = link.outbox();
        marks.into_iter().rev().for_each(|mark| outbox.marks.push_front(mark));
        outbox.compared_at = Some(Instant::now());
        outbox.given = lost;
        Ok(())
    }

    async fn inventory(&self, node: u64) -> Result<HashMap<MessageId, bool>, String> {
        let mut listed = HashMap::new();
        let mut after = None;
        loop {
            let answer = self.ask(node, &Question::Inventory { after }, INVENTORY_TIMEOUT).await?;
            let Answer::Inventory(page) = answer else { return Err(answer.refusal()) };
            let Some((last, _)) = page.last() else { return Ok(listed) };
            after = Some(*last);
            listed.extend(page.into_iter().map(|(id, accepted)| (MessageId::from(id), accepted)));
        }
    }

    fn count_missing(&self) {
        let missing = if self.are_needed() { self.copies().homeless() } else { 0 };
        self.metrics.mirror_copies_missing.set(i64::try_from(missing).unwrap_or(i64::MAX));
    }

    /// Copies that are nowhere, until each has had its turn or nobody seems to take any.
    async fn make_again(self: &Arc<Self>) {
        let mut placing = JoinSet::new();
        let (mut failures, mut all_had_a_turn) = (0, false);
        loop {
            let count = PLACING_MAX - placing.len();
            if count > 0 && failures < FAILURES_MAX && !all_had_a_turn {
                let ids = self.copies().send_homeless(count);
                all_had_a_turn = ids.is_empty();
                for id in ids {
                    let mirrors = Arc::clone(self);
                    placing.spawn(async move { mirrors.make_one_again(id).await });
                }
            }
            match placing.join_next().await {
                Some(Ok(true)) => failures = 0,
                Some(Ok(false) | Err(_)) => failures += 1,
                None => return,
            }
        }
    }

    async fn make_one_again(self: Arc<Self>, id: MessageId) -> bool {
        let found = self.spool.get(id).await.ok().flatten().filter(|found| found.whose == Whose::Ours);
        let body = self.spool.read(id).await;
        let (Some(found), Ok(Some(message))) = (found, body) else {
            self.copies().not_placed(id);
            // What cannot be read finds no mirror: nobody is to wait for one.
            self.release(id);
            return false;
        };
        let bytes = |bytes: Box<[u8]>| Bytes::from(Vec::from(bytes));
        let parcel = Parcel {
            id,
            accepted: found.accepted,
            meta: bytes(found.meta),
            progress: found.progress.map(bytes),
            body: message.bytes().clone(),
        };
        let placed = Arc::clone(&self).place(parcel).await;
        match &placed {
            Ok(()) => drop(self.metrics.mirror_copies_remade.inc()),
            Err(error) => tracing::debug!(%id, %error, "a message has no second copy yet"),
        }
        placed.is_ok()
    }
}
