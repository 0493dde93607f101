#![allow(clippy::unwrap_used, reason = "tests")]

use outgate_cluster::OpenOptions;
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

async fn claims(keeper: &Keeper, asker: u64, of: u64, ids: &[MessageId]) -> Vec<(MessageId, Option<u64>)> {
    let ids = ids.iter().map(|id| Id::from(*id)).collect();
    let answer = keeper.claims(asker, of, ids).await.unwrap();
    let Answer::Owners(owners) = answer else { panic!("{answer:?}") };
    owners.into_iter().map(|(id, owner)| (id.into(), owner)).collect()
}

#[tokio::test]
async fn nothing_is_taken_from_a_node_that_is_not_down() {
    let directory = tempfile::tempdir().unwrap();
    let keeper = keeper(&directory).await;
    let id = store(&keeper, Whose::Of(7), true).await;
    assert!(!keeper.take(7, vec![id]).await.unwrap());
    assert_eq!(keeper.spool.look_up(vec![id]).await.unwrap(), [(id, Some((Whose::Of(7), true)))]);
    assert!(keeper.taken_owners().await.is_empty());
    // What it gives away itself is another matter.
    keeper.take_given(7, vec![id]).await.unwrap();
    assert_eq!(keeper.spool.look_up(vec![id]).await.unwrap(), [(id, Some((Whose::Ours, true)))]);
    assert_eq!(keeper.taken_owners().await, [7]);
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
    let of_other_list = store(&keeper, Whose::Of(8), true).await;
    keeper.take_given(7, vec![taken, done]).await.unwrap();
    keeper.take_given(8, vec![of_other_list]).await.unwrap();
    for id in [done, of_other_list] {
        keeper.spool.done((id, Whose::Ours), None);
    }
    let all = [copy, open, of_third, taken, done, of_other_list];
    let known = [(of_third, Some(3)), (taken, Some(1)), (done, None)];
    assert_eq!(claims(&keeper, 7, 7, &all).await, known, "the old owner asks");
    let first = [&[(copy, Some(1))], &known[..]].concat();
    assert_eq!(claims(&keeper, 9, 7, &all).await, first, "of two with a copy the one with the smaller number takes it");
    assert_eq!(claims(&keeper, 0, 7, &all).await, known);
    keeper.let_go_of(7, copy, Some(9));
    keeper.let_go_of(7, open, None);
    let found = keeper.spool.look_up(vec![copy, open]).await.unwrap();
    assert_eq!(found, [(copy, Some((Whose::Of(9), true))), (open, None)]);
}
