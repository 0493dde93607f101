//! A backup holds everything, is refused when a bit of it is wrong, and makes a new cluster.

mod support;

use std::time::Duration;

use outgate_cluster::backup::{self, Backup, BackupError};
use outgate_cluster::command::Subject;
use outgate_cluster::state::Key;
use outgate_cluster::{Actor, AdmissionVerdict, Cluster, Command, OpenOptions, Outcome, Refusal, Wish};
use support::{add_users, admit, lasting_records};

fn options(directory: &std::path::Path) -> OpenOptions {
    OpenOptions::alone(directory.to_owned(), Duration::from_secs(5))
}

/// Records that are not about the nodes of a cluster; time goes on.
fn of_users(cluster: &Cluster) -> Vec<(Key, Vec<u8>)> {
    let records = lasting_records(cluster).into_iter();
    records
        .filter(|(key, _)| {
            !matches!(
                key,
                Key::Clock
                    | Key::Admissions { .. }
                    | Key::AdmissionBlock { .. }
                    | Key::Formation
                    | Key::Node(_)
                    | Key::Token(_)
                    | Key::Ownership(_)
            )
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_cluster_is_another_one_with_the_same_users_windows_and_locks() {
    let base = tempfile::tempdir().unwrap();
    let old = options(&base.path().join("old"));
    Cluster::init(&old).unwrap();
    let old = Cluster::open(old).await.unwrap();
    let users = add_users(&old, 2_000).await;
    for user in &users[..50] {
        old.admit(admit(&old, *user, Wish::Accept)).await.unwrap();
    }
    let login = old.read(|state| state.user_by_id(users[7]).unwrap().login);
    let (subject, actor) = (Subject { login: login.clone(), identity: None }, Actor("test".to_owned()));
    old.propose(Command::Lock { subject, actor, reason: "why".to_owned() }).await.unwrap();
    let path = base.path().join("backup");
    let bytes = backup::keep(old.backup().await.unwrap(), &path).unwrap();
    assert_eq!(bytes, path.metadata().unwrap().len());
    assert!(backup::keep(old.backup().await.unwrap(), &path).is_err(), "nothing is overwritten");
    assert_eq!(Backup::read(&path).unwrap().summary.users, 2_000);
    let new = options(&base.path().join("new"));
    let restored = Backup::read(&path).unwrap().restore(new.clone()).await.unwrap();
    assert_eq!(of_users(&restored), of_users(&old));
    let locked = restored.admit(admit(&restored, users[7], Wish::Accept)).await.unwrap();
    assert!(matches!(locked.outcome.verdict, AdmissionVerdict::Locked { .. }));
    let more = restored.admit(admit(&restored, users[0], Wish::Accept)).await.unwrap();
    assert!(more.outcome.charges.iter().any(|charge| charge.used == 2), "{:?}", more.outcome.charges);
    restored.shutdown().await;
    let restored = Cluster::open(new).await.unwrap();
    assert_eq!(restored.read(|state| state.nodes().len()), 1);
    // What is there already is not overwritten, and another directory's node is not either.
    let record = old.read(|state| state.record(&Key::User(users[3]))).unwrap();
    let over = Command::Restore { records: vec![(Key::User(users[3]), outgate_cluster::store::codec::Blob(record))] };
    assert_eq!(restored.propose(over).await.unwrap().outcome, Outcome::Refused(Refusal::NotNew));
    restored.shutdown().await;
    old.shutdown().await;
    let taken = Backup::read(&path).unwrap().restore(options(&base.path().join("old"))).await.err().unwrap();
    assert!(matches!(taken, BackupError::Open(_)), "{taken}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_or_a_cut_is_refused() {
    let base = tempfile::tempdir().unwrap();
    let old = options(&base.path().join("old"));
    Cluster::init(&old).unwrap();
    let old = Cluster::open(old).await.unwrap();
    add_users(&old, 3).await;
    let path = base.path().join("backup");
    backup::keep(old.backup().await.unwrap(), &path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for at in (0..whole.len()).step_by(7) {
        let mut broken = whole.clone();
        broken[at] ^= 0x10;
        std::fs::write(&path, &broken).unwrap();
        let refused = Backup::read(&path).err().unwrap();
        assert!(matches!(refused, BackupError::Damaged(..)), "octet {at}: {refused}");
    }
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert!(Backup::read(&path).is_err());
    old.shutdown().await;
}
