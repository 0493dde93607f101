//! Messages that this node's disk has lost: whoever keeps their copy owns them from then on.
//!
//! A spool that finds itself damaged when it is opened does not know what it had. So with the first comparison behind that,
//! what a mirror keeps and this node does not know is not called done: it is given to the mirror, which asks the replicated
//! state about what is not known to be accepted, and delivers the rest. What was done with the marks of that untold goes
//! out twice then, and nothing is lost. A message that turns out to be unreadable later is given away in the same manner.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::letter::{Id, Question};
use super::{Claims, Disks, Mirrors};
use crate::mail::MessageId;
use crate::spool::{Found, SpoolError, Whose};

/// How long a start waits for mirrors to say what a damaged disk has lost.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(200);
/// Whoever gave something asks twice a second what became of it; for this long it is remembered, in case it is cut off.
const HEARD_MAX: Duration = Duration::from_secs(3600);

impl Disks {
    /// Returns when all that this disk lost is in the hands of nodes that have it; at once where nothing was lost.
    pub(crate) async fn make_up_for_damage(&self) {
        let Some(mirrors) = self.mirrors.as_ref().filter(|mirrors| mirrors.spool.damage().is_some()) else {
            return;
        };
        let begun = Instant::now();
        while mirrors.are_needed() && !mirrors.links.are_made_up(&mirrors.others()) {
            if begun.elapsed() > PATIENCE {
                return tracing::error!("not every node has said what this node's damaged spool may have lost");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The message cannot be read here; somebody else may have it.
    pub(crate) fn cannot_read(&self, id: MessageId) {
        if let Some(mirrors) = &self.mirrors {
            mirrors.unreadable().insert(id);
        }
    }

    /// Gives away what cannot be read here; returns what is in other hands by now.
    pub(crate) async fn give_away_unreadable(&self) -> Vec<MessageId> {
        let Some(mirrors) = &self.mirrors else { return Vec::new() };
        let ids: BTreeSet<_> = &*mirrors.unreadable() | &mirrors.spool.lost().into_iter().collect();
        let ids: Vec<MessageId> = ids.into_iter().filter(|id| mirrors.copies().knows(*id)).collect();
        *mirrors.unreadable() = ids.iter().copied().collect();
        if ids.is_empty() {
            return ids;
        }
        // It is the mirror's as soon as that has taken it over, which is later than it was given, and then no copy any more.
        let mut claims = Claims::default();
        for node in mirrors.others() {
            self.ask_claims(node, mirrors.cluster.node_id(), &ids, &mut claims).await;
        }
        let (gone, here): (Vec<_>, Vec<_>) = ids.into_iter().partition(|id| claims.holds(*id));
        for id in here {
            let mirror = mirrors.copies().mirror(id);
            if let Some(node) = mirror
                && let Err(why) = mirrors.give(node, &[id]).await
            {
                tracing::debug!(%id, node, why, "a message that cannot be read is not given away yet");
            }
        }
        gone
    }

    /// The copies that other nodes have given to this one.
    pub(crate) async fn given(&self) -> Result<Vec<(u64, Vec<Found>)>, SpoolError> {
        let Some(mirrors) = &self.mirrors else { return Ok(Vec::new()) };
        let given = mirrors.keeper.given().take_open();
        let mut all = Vec::new();
        for (owner, ids) in given {
            let copies = mirrors.spool.list(Whose::Of(owner)).await?;
            all.push((owner, copies.into_iter().filter(|found| ids.contains(&found.id)).collect()));
        }
        Ok(all)
    }

    /// Makes ours what `owner` gave away.
    pub(crate) async fn take_given(&self, owner: u64, ids: Vec<MessageId>) -> Result<BTreeSet<MessageId>, SpoolError> {
        let Some(mirrors) = &self.mirrors else { return Ok(BTreeSet::new()) };
        let taken = mirrors.keeper.take_given(owner, ids).await?;
        mirrors.find(&taken);
        Ok(taken)
    }
}

impl Mirrors {
    /// Of what the node keeps, what may have been lost here: on a first comparison all that the damage may have hit and that
    /// is unknown, later what was given before and is still there.
    pub(super) fn lost(
        &self,
        listed: &HashMap<MessageId, bool>,
        is_first: bool,
        given: &BTreeSet<MessageId>,
    ) -> BTreeSet<MessageId> {
        let damage = self.spool.damage().filter(|_| is_first);
        let may_be_lost = |id: &MessageId| damage.is_some_and(|damage| damage.covers(*id));
        let copies = self.copies();
        let unknown = |id: &&MessageId| (may_be_lost(id) && !copies.knows(**id)) || given.contains(id);
        listed.keys().filter(unknown).copied().collect()
    }

    /// Forgets the damage when every node that may have copies has been asked.
    pub(super) fn forget_damage(&self, nodes: &[u64]) {
        if self.spool.damage().is_some() && self.links.are_made_up(nodes) {
            self.spool.forget_damage();
        }
    }

    pub(super) async fn give(&self, node: u64, ids: &[MessageId]) -> Result<(), String> {
        let ids = ids.iter().map(|id| Id::from(*id)).collect();
        self.have_done(node, &Question::Yours { ids }).await
    }
}

/// What other nodes gave to this one.
#[derive(Default)]
pub(super) struct Given {
    /// What is not taken yet, by the old owner.
    open: BTreeMap<u64, BTreeSet<MessageId>>,
    /// When a node last gave.
    last: BTreeMap<u64, Instant>,
}

impl Given {
    pub(super) fn add(&mut self, owner: u64, ids: impl Iterator<Item = MessageId>) {
        self.open.entry(owner).or_default().extend(ids);
        self.last.insert(owner, Instant::now());
    }

    fn take_open(&mut self) -> BTreeMap<u64, BTreeSet<MessageId>> {
        std::mem::take(&mut self.open)
    }

    /// Whether the node may not have heard yet that what it gave is taken.
    pub(super) fn is_recent(&self, owner: u64) -> bool {
        self.last.get(&owner).is_some_and(|last| last.elapsed() < HEARD_MAX)
    }
}
