//! Taking over the mail of nodes that are down, and coming back after others took over ours.
//!
//! A node whose down the cluster has decided owns nothing any more: it has stopped delivering, and nothing of it is
//! admitted. Whoever mirrors its messages makes them its own and delivers them. When the node is back it first asks
//! everybody what they have of its messages, lets go of that, and only then owns mail again, under a new owner epoch. It
//! asks once more before it delivers any: nobody takes over from a node that owns mail.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outgate_cluster::{AdmissionVerdict, Cluster, Command, Outcome};

use crate::mail::MessageId;
use crate::mirror::{Claims, Handed};
use crate::node::admission_id;
use crate::queue::{AdmissionTag, Entry, Sorted, sort};
use crate::submission::Line;

const INTERVAL: Duration = Duration::from_millis(500);
/// Between two looks at what is kept of one node that is down.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// A node that was removed may believe in its lease for this long.
const REMOVED_PATIENCE: Duration = Duration::from_secs(7);
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// How long a node that owns mail may keep silent about what it has before it is taken over from a third.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long a node tries to come back at a time, and then leaves its mail to those who may take it over: nobody does while
/// it asks.
const RETURNING_MAX: Duration = Duration::from_secs(20);
const RETURNING_PAUSE: Duration = Duration::from_secs(20);

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
        take_given(&line).await;
        give_away(&line).await;
        let (out, removed) = line.cluster.read(|state| (state.out(), state.removed()));
        seen.retain(|node, _| out.contains(node));
        for node in out.into_iter().filter(|node| *node != line.cluster.node_id()) {
            let (since, swept) = seen.entry(node).or_insert_with(|| (Instant::now(), None));
            let is_early = removed.contains(&node) && since.elapsed() < REMOVED_PATIENCE;
            if !is_early && swept.is_none_or(|at| at.elapsed() > SWEEP_INTERVAL) {
                *swept = Some(Instant::now());
                sweep(&line, node, since.elapsed() < SILENCE_MAX).await;
                sweep_held(&line, node).await;
            }
        }
        line.disks.forget_taken().await;
    }
}

/// A patient one waits for others who may have some of it already.
async fn sweep(line: &Line, node: u64, patient: bool) {
    let found = match line.disks.copies_of(node).await {
        Ok(found) if found.is_empty() => return,
        Ok(found) => found,
        Err(error) => return tracing::error!(node, %error, "cannot take over"),
    };
    let mut sorted = sort(&found, |tag| was_accepted(&line.cluster, tag));
    let ids: Vec<MessageId> = sorted.to_deliver.iter().map(|entry| entry.id).collect();
    let Some(claims) = claims_of_others(line, node, &ids, patient).await else { return };
    sorted.to_deliver.retain(|entry| !claims.holds(entry.id));
    let mut handed = claims.handed();
    handed.extend(sorted.to_drop.into_iter().map(|id| (id, None)));
    match line.disks.pass_on(&handed).await {
        Ok(()) => line.disks.let_go_of_copies(node, handed),
        Err(error) => tracing::error!(node, %error, "copies of what others have stay as they are"),
    }
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
        Ok(taken) => {
            let entries: Vec<Entry> = entries.into_iter().filter(|entry| taken.contains(&entry.id)).collect();
            tracing::warn!(node, messages = entries.len(), "took over the messages of a node that is down");
            line.queue.take_over(entries, &format!("node {node} is down"));
        }
        Err(error) => tracing::error!(node, %error, "cannot take over"),
    }
}

/// What other nodes have lost, and this one keeps.
async fn take_given(line: &Line) {
    // Who is to say what was accepted must know all that was.
    let given = match line.cluster.barrier().await {
        Ok(()) => line.disks.given().await,
        Err(_) => return,
    };
    let given = match given {
        Ok(given) => given,
        Err(error) => return tracing::error!(%error, "cannot take what other nodes have lost"),
    };
    for (node, found) in given.into_iter().filter(|(_, found)| !found.is_empty()) {
        let Sorted { to_deliver, to_drop } = sort(&found, |tag| was_accepted(&line.cluster, tag));
        line.disks.let_go_of_copies(node, to_drop.into_iter().map(|id| (id, None)).collect());
        match line.disks.take_given(node, to_deliver.iter().map(|entry| entry.id).collect()).await {
            Ok(taken) => {
                let entries: Vec<Entry> = to_deliver.into_iter().filter(|entry| taken.contains(&entry.id)).collect();
                tracing::warn!(node, messages = entries.len(), "took over what another node's disk has lost");
                line.queue.take_over(entries, &format!("the disk of node {node} has lost it"));
            }
            Err(error) => tracing::error!(node, %error, "cannot take what another node has lost"),
        }
    }
}

