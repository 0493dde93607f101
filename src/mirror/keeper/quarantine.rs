//! Copies of what other nodes hold, and taking them over.

use std::io;
use std::sync::Arc;

use super::{Keeper, on_disk};
use crate::mail::{Message, MessageId};
use crate::mirror::letter::{Answer, Hold, IDS_MAX, Id};
use crate::quarantine::{Held, Quarantine, QuarantineError};

impl Keeper {
    pub(in crate::mirror) fn quarantine(&self) -> &Quarantine {
        &self.quarantine
    }

    pub(super) async fn hold(&self, owner: u64, hold: Hold) -> Result<Answer, String> {
        let Hold { owner_epoch, entry, offset, bytes } = hold;
        let held: Held = serde_json::from_slice(&entry).map_err(|error| error.to_string())?;
        self.may_keep(owner, owner_epoch)?;
        let message = Message::new(self.whole(owner, held.id, offset, bytes)?);
        self.quarantine.keep_copy(owner, held, message).await.map_err(|error| error.to_string())?;
        Ok(Answer::Done)
    }

    pub(super) async fn let_out(&self, owner: u64, ids: Vec<Id>) -> Result<Answer, String> {
        let _no_half_take_over = self.taken_held.lock().await;
        let ids = ids.into_iter().map(MessageId::from).collect();
        self.quarantine.drop_copies(owner, ids).await.map_err(|error| error.to_string())?;
        Ok(Answer::Done)
    }

    pub(super) async fn held_inventory(&self, owner: u64, after: Option<MessageId>) -> Result<Answer, String> {
        let _no_half_take_over = self.taken_held.lock().await;
        let kept = self.quarantine.copies_of(owner).await.map_err(|error| error.to_string())?;
        let behind = kept.into_iter().filter(|id| after.is_none_or(|after| *id > after));
        Ok(Answer::Ids(behind.take(IDS_MAX).map(Id::from).collect()))
    }

    /// Makes what `owner` holds ours, in the list first; returns what that is. Nothing while it is about to come back.
    pub(in crate::mirror) async fn take_held(&self, owner: u64) -> Result<Vec<MessageId>, QuarantineError> {
        let Some(as_of) = self.up_to_date().await else { return Ok(Vec::new()) };
        let taken = Arc::clone(&self.taken_held).lock_owned().await;
        if !self.may_take(owner, as_of) {
            return Ok(Vec::new());
        }
        let ids = self.quarantine.copies_of(owner).await?;
        if !ids.is_empty() {
            let listed = ids.clone();
            let added = on_disk(taken, move |taken| taken.add(owner, &listed)).await;
            let _until_adopted = added.map_err(|error| QuarantineError::Io(io::Error::other(error)))?;
            self.quarantine.adopt(owner, ids.clone()).await?;
        }
        Ok(ids)
    }

    pub(super) async fn finish_held(&self, owner: u64) -> Result<(), QuarantineError> {
        let listed = self.taken_held.lock().await.of(owner).cloned().unwrap_or_default();
        self.quarantine.adopt(owner, listed.into_iter().collect()).await
    }
}
