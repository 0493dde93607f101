//! What was acknowledged is there again: after a shutdown, after SIGKILL at any moment, after damage to a copy.

#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use outgate_cluster::{AdmissionVerdict, Cluster, Command, OpenError, Outcome, Wish};
use support::{add_users, admit, options};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_decided_is_there_after_a_shutdown() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    Cluster::init(&options).unwrap();
    let cluster = Cluster::open(options.clone()).await.unwrap();
    assert!(cluster.is_ready());
    assert!(matches!(Cluster::open(options.clone()).await, Err(OpenError::InUse(_))));
    let users = add_users(&cluster, 2).await;
    let decided = cluster.admit(admit(&cluster, users[0], Wish::Accept)).await.unwrap();
    assert_eq!(decided.outcome.verdict, AdmissionVerdict::Accepted);
    let before = cluster.read(|state| state.limits(users[0], None).windows);
    let epoch = cluster.epoch();
    cluster.shutdown().await;
    assert!(!cluster.is_ready());
    assert!(cluster.propose(Command::Tick).await.is_err());

    let again = Cluster::open(options).await.unwrap();
    assert_eq!(again.epoch(), epoch + 1);
    assert_eq!(again.read(|state| state.limits(users[0], None).windows[2].used), before[2].used);
    assert!(matches!(again.propose(Command::Tick).await.unwrap().outcome, Outcome::Done));
    again.shutdown().await;
}
