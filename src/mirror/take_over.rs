//! What becomes of a node's messages when it is down, and when it is back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::letter::{Answer, Claim, Id, Question, What};
use super::{Disks, Mirrors};
use crate::mail::MessageId;
use crate::spool::{Found, SpoolError, Then, Whose};

const CLAIMS_TIMEOUT: Duration = Duration::from_secs(5);
/// In one question.
const CLAIMS_MAX: usize = 10_000;

/// Messages that changed hands, with the node that has them now; `None` = they are done.
pub(crate) type Handed = BTreeMap<MessageId, Option<u64>>;

/// What other nodes say of messages of a node that is or was down.
#[derive(Default, Debug)]
pub(crate) struct Claims(BTreeMap<MessageId, Claimed>);

/// In the order in which they count: whoever has a message knows more than one that had it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Claimed {
    Soon,
    Done,
    By(u64),
}

impl Claims {
    fn add(&mut self, node: u64, id: MessageId, claim: Claim) {
        let claimed = match claim {
            Claim::Mine => Claimed::By(node),
            Claim::Done => Claimed::Done,
            Claim::Soon => Claimed::Soon,
        };
        let known = self.0.entry(id).or_insert(claimed);
        *known = (*known).max(claimed);
    }

    pub(crate) fn holds(&self, id: MessageId) -> bool {
        self.0.contains_key(&id)
    }

    /// A promise to take a message over is none to have it: what is only promised stays as it is.
    pub(crate) fn handed(self) -> Handed {
        let handed = self.0.into_iter().filter_map(|(id, claimed)| match claimed {
            Claimed::By(node) => Some((id, Some(node))),
            Claimed::Done => Some((id, None)),
            Claimed::Soon => None,
        });
        handed.collect()
    }
}

impl Disks {
    /// What is ours, in order.
    pub(crate) async fn own_ids(&self) -> Result<Vec<MessageId>, SpoolError> {
        Ok(self.spool.list(Whose::Ours).await?.into_iter().map(|found| found.id).collect())
    }

    /// Whether the message is on this disk, whosever it is.
    pub(crate) fn has(&self, id: MessageId) -> bool {
        self.spool.has(id)
    }

    /// The copies that we keep for `owner`.
    pub(crate) async fn copies_of(&self, owner: u64) -> Result<Vec<Found>, SpoolError> {
        match &self.mirrors {
            Some(mirrors) => mirrors.keeper.copies_of(owner).await,
            None => Ok(Vec::new()),
        }
    }

    /// Makes `owner`'s messages ours; they are on this disk as such when it returns, and get a mirror next. Returns those
    /// that are: none where they are not to be taken over now.
    pub(crate) async fn take(&self, owner: u64, ids: Vec<MessageId>) -> Result<BTreeSet<MessageId>, SpoolError> {
        let Some(mirrors) = &self.mirrors else { return Ok(BTreeSet::new()) };
        let taken = mirrors.keeper.take(owner, ids).await?;
        mirrors.find(&taken);
        Ok(taken)
    }

    /// Before they are handed over: what this node says of messages that it passed on must not be that they are done.
    pub(crate) async fn pass_on(&self, handed: &Handed) -> Result<(), SpoolError> {
        let ids: BTreeSet<_> = handed.iter().filter(|(_, node)| node.is_some()).map(|(id, _)| *id).collect();
        match &self.mirrors {
            Some(mirrors) if !ids.is_empty() => mirrors.keeper.strike_taken(ids).await,
            Some(_) | None => Ok(()),
        }
    }

    /// False until this node knows what others have of what it owned: nothing goes out.
    pub(crate) fn is_back(&self) -> bool {
        self.mirrors.as_ref().is_none_or(|mirrors| mirrors.keeper.is_back())
    }

    pub(crate) fn set_back(&self, is_back: bool) {
        if let Some(mirrors) = &self.mirrors {
            mirrors.keeper.set_back(is_back);
        }
    }

    /// Copies of `owner`'s messages that are the copies of other nodes' messages by now, or of use to nobody.
    pub(crate) fn let_go_of_copies(&self, owner: u64, handed: Handed) {
        if let Some(mirrors) = &self.mirrors {
            handed.into_iter().for_each(|(id, node)| mirrors.keeper.let_go_of(owner, id, node));
        }
    }

