//! What becomes of a node's messages when it is down, and when it is back.

use std::collections::BTreeMap;
use std::time::Duration;

use super::letter::{Answer, Id, Question, What};
use super::{Disks, Mirrors};
use crate::mail::MessageId;
use crate::spool::{Found, SpoolError, Then, Whose};

const CLAIMS_TIMEOUT: Duration = Duration::from_secs(5);
/// In one question.
const CLAIMS_MAX: usize = 10_000;

/// Messages that changed hands, with the node that has them now; `None` = they are done.
pub(crate) type Claims = BTreeMap<MessageId, Option<u64>>;

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

    /// Makes `owner`'s messages ours; they are on this disk as such when it returns, and get a mirror next. False = they
    /// are not to be taken over now.
    pub(crate) async fn take(&self, owner: u64, ids: Vec<MessageId>) -> Result<bool, SpoolError> {
        let Some(mirrors) = &self.mirrors else { return Ok(false) };
        if !mirrors.keeper.take(owner, ids.clone()).await? {
            return Ok(false);
        }
        let mut copies = mirrors.copies();
        ids.into_iter().for_each(|id| copies.find(id, true));
        Ok(true)
    }

    /// Copies of `owner`'s messages that are the copies of other nodes' messages by now, or of use to nobody.
    pub(crate) fn let_go_of_copies(&self, owner: u64, claims: Claims) {
        if let Some(mirrors) = &self.mirrors {
            claims.into_iter().for_each(|(id, node)| mirrors.keeper.let_go_of(owner, id, node));
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
            if mirrors.cluster.read(|state| state.ownership(owner)).up && !mirrors.keeper.is_returning(owner) {
                mirrors.keeper.forget_taken(owner).await;
            }
        }
    }

    /// Whose `owner`'s messages are by now as far as `node` knows. `None` = it does not say.
    pub(crate) async fn claims(&self, node: u64, owner: u64, ids: &[MessageId]) -> Option<Claims> {
        let mirrors = self.mirrors.as_ref()?;
        let mut claims = Claims::new();
        // Once at least: a node that has nothing comes back as well.
        let chunks = ids.chunks(CLAIMS_MAX).chain(ids.is_empty().then_some(ids));
        for ids in chunks {
            let question = Question::Claims { of: owner, ids: ids.iter().map(|id| Id::from(*id)).collect() };
            match mirrors.ask(node, &question, CLAIMS_TIMEOUT).await {
                Ok(Answer::Owners(owners)) => claims.extend(owners.into_iter().map(|(id, node)| (id.into(), node))),
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
        Some(claims)
    }

    /// All that `node` has taken over from this one. `None` = it does not say.
    pub(crate) async fn taken_by(&self, node: u64) -> Option<Vec<MessageId>> {
        self.mirrors.as_ref()?.ask_ids(node, &Question::Taken).await
    }
}

impl Mirrors {
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
