//! The quarantine on two disks: what is held here has a copy in the quarantine of another node.
//!
//! No table says where: what has no copy, and which copies are of no use, comes out when all nodes are asked what they
//! keep, which is done now and then and whenever a node goes down.

use std::collections::BTreeSet;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinSet;

use super::letter::{Answer, Hold, IDS_MAX, Id, PART_MAX_BYTES, Question};
use super::placing::MIRRORS_TRIED_MAX;
use super::{Disks, Mirrors};
use crate::mail::{Message, MessageId};
use crate::quarantine::{Held, Quarantine, QuarantineError};

const INTERVAL: Duration = Duration::from_secs(1);
/// Between two looks at all copies.
const COMPARE_INTERVAL: Duration = Duration::from_secs(300);
const INVENTORY_TIMEOUT: Duration = Duration::from_secs(10);

impl Disks {
    /// Holds the message here and on a mirror, see [`Quarantine::hold`].
    pub(crate) async fn hold(
        &self,
        quarantine: &Quarantine,
        held: Held,
        message: Message,
        once: bool,
    ) -> Result<bool, QuarantineError> {
        let Some(mirrors) = self.mirrors.as_ref().filter(|mirrors| mirrors.are_needed()) else {
            return quarantine.hold(held, message, once).await;
        };
        let id = held.id;
        mirrors.holding().insert(id);
        let is_new = quarantine.hold(held.clone(), message.clone(), once).await;
        if !is_new.as_ref().is_ok_and(|is_new| *is_new) {
            mirrors.holding().remove(&id);
            return is_new;
        }
        let placed = mirrors.place_held(&held, &message).await;
        mirrors.holding().remove(&id);
        if placed {
            return Ok(true);
        }
        // Nobody is told that it is held.
        quarantine.remove(id).await?;
        Err(QuarantineError::NoMirror(id))
    }

    /// Tells everybody that the message is not held any more; returns when all who are there know it.
    pub(crate) async fn let_out(&self, id: MessageId) {
        let Some(mirrors) = &self.mirrors else { return };
        let mut telling = JoinSet::new();
        for node in mirrors.candidates(id) {
            let mirrors = Arc::clone(mirrors);
            telling.spawn(async move {
                if let Err(why) = mirrors.have_done(node, &Question::LetOut { ids: vec![id.into()] }).await {
                    tracing::debug!(node, %id, why, "a copy of what was held may stay for a while");
                }
            });
        }
        telling.join_all().await;
    }

    /// Makes `owner`'s copies in quarantine ours, in a list first; returns what they are.
    pub(crate) async fn take_held(&self, owner: u64) -> Result<Vec<MessageId>, QuarantineError> {
        let Some(mirrors) = &self.mirrors else { return Ok(Vec::new()) };
        let taken = mirrors.keeper.take_held(owner).await?;
        if !taken.is_empty() {
            mirrors.held_changed.notify_one();
        }
        Ok(taken)
    }

    /// What `node` has taken over of this one's quarantine. `None` = it does not say.
    pub(crate) async fn held_taken_by(&self, node: u64) -> Option<Vec<MessageId>> {
        self.mirrors.as_ref()?.ask_ids(node, &Question::HeldTaken).await
    }
}

impl Mirrors {
    fn holding(&self) -> MutexGuard<'_, BTreeSet<MessageId>> {
        self.holding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False where no node keeps a copy.
    async fn place_held(&self, held: &Held, message: &Message) -> bool {
        for node in self.candidates(held.id).into_iter().take(MIRRORS_TRIED_MAX) {
            match self.hand_held_over(node, held, message).await {
                Ok(()) => return true,
                Err(why) => tracing::debug!(id = %held.id, node, why, "a node does not mirror a held message"),
            }
        }
        false
    }

    async fn hand_held_over(&self, node: u64, held: &Held, message: &Message) -> Result<(), String> {
        let owner_epoch = self.cluster.owner_epoch();
        let entry = Bytes::from(serde_json::to_vec(held).map_err(|error| error.to_string())?);
        let (id, body) = (held.id, message.bytes());
        let offset = self.send_parts(node, id, body).await?;
        let hold = Hold { owner_epoch, entry, offset: offset as u64, bytes: body.slice(offset..) };
        self.have_done(node, &Question::Hold(hold)).await
    }

