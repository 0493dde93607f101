//! Choosing the mirror of a message, and having it store the copy.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use outgate_cluster::PeerError;

use super::Mirrors;
use super::letter::{self, Answer, Question, Store};
use crate::mail::MessageId;
use crate::spool::SpoolError;

/// Permits for what is on its way to mirrors at once, of [`PERMIT_BYTES`] each.
pub(super) const SENDING_MAX: usize = (128 << 20) / PERMIT_BYTES;
const PERMIT_BYTES: usize = 1024;
/// Nodes that are asked in turn.
pub(super) const MIRRORS_TRIED_MAX: usize = 3;
/// How long a node may take for one part, or for the whole once it has it.
const STORE_TIMEOUT: Duration = Duration::from_secs(3);
/// A node that was not heard for longer is asked last.
const SILENCE_MAX_MS: u64 = 1_500;

/// A message on its way to a mirror.
pub(super) struct Parcel {
    pub(super) id: MessageId,
    pub(super) accepted: bool,
    pub(super) meta: Bytes,
    pub(super) progress: Option<Bytes>,
    pub(super) body: Bytes,
}

impl Mirrors {
    /// Finds a mirror for a message that is noted as being sent. Without a need for one that is no error.
    pub(super) async fn place(self: Arc<Self>, parcel: Parcel) -> Result<(), SpoolError> {
        let id = parcel.id;
        if !self.are_needed() {
            self.copies().not_placed(id);
            self.release(id);
            return Ok(());
        }
        let permits = (parcel.body.len() / PERMIT_BYTES + 1).min(SENDING_MAX);
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        let _permit = self.sending.acquire_many(permits).await.map_err(|_| SpoolError::Stopped)?;
        for node in self.candidates(id).into_iter().take(MIRRORS_TRIED_MAX) {
            match self.hand_over(node, &parcel).await {
                Ok(()) => {
                    self.placed(id, node, parcel.accepted);
                    return Ok(());
                }
                Err(why) => {
                    tracing::debug!(%id, node, why, "a node does not mirror a message");
                    // It may have the message all the same.
                    self.links.doubt(node);
                }
            }
        }
        self.copies().not_placed(id);
        Err(SpoolError::NoMirror(id))
    }

    /// Calls what waits for a mirror where there need be none.
    pub(super) fn release(&self, id: MessageId) {
        let waited = self.copies().release(id);
        waited.into_iter().for_each(|then| then());
    }

    fn placed(&self, id: MessageId, node: u64, accepted: bool) {
        let mut copies = self.copies();
        let (marks, waited) = copies.placed(id, node, accepted);
        // Before anybody can tell what is newer.
        marks.into_iter().for_each(|mark| self.links.push(node, mark));
        drop(copies);
        waited.into_iter().for_each(|then| then());
    }

    /// Other nodes that own mail, in the order in which they are to be asked for this message: those that were heard of late
    /// and are to stay first, among equals by rendezvous hash.
    pub(super) fn candidates(&self, id: MessageId) -> Vec<u64> {
        let others = self.cluster.other_owners().into_iter();
        let mut ranked: Vec<_> = others
            .map(|node| {
                let silent_ms = self.cluster.standing(node.id).map_or(u64::MAX, |(_, silent_ms)| silent_ms);
                (silent_ms > SILENCE_MAX_MS, node.draining, weight(id, node.id), node.id)
            })
            .collect();
        ranked.sort_unstable();
        ranked.into_iter().map(|(.., node)| node).collect()
    }

    async fn hand_over(&self, node: u64, parcel: &Parcel) -> Result<(), String> {
        let owner_epoch = self.cluster.owner_epoch();
        let (id, body) = (parcel.id.into(), &parcel.body);
        let offset = self.send_parts(node, parcel.id, body).await?;
        let (meta, progress) = (parcel.meta.clone(), parcel.progress.clone());
        let (accepted, bytes) = (parcel.accepted, body.slice(offset..));
        let store = Store { owner_epoch, id, accepted, meta, progress, offset: offset as u64, bytes };
        self.have_done(node, &Question::Store(store)).await
    }

    pub(super) async fn have_done(&self, node: u64, question: &Question) -> Result<(), String> {
        self.have_done_in(node, question, STORE_TIMEOUT).await
    }

    pub(super) async fn have_done_in(&self, node: u64, question: &Question, limit: Duration) -> Result<(), String> {
        let answer = self.ask(node, question, limit).await?;
        if matches!(answer, Answer::Done) { Ok(()) } else { Err(answer.refusal()) }
    }

    pub(super) async fn ask(&self, node: u64, question: &Question, limit: Duration) -> Result<Answer, String> {
        let body = letter::encode(question).map_err(|error| error.to_string())?;
        let answer = self.cluster.ask(node, body, limit).await.map_err(|error: PeerError| error.to_string())?;
        letter::decode(&answer).map_err(|error| error.to_string())
    }
}

/// The smallest of a message's weights wins: whoever comes or goes moves only its own share.
pub(super) fn weight(id: MessageId, node: u64) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&id.to_bytes()).update(&node.to_le_bytes());
    let hash = hasher.finalize();
    u64::from_le_bytes(std::array::from_fn(|at| hash.as_bytes()[at]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_gets_its_share_and_a_new_one_takes_only_its_own() {
        let best = |id, nodes: &[u64]| nodes.iter().copied().min_by_key(|node| weight(id, *node));
        let ids: Vec<_> = (0..3_000).map(|_| MessageId::generate()).collect();
        let mut shares = [0; 3];
        for &id in &ids {
            let (before, after) = (best(id, &[1, 2]), best(id, &[1, 2, 3]));
            assert!(after == before || after == Some(3));
            shares[usize::try_from(after.unwrap_or(0)).unwrap_or(0) - 1] += 1;
        }
        assert!(shares.iter().all(|share| (800..1_200).contains(share)), "{shares:?}");
    }
}
