//! What becomes of a node's messages when it is down, and when it is back.

use std::collections::BTreeSet;
use std::time::Duration;

use super::letter::{Answer, Id, Question};
use super::{Disks, Mirrors};
use crate::mail::MessageId;
use crate::spool::{Found, SpoolError, Whose};

const CLAIMS_TIMEOUT: Duration = Duration::from_secs(5);
/// In one question.
const CLAIMS_MAX: usize = 10_000;

impl Disks {
    /// What is ours, in order.
    pub(crate) async fn own_ids(&self) -> Result<Vec<MessageId>, SpoolError> {
        Ok(self.spool.list(Whose::Ours).await?.into_iter().map(|found| found.id).collect())
    }

    /// The copies that we keep for `owner`.
    pub(crate) async fn copies_of(&self, owner: u64) -> Result<Vec<Found>, SpoolError> {
        match &self.mirrors {
            Some(mirrors) => mirrors.keeper.copies_of(owner).await,
            None => Ok(Vec::new()),
        }
    }

    /// Makes `owner`'s messages ours; they are on this disk as such when it returns, and get a mirror next.
    pub(crate) async fn take(&self, owner: u64, ids: Vec<MessageId>) -> Result<(), SpoolError> {
        let Some(mirrors) = &self.mirrors else { return Ok(()) };
        mirrors.keeper.take(owner, ids.clone()).await?;
        let mut copies = mirrors.copies();
        ids.into_iter().for_each(|id| copies.find(id, true));
        Ok(())
    }

    /// Copies that nobody will need.
    pub(crate) fn drop_copies(&self, owner: u64, ids: &[MessageId]) {
        if let Some(mirrors) = &self.mirrors {
            ids.iter().for_each(|id| mirrors.keeper.drop_copy(owner, *id));
        }
    }

    /// Forgets what was taken over from nodes that own mail again: they have dropped it.
    pub(crate) async fn forget_taken(&self) {
        let Some(mirrors) = &self.mirrors else { return };
        for owner in mirrors.keeper.taken_owners().await {
            if mirrors.cluster.read(|state| state.ownership(owner)).up {
                mirrors.keeper.forget_taken(owner).await;
            }
        }
    }

    /// Which of `owner`'s messages `node` owns, mirrors for somebody else or has taken over. `None` = it does not say.
    pub(crate) async fn claims(&self, node: u64, owner: u64, ids: &[MessageId]) -> Option<BTreeSet<MessageId>> {
        let mirrors = self.mirrors.as_ref()?;
        let mut claimed = BTreeSet::new();
        for ids in ids.chunks(CLAIMS_MAX) {
            let question = Question::Claims { of: owner, ids: ids.iter().map(|id| Id::from(*id)).collect() };
            claimed.extend(mirrors.ask_ids(node, &question).await?);
        }
        Some(claimed)
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
