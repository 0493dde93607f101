#![allow(clippy::unwrap_used, reason = "tests")]

use outgate_cluster::{Actor, Command, OpenOptions};
use tempfile::TempDir;

use super::*;
use crate::config::SpoolConfig;

/// As node 1.
async fn keeper(directory: &TempDir) -> Keeper {
    let options = OpenOptions::alone(directory.path().join("cluster"), Duration::from_secs(5));
    Cluster::init(&options).unwrap();
    let cluster = Cluster::open(options).await.unwrap();
    let queue = directory.path().join("queue");
    let metrics = crate::metrics::Metrics::default();
    let config = SpoolConfig { free_min_bytes: 0, ..SpoolConfig::default() };
    let (spool, _) = Spool::open(&queue, &config, metrics.spool_sync_seconds).await.unwrap();
    let quarantine = Quarantine::open(&directory.path().join("quarantine"), 1).unwrap();
    Keeper::open(&queue, spool, cluster, quarantine).await.unwrap()
}

async fn store(keeper: &Keeper, whose: Whose, accepted: bool) -> MessageId {
    let id = MessageId::generate();
    keeper.spool.store((id, whose), Vec::new(), Bytes::from_static(b"body"), accepted).await.unwrap();
    id
}

async fn claims(keeper: &Keeper, asker: u64, of: u64, ids: &[MessageId]) -> Vec<(MessageId, Claim)> {
    let ids = ids.iter().map(|id| Id::from(*id)).collect();
    let answer = keeper.claims(asker, of, ids).await.unwrap();
    let Answer::Claims(claims) = answer else { panic!("{answer:?}") };
    claims.into_iter().map(|(id, claim)| (id.into(), claim)).collect()
}

#[tokio::test]
async fn messages_are_taken_from_nodes_that_are_down_and_not_about_to_return() {
    let directory = tempfile::tempdir().unwrap();
    let keeper = keeper(&directory).await;
    keeper.cluster.propose(Command::NodeUp { node: 1, owner_epoch: 0 }).await.unwrap();
    while !keeper.cluster.holds_lease() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!keeper.may_take(7, Instant::now()) && keeper.cluster.read(|state| !state.is_out(7)));
    let of_seven = store(&keeper, Whose::Of(7), true).await;
    assert!(keeper.take(7, vec![of_seven]).await.unwrap().is_empty(), "it is no node at all");
    let (id, gone) = (store(&keeper, Whose::Of(2), true).await, MessageId::generate());
    remove_node_2(&keeper.cluster).await;
    assert!(!keeper.may_take(2, Instant::now() - TAKING_MAX), "that was long ago");
    keeper.note_return(2).await.unwrap_err();
    keeper.set_back(true);
    keeper.note_return(2).await.unwrap();
    assert!(keeper.take(2, vec![id]).await.unwrap().is_empty(), "it is about to return");
    assert!(keeper.taken_owners().await.is_empty() && !keeper.has_come_back(2));
    keeper.returning().clear();
    assert_eq!(keeper.take(2, vec![id, gone]).await.unwrap(), BTreeSet::from([id]), "what is gone is not taken");
    assert_eq!(keeper.spool.look_up(vec![id]).await.unwrap(), [(id, Some((Whose::Ours, true)))]);
    assert_eq!(keeper.taken_owners().await, [2]);
}

/// Node 1 is up and has said that it returned, long before its disk lost something.
#[tokio::test]
async fn whoever_gave_a_message_away_hears_that_it_was_taken() {
    let directory = tempfile::tempdir().unwrap();
    let keeper = keeper(&directory).await;
    keeper.cluster.propose(Command::NodeUp { node: 1, owner_epoch: 0 }).await.unwrap();
    keeper.set_back(true);
    keeper.note_return(1).await.unwrap();
    assert!(keeper.knows_what_was_taken(1));
    let given = Question::Yours { ids: vec![MessageId::generate().into()] };
    assert!(matches!(keeper.answer(1, given).await, Answer::Done));
    assert!(!keeper.knows_what_was_taken(1), "it has not asked what became of it");
}

/// It joins and leaves.
async fn remove_node_2(cluster: &Cluster) {
    let (token, actor) = ([7; 32], Actor("test".to_owned()));
    cluster.propose(Command::TokenPut { token, valid_ms: 60_000, actor: actor.clone() }).await.unwrap();
    cluster.propose(Command::Join { token, key: [8; 32], address: "127.0.0.1:2".to_owned() }).await.unwrap();
    cluster.propose(Command::NodeRemove { node: 2, actor }).await.unwrap();
    assert!(cluster.read(|state| state.is_out(2)));
}

#[tokio::test]
async fn whose_a_message_is_by_now() {
    let directory = tempfile::tempdir().unwrap();
    let keeper = keeper(&directory).await;
    let copy = store(&keeper, Whose::Of(7), true).await;
    let open = store(&keeper, Whose::Of(7), false).await;
    let of_third = store(&keeper, Whose::Of(3), true).await;
    let taken = store(&keeper, Whose::Of(7), true).await;
    let done = store(&keeper, Whose::Of(7), true).await;
    // Node 7 had it, node 8 took it, and this one from that.
    let taken_twice = store(&keeper, Whose::Of(8), true).await;
    keeper.take_given(7, vec![taken, done]).await.unwrap();
    keeper.take_given(8, vec![taken_twice]).await.unwrap();
    for id in [done, taken_twice] {
        keeper.spool.done((id, Whose::Ours), None);
    }
    let all = [copy, open, of_third, taken, done, taken_twice];
    let known = [(taken, Claim::Mine), (done, Claim::Done), (taken_twice, Claim::Done)];
    assert_eq!(claims(&keeper, 7, 7, &all).await, known, "the old owner asks; copies of a third are hearsay");
    let first = [&[(copy, Claim::Soon)], &known[..]].concat();
    assert_eq!(claims(&keeper, 9, 7, &all).await, first, "of two with a copy the one with the smaller number takes it");
    assert_eq!(claims(&keeper, 0, 7, &all).await, known);
    keeper.let_go_of(7, copy, Some(9));
    keeper.let_go_of(7, open, None);
    let found = keeper.spool.look_up(vec![copy, open]).await.unwrap();
    assert_eq!(found, [(copy, Some((Whose::Of(9), true))), (open, None)]);
    keeper.strike_taken(BTreeSet::from([done])).await.unwrap();
    assert_eq!(claims(&keeper, 7, 7, &[done]).await, [], "it was passed on");
}