    /// Our message is another node's by now, or done by one; `then` is called when that is on this node's disk. Where it is
    /// another's, this disk is its second one until it has found another: nobody's death in between loses the message.
    pub(crate) fn let_go(&self, id: MessageId, node: Option<u64>, then: Then) {
        let Some((mirrors, node)) = self.mirrors.as_ref().zip(node) else { return self.done(id, Some(then)) };
        let (mirror, waiting) = mirrors.copies().done(id);
        let then: Then = Box::new(move || waiting.into_iter().chain([then]).for_each(|then| then()));
        self.spool.hand_over((id, Whose::Ours), node, Some(then));
        if let Some(mirror) = mirror {
            mirrors.links.tell(mirror, id, What::Done);
        }
    }

    /// Forgets what was taken over from nodes that own mail again: they have let go of it, and said so twice.
    pub(crate) async fn forget_taken(&self) {
        let Some(mirrors) = &self.mirrors else { return };
        for owner in mirrors.keeper.taken_owners().await {
            if mirrors.keeper.knows_what_was_taken(owner) {
                mirrors.keeper.forget_taken(owner).await;
            }
        }
    }

    /// Tells the node that this one returns. `None` = it does not hear it, or returns itself and is to be first.
    pub(crate) async fn tell_return(&self, node: u64) -> Option<()> {
        let told = self.mirrors.as_ref()?.have_done_in(node, &Question::Returning, CLAIMS_TIMEOUT).await;
        told.inspect_err(|why| tracing::warn!(node, why, "waiting for a node to hear that this one returns")).ok()
    }

    /// Adds what of `owner`'s messages `node` has or had. `None` = it does not say.
    pub(crate) async fn ask_claims(&self, node: u64, owner: u64, ids: &[MessageId], claims: &mut Claims) -> Option<()> {
        let mirrors = self.mirrors.as_ref()?;
        for ids in ids.chunks(CLAIMS_MAX) {
            let question = Question::Claims { of: owner, ids: ids.iter().map(|id| Id::from(*id)).collect() };
            match mirrors.ask(node, &question, CLAIMS_TIMEOUT).await {
                Ok(Answer::Claims(all)) => all.into_iter().for_each(|(id, claim)| claims.add(node, id.into(), claim)),
                Ok(other) => {
                    tracing::debug!(node, why = other.refusal(), "a node does not say what changed hands");
                    return None;
                }
                Err(why) => {
                    tracing::debug!(node, why, "a node does not say what changed hands");
                    return None;
                }
            }
        }
        Some(())
    }

    /// The other node that owns the message, where one answers so; those that are silent are not asked.
    pub(crate) async fn owner_elsewhere(&self, id: MessageId, silent: &[u64]) -> Option<u64> {
        let mirrors = self.mirrors.as_ref()?;
        let mut claims = Claims::default();
        for node in mirrors.others().into_iter().filter(|node| !silent.contains(node)) {
            self.ask_claims(node, mirrors.cluster.node_id(), &[id], &mut claims).await;
        }
        claims.handed().remove(&id).flatten()
    }

    /// All that `node` has taken over from this one. `None` = it does not say.
    pub(crate) async fn taken_by(&self, node: u64) -> Option<Vec<MessageId>> {
        self.mirrors.as_ref()?.ask_ids(node, &Question::Taken).await
    }
}

impl Mirrors {
    /// They are ours and have no second copy.
    pub(super) fn find(&self, ids: &BTreeSet<MessageId>) {
        let mut copies = self.copies();
        ids.iter().for_each(|id| copies.find(*id, true));
    }

    pub(super) async fn ask_ids(&self, node: u64, question: &Question) -> Option<Vec<MessageId>> {
        match self.ask(node, question, CLAIMS_TIMEOUT).await {
            Ok(Answer::Ids(ids)) => Some(ids.into_iter().map(MessageId::from).collect()),
            Ok(other) => {
                tracing::debug!(node, ?other, "a node does not say what it has taken over");
                None
            }
            Err(why) => {
                tracing::debug!(node, why, "a node does not say what it has taken over");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_a_message_is_believed_before_those_who_had_it_or_will() {
        let [owned, done, promised] = std::array::from_fn(|_| MessageId::generate());
        let mut claims = Claims::default();
        claims.add(1, owned, Claim::Done);
        claims.add(2, owned, Claim::Mine);
        claims.add(3, owned, Claim::Done);
        claims.add(1, done, Claim::Soon);
        claims.add(2, done, Claim::Done);
        claims.add(1, promised, Claim::Soon);
        assert!([owned, done, promised].iter().all(|id| claims.holds(*id)));
        assert_eq!(claims.handed(), BTreeMap::from([(owned, Some(2)), (done, None)]), "a promise moves no copy");
    }
}