/// What cannot be read here and is elsewhere.
async fn give_away(line: &Line) {
    let gone = line.disks.give_away_unreadable().await;
    if !gone.is_empty() {
        tracing::error!(messages = gone.len(), "messages that this node cannot read were given to their mirrors");
        line.queue.let_go(gone.into_iter().map(|id| (id, None)).collect()).await;
    }
}

/// All that the node answered with 250 was decided before it was declared down.
fn was_accepted(cluster: &Cluster, tag: AdmissionTag) -> bool {
    let admission = cluster.read(|state| state.admission(admission_id(tag)));
    admission.is_some_and(|admission| admission.verdict == AdmissionVerdict::Accepted)
}

/// What others have of them already: a copy may have stayed where it was of no use. `None` = somebody does not say.
async fn claims_of_others(line: &Line, node: u64, ids: &[MessageId], patient: bool) -> Option<Claims> {
    let mut claims = Claims::default();
    for other in line.cluster.other_owners().iter().map(|node| node.id) {
        match line.disks.ask_claims(other, node, ids, &mut claims).await {
            Some(()) => {}
            None if patient => return None,
            None => tracing::warn!(silent = other, node, "taking over without knowing what another node has of it"),
        }
    }
    Some(claims)
}

/// Returns when this node owns mail and knows what of it others have; at once where it never ceased to own it.
pub(crate) async fn come_back(line: &Line) {
    come_up(line).await;
    line.disks.make_up_for_damage().await;
    line.disks.set_back(true);
}

async fn come_up(line: &Line) {
    let cluster = &line.cluster;
    let owns_mail = || cluster.read(|state| state.ownership(cluster.node_id()));
    if owns_mail().up {
        return;
    }
    // Until it is known twice what others have, nothing goes out.
    line.disks.set_back(false);
    let (mut begun, mut duplicates) = (Instant::now(), None);
    loop {
        let ownership = owns_mail();
        if cluster.barrier().await.is_ok()
            && let Some(found) = let_go(line).await
        {
            if duplicates.is_none() {
                line.metrics.duplicates.inc_by(found);
                duplicates = Some(found);
            }
            if ownership.up {
                break;
            }
            own_mail(cluster, ownership.epoch).await;
        } else if !ownership.up && begun.elapsed() > RETURNING_MAX {
            tokio::time::sleep(RETURNING_PAUSE).await;
            begun = Instant::now();
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

async fn own_mail(cluster: &Cluster, epoch: u64) {
    let command = Command::NodeUp { node: cluster.node_id(), owner_epoch: epoch };
    match cluster.propose(command).await.map(|applied| applied.outcome) {
        Ok(Outcome::Refused(refusal)) => tracing::warn!(%refusal, "this node does not own mail"),
        Ok(_) => tracing::info!(owner_epoch = epoch + 1, "this node owns mail"),
        Err(error) => tracing::warn!(%error, "this node does not own mail yet"),
    }
}

/// Lets go of what others have; returns how many messages go out twice: those that were taken over though we were done with
/// them. `None` = somebody did not say what it has.
async fn let_go(line: &Line) -> Option<u64> {
    let (here, disks) = (line.cluster.node_id(), &line.disks);
    let own = disks.own_ids().await.ok()?;
    let (mut claims, mut taken, mut held) = (Claims::default(), Vec::new(), Vec::new());
    for other in line.cluster.other_owners().iter().map(|node| node.id) {
        disks.tell_return(other).await?;
        let asked = disks.ask_claims(other, here, &own, &mut claims).await;
        let all = asked.and(disks.taken_by(other).await).zip(disks.held_taken_by(other).await);
        let Some((all, of_held)) = all else {
            tracing::warn!(node = other, "waiting for a node to say what it has taken over");
            return None;
        };
        taken.extend(all.into_iter().filter(|id| !disks.has(*id)));
        held.extend(of_held.into_iter().map(|id| (id, other)));
    }
    let handed: Handed = claims.handed();
    if !handed.is_empty() || !taken.is_empty() {
        tracing::warn!(messages = handed.len(), done = taken.len(), "others have taken over messages of this node");
    }
    disks.pass_on(&handed).await.ok()?;
    line.queue.let_go(handed).await;
    for (id, node) in held {
        line.quarantine.hand_over(id, node).await.ok()?;
    }
    // Otherwise it is not on disk.
    (!disks.has_failed()).then_some(taken.len() as u64)
}