    /// All but the last part of a message; returns where that begins.
    pub(super) async fn send_parts(&self, node: u64, id: MessageId, body: &Bytes) -> Result<usize, String> {
        let parts = body.len().saturating_sub(1) / PART_MAX_BYTES;
        for offset in (0..parts).map(|part| part * PART_MAX_BYTES) {
            let bytes = body.slice(offset..offset + PART_MAX_BYTES);
            let part = Question::Part { id: id.into(), offset: offset as u64, bytes };
            self.have_done(node, &part).await?;
        }
        Ok(parts * PART_MAX_BYTES)
    }

    /// Compares what is held here with the copies that all nodes keep.
    async fn compare_held(&self) -> Result<(), String> {
        let quarantine = self.keeper.quarantine();
        let all: BTreeSet<MessageId> = quarantine.all().await.map_err(|error| error.to_string())?.into_iter().collect();
        let mut wanted = Wanted::new(&all, self.holding().clone());
        for node in self.others() {
            let kept = self.held_inventory(node).await?;
            let mut stray = Vec::new();
            for id in kept {
                // One copy is enough. What came meanwhile is in no list, and is held.
                if !wanted.takes(id) && (all.contains(&id) || !quarantine.holds(id).await) {
                    stray.push(Id::from(id));
                }
            }
            if !stray.is_empty() {
                self.have_done(node, &Question::LetOut { ids: stray }).await?;
            }
        }
        let mut homeless = None;
        for id in wanted.missing {
            if let Ok((held, message)) = quarantine.show(id).await
                && !self.place_held(&held, &message).await
            {
                homeless = Some(id);
            }
        }
        homeless.map_or(Ok(()), |id| Err(format!("no node keeps a copy of {id}")))
    }

    async fn held_inventory(&self, node: u64) -> Result<Vec<MessageId>, String> {
        let mut kept: Vec<MessageId> = Vec::new();
        loop {
            let after = kept.last().map(|id| Id::from(*id));
            let answer = self.ask(node, &Question::HeldInventory { after }, INVENTORY_TIMEOUT).await?;
            let Answer::Ids(ids) = answer else { return Err(answer.refusal()) };
            let is_last = ids.len() < IDS_MAX;
            kept.extend(ids.into_iter().map(MessageId::from));
            if is_last {
                return Ok(kept);
            }
        }
    }

    pub(super) fn others(&self) -> Vec<u64> {
        self.cluster.other_owners().into_iter().map(|node| node.id).collect()
    }
}

/// Which copies are of use.
struct Wanted {
    missing: BTreeSet<MessageId>,
    /// Being copied at this moment: neither missing nor, where the copy has arrived, of no use.
    holding: BTreeSet<MessageId>,
}

impl Wanted {
    fn new(all: &BTreeSet<MessageId>, holding: BTreeSet<MessageId>) -> Self {
        Self { missing: all - &holding, holding }
    }

    /// Of what is not being copied, one is enough.
    fn takes(&mut self, id: MessageId) -> bool {
        self.missing.remove(&id) || self.holding.contains(&id)
    }
}

/// Sees to the copies of what is held, for as long as anybody uses the disks.
pub(super) async fn run(mirrors: Weak<Mirrors>) {
    let mut compared: Option<(Instant, Vec<u64>)> = None;
    while let Some(changed) = mirrors.upgrade().map(|mirrors| Arc::clone(&mirrors.held_changed)) {
        if tokio::time::timeout(INTERVAL, changed.notified()).await.is_ok() {
            compared = None;
        }
        let Some(mirrors) = mirrors.upgrade() else { return };
        let others = mirrors.others();
        let is_due = compared.as_ref().is_none_or(|(at, with)| at.elapsed() > COMPARE_INTERVAL || *with != others);
        if is_due && !others.is_empty() && mirrors.cluster.holds_lease() {
            match Arc::clone(&mirrors).compare_held().await {
                Ok(()) => compared = Some((Instant::now(), others)),
                Err(why) => tracing::debug!(why, "not everything that is held has a second copy yet"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_has_just_come_is_not_dropped_as_a_second_one() {
        let [held, holding, gone] = std::array::from_fn(|_| MessageId::generate());
        let mut wanted = Wanted::new(&BTreeSet::from([held, holding]), BTreeSet::from([holding]));
        let taken = [held, held, holding, holding, gone].map(|id| wanted.takes(id));
        assert_eq!((taken, wanted.missing.len()), ([true, false, true, true, false], 0));
    }
}
