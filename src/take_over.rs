//! Taking over the mail of nodes that are down, and coming back after others took over ours.
//!
//! A node whose down the cluster has decided owns nothing any more: it has stopped delivering, and nothing of it is
//! admitted. Whoever mirrors its messages makes them its own and delivers them. When the node is back it first asks
//! everybody what they have of its messages, lets go of that, and only then owns mail again, under a new owner epoch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use outgate_cluster::{AdmissionVerdict, Cluster, Command, Outcome};

use crate::mail::MessageId;
use crate::mirror::Disks;
use crate::node::admission_id;
use crate::queue::{AdmissionTag, Entry, sort};
use crate::submission::Line;

const INTERVAL: Duration = Duration::from_millis(500);
/// Between two looks at what is kept of one node that is down.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// A node that was removed may believe in its lease for this long.
const REMOVED_PATIENCE: Duration = Duration::from_secs(7);
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// Whether the node owns mail as far as this one knows.
pub(crate) fn owns_mail(cluster: &Cluster) -> bool {
    cluster.read(|state| state.ownership(cluster.node_id())).up
}

/// Takes over from whoever is down, for ever.
pub(crate) async fn run(line: Arc<Line>) {
    let mut seen: BTreeMap<u64, (Instant, Option<Instant>)> = BTreeMap::new();
    loop {
        tokio::time::sleep(INTERVAL).await;
        // Whoever has lost touch does not know who is down.
        if !line.cluster.holds_lease() {
            continue;
        }
        let (out, removed) = line.cluster.read(|state| (state.out(), state.removed()));
        seen.retain(|node, _| out.contains(node));
        for node in out.into_iter().filter(|node| *node != line.cluster.node_id()) {
            let (since, swept) = seen.entry(node).or_insert_with(|| (Instant::now(), None));
            let is_early = removed.contains(&node) && since.elapsed() < REMOVED_PATIENCE;
            if !is_early && swept.is_none_or(|at| at.elapsed() > SWEEP_INTERVAL) {
                *swept = Some(Instant::now());
                sweep(&line, node).await;
                sweep_held(&line, node).await;
            }
        }
        line.disks.forget_taken().await;
    }
}

async fn sweep(line: &Line, node: u64) {
    let found = match line.disks.copies_of(node).await {
        Ok(found) if found.is_empty() => return,
        Ok(found) => found,
        Err(error) => return tracing::error!(node, %error, "cannot take over"),
    };
    let mut sorted = sort(&found, |tag| was_accepted(&line.cluster, tag));
    let ids: Vec<MessageId> = sorted.to_deliver.iter().map(|entry| entry.id).collect();
    let claimed = claimed_by_others(line, node, &ids).await;
    sorted.to_deliver.retain(|entry| !claimed.contains(&entry.id));
    sorted.to_drop.extend(claimed);
    line.disks.drop_copies(node, &sorted.to_drop);
    take(line, node, sorted.to_deliver).await;
}

/// Whoever keeps a copy of what the node held holds it from now on.
async fn sweep_held(line: &Line, node: u64) {
    match line.disks.take_held(node).await {
        Ok(taken) if taken.is_empty() => {}
        Ok(taken) => tracing::warn!(node, messages = taken.len(), "took over the quarantine of a node that is down"),
        Err(error) => tracing::error!(node, %error, "cannot take over the quarantine"),
    }
}

async fn take(line: &Line, node: u64, entries: Vec<Entry>) {
    if entries.is_empty() {
        return;
    }
    let ids = entries.iter().map(|entry| entry.id).collect();
    match line.disks.take(node, ids).await {
        Ok(()) => {
            tracing::warn!(node, messages = entries.len(), "took over the messages of a node that is down");
            line.queue.take_over(entries, node);
        }
        Err(error) => tracing::error!(node, %error, "cannot take over"),
    }
}

/// All that the node answered with 250 was decided before it was declared down.
fn was_accepted(cluster: &Cluster, tag: AdmissionTag) -> bool {
    let admission = cluster.read(|state| state.admission(admission_id(tag)));
    admission.is_some_and(|admission| admission.verdict == AdmissionVerdict::Accepted)
}

/// What others have of them already: a copy may have stayed where it was of no use. Who does not answer has nothing.
async fn claimed_by_others(line: &Line, node: u64, ids: &[MessageId]) -> BTreeSet<MessageId> {
    let mut claimed = BTreeSet::new();
    for other in line.cluster.other_owners().iter().map(|node| node.id) {
        claimed.extend(line.disks.claims(other, node, ids).await.unwrap_or_default());
    }
    claimed
}

/// Returns when this node owns mail: at once where it never ceased to.
pub(crate) async fn come_up(line: &Line) {
    let cluster = &line.cluster;
    loop {
        let ownership = cluster.read(|state| state.ownership(cluster.node_id()));
        if ownership.up {
            return;
        }
        if cluster.barrier().await.is_ok() && let_go(line, &line.disks).await {
            let command = Command::NodeUp { node: cluster.node_id(), owner_epoch: ownership.epoch };
            match cluster.propose(command).await.map(|applied| applied.outcome) {
                Ok(Outcome::Refused(refusal)) => tracing::warn!(%refusal, "this node does not own mail"),
                Ok(_) => tracing::info!(owner_epoch = ownership.epoch + 1, "this node owns mail"),
                Err(error) => tracing::warn!(%error, "this node does not own mail yet"),
            }
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// Lets go of what others have. False = somebody did not say what that is.
async fn let_go(line: &Line, disks: &Disks) -> bool {
    let here = line.cluster.node_id();
    let Ok(own) = disks.own_ids().await else { return false };
    let (mut claimed, mut taken, mut held) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for other in line.cluster.other_owners().iter().map(|node| node.id) {
        let claims = disks.claims(other, here, &own).await;
        let all = (claims, disks.taken_by(other).await, disks.held_taken_by(other).await);
        match all {
            (Some(of_own), Some(all), Some(of_held)) => {
                claimed.extend(of_own);
                taken.extend(all);
                held.extend(of_held);
            }
            (None, ..) | (_, None, _) | (.., None) => {
                tracing::warn!(node = other, "waiting for a node to say what it has taken over");
                return false;
            }
        }
    }
    // What was taken over though we were done with it goes out twice.
    let duplicates = taken.into_iter().filter(|id| own.binary_search(id).is_err()).count();
    line.metrics.duplicates.inc_by(duplicates as u64);
    if !claimed.is_empty() || duplicates > 0 {
        tracing::warn!(messages = claimed.len(), duplicates, "others have taken over messages of this node");
    }
    line.queue.let_go(claimed);
    for id in held {
        if let Err(error) = line.quarantine.remove(id).await {
            tracing::debug!(%id, %error, "what others hold is not here");
        }
    }
    true
}
