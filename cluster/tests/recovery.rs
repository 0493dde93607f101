//! What was acknowledged is there again: after a shutdown, after SIGKILL at any moment, after damage to a copy.

#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use outgate_cluster::store::Limits;
use outgate_cluster::{
    AdmissionVerdict, Cluster, Command, OpenError, OpenOptions, Outcome, ProposeError, UserId, Wish,
};
use support::{
    acknowledged, add_users, admit, assert_known, lasting_records, listen, options, spawn_child, wait_until,
};

const KILL_ROUNDS: u32 = 24;

/// Snapshots after few entries, so that a test sees several.
fn small() -> Limits {
    Limits {
        checkpoint_interval: Duration::from_millis(100),
        snapshot_log_bytes_min: u64::MAX,
        snapshot_log_entries_max: 60,
        log_entries_kept: 5,
        free_bytes_min: 0,
        ..Limits::default()
    }
}

async fn fresh(directory: &Path, limits: Limits) -> (Cluster, OpenOptions, Vec<UserId>) {
    let options = options(directory);
    Cluster::init(&options).unwrap();
    let cluster = Cluster::open_with(options.clone(), limits).await.unwrap();
    let users = add_users(&cluster, 3).await;
    (cluster, options, users)
}

async fn admit_some(cluster: &Cluster, users: &[UserId], count: usize) {
    for number in 0..count {
        let decided = cluster.admit(admit(cluster, users[number % users.len()], Wish::Accept)).await.unwrap();
        assert_eq!(decided.outcome.verdict, AdmissionVerdict::Accepted);
    }
}

fn snapshots(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory.join("snapshot")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|end| end == "snapshot")).collect()
}

/// Proposes until a snapshot newer than `than` is the only one.
async fn next_snapshot(cluster: &Cluster, users: &[UserId], directory: &Path, than: Option<&PathBuf>) -> PathBuf {
    for _ in 0..600 {
        admit_some(cluster, users, 10).await;
        match snapshots(directory).as_slice() {
            [only] if than.is_none_or(|than| only > than) => return only.clone(),
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    panic!("no snapshot was written");
}

fn flip(path: &Path, at: impl FnOnce(usize) -> usize) {
    let mut bytes = fs::read(path).unwrap();
    let at = at(bytes.len());
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_decided_is_there_after_a_shutdown() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    assert!(matches!(Cluster::open(options.clone()).await, Err(OpenError::NotInitialised(_))));
    let (cluster, options, users) = fresh(directory.path(), Limits::default()).await;
    assert!(matches!(Cluster::init(&options), Err(OpenError::InUse(_) | OpenError::AlreadyInitialised(_))));
    assert!(cluster.is_ready());
    assert!(matches!(Cluster::open(options.clone()).await, Err(OpenError::InUse(_))));
    admit_some(&cluster, &users, 5).await;
    let (before, epoch) = (lasting_records(&cluster), cluster.epoch());
    cluster.shutdown().await;
    assert!(!cluster.is_ready());
    assert!(cluster.propose(Command::Tick).await.is_err());

    let again = Cluster::open(options).await.unwrap();
    assert_eq!(again.epoch(), epoch + 1);
    assert_eq!(lasting_records(&again), before);
    assert!(matches!(again.propose(Command::Tick).await.unwrap().outcome, Outcome::Done));
    again.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_or_damaged_checkpoint_is_built_anew_from_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let (cluster, options, users) = fresh(directory.path(), Limits::default()).await;
    admit_some(&cluster, &users, 40).await;
    let before = lasting_records(&cluster);
    cluster.shutdown().await;

    fs::remove_dir_all(&state).unwrap();
    let cluster = Cluster::open(options.clone()).await.unwrap();
    assert_eq!(lasting_records(&cluster), before);
    cluster.shutdown().await;

    // Opens empty, without an error: its meta is missing.
    fs::remove_dir_all(&state).unwrap();
    drop(sled::Config::new().path(&state).segment_size(8 * 1024 * 1024).open().unwrap());
    let cluster = Cluster::open(options.clone()).await.unwrap();
    assert_eq!(lasting_records(&cluster), before);
    cluster.shutdown().await;

    // Does not open at all.
    fs::write(state.join("conf"), b"not sled's").unwrap();
    let cluster = Cluster::open(options.clone()).await.unwrap();
    assert_eq!(lasting_records(&cluster), before);
    assert!(directory.path().join("state.damaged").exists());
    cluster.shutdown().await;

    // The first half of the data is gone.
    let bytes = fs::read(state.join("db")).unwrap();
    fs::write(state.join("db"), &bytes[..bytes.len() / 2]).unwrap();
    let cluster = Cluster::open(options.clone()).await.unwrap();
    assert_eq!(lasting_records(&cluster), before);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_snapshot_replaces_the_first_and_carries_the_state_with_the_log_behind_it() {
    let directory = tempfile::tempdir().unwrap();
    let (cluster, options, users) = fresh(directory.path(), small()).await;
    let first = next_snapshot(&cluster, &users, directory.path(), None).await;
    let second = next_snapshot(&cluster, &users, directory.path(), Some(&first)).await;
    assert!(second > first && !first.exists());
    admit_some(&cluster, &users, 7).await;
    let before = lasting_records(&cluster);
    cluster.shutdown().await;

    fs::remove_dir_all(directory.path().join("state")).unwrap();
    let cluster = Cluster::open_with(options.clone(), small()).await.unwrap();
    assert_eq!(lasting_records(&cluster), before);
    cluster.shutdown().await;

    // A damaged snapshot alone is no loss: the checkpoint holds as much.
    let newest = snapshots(directory.path()).pop().unwrap();
    flip(&newest, |length| length / 2);
    let cluster = Cluster::open_with(options.clone(), small()).await.unwrap();
    assert_eq!(lasting_records(&cluster), before);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_both_copies_gone_it_says_so_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (cluster, options, users) = fresh(directory.path(), small()).await;
    let first = next_snapshot(&cluster, &users, directory.path(), None).await;
    next_snapshot(&cluster, &users, directory.path(), Some(&first)).await;
    cluster.shutdown().await;
    fs::remove_dir_all(directory.path().join("state")).unwrap();
    let newest = snapshots(directory.path()).pop().unwrap();
    flip(&newest, |length| length / 2);
    match Cluster::open_with(options.clone(), small()).await {
        Err(error @ OpenError::Damaged(..)) => {
            let told = error.to_string();
            assert!(told.starts_with(newest.to_str().unwrap()) && told.contains("restore a backup"), "{told}");
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it opened"),
    }
    fs::remove_file(&newest).unwrap();
    assert!(matches!(Cluster::open_with(options, small()).await, Err(OpenError::Damaged(..))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_log_is_never_taken_for_a_new_node() {
    let directory = tempfile::tempdir().unwrap();
    let (cluster, options, users) = fresh(directory.path(), Limits::default()).await;
    admit_some(&cluster, &users, 3).await;
    cluster.shutdown().await;
    fs::remove_dir_all(directory.path().join("log")).unwrap();
    assert!(matches!(Cluster::open(options).await, Err(OpenError::Damaged(_, what)) if what.contains("log is gone")));
}

/// Otherwise a node could vote twice in one term.
#[tokio::test(flavor = "multi_thread")]
async fn a_vote_that_is_older_than_the_log_or_gone_is_found_out() {
    let directory = tempfile::tempdir().unwrap();
    let (cluster, options, users) = fresh(directory.path(), Limits::default()).await;
    cluster.shutdown().await;
    let vote = directory.path().join("vote");
    let old = fs::read(&vote).unwrap();
    let cluster = Cluster::open(options.clone()).await.unwrap();
    admit_some(&cluster, &users, 3).await;
    cluster.shutdown().await;
    let newest = fs::read(&vote).unwrap();
    fs::write(&vote, old).unwrap();
    let refused = Cluster::open(options.clone()).await.err().unwrap().to_string();
    assert!(refused.contains("vote") && refused.contains("remove this node and join anew"), "{refused}");
    fs::remove_file(&vote).unwrap();
    assert!(matches!(Cluster::open(options.clone()).await, Err(OpenError::Damaged(path, _)) if path == vote));
    fs::write(&vote, newest).unwrap();
    Cluster::open(options).await.unwrap().shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_room_refuses_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (cluster, options, users) = fresh(directory.path(), Limits::default()).await;
    admit_some(&cluster, &users, 5).await;
    let before = lasting_records(&cluster);
    cluster.shutdown().await;
    let short = Limits { free_bytes_min: u64::MAX, ..Limits::default() };
    let cluster = Cluster::open_with(options.clone(), short).await.unwrap();
    let mut accepted = 0;
    loop {
        match cluster.admit(admit(&cluster, users[0], Wish::Accept)).await {
            Ok(_) => accepted += 1,
            Err(ProposeError::DiskFull) => break,
            Err(other) => panic!("{other}"),
        }
    }
    let used = cluster.read(|state| state.limits(users[0], None).windows[0].used);
    assert!(cluster.is_ready(), "it waits for room, it does not stop");
    cluster.shutdown().await;
    let short = Limits { free_bytes_min: u64::MAX, idle_tick_interval: Duration::from_millis(10), ..Limits::default() };
    let cluster = Cluster::open_with(options.clone(), short).await.unwrap();
    let then = cluster.applied();
    wait_until("time goes on without room", || cluster.applied() > then + 5);
    assert!(matches!(cluster.propose(Command::Tick).await, Err(ProposeError::DiskFull)));
    cluster.shutdown().await;
    let cluster = Cluster::open(options).await.unwrap();
    assert_eq!(cluster.read(|state| state.limits(users[0], None).windows[0].used), used, "{accepted} accepted");
    assert!(lasting_records(&cluster).len() >= before.len());
    admit_some(&cluster, &users, 1).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_a_restart_is_not_counted_twice() {
    let directory = tempfile::tempdir().unwrap();
    let (cluster, options, users) = fresh(directory.path(), Limits::default()).await;
    let once = admit(&cluster, users[0], Wish::Accept);
    cluster.admit(once.clone()).await.unwrap();
    cluster.shutdown().await;
    let cluster = Cluster::open(options).await.unwrap();
    assert!(cluster.read(|state| state.admission(once.id)).is_some());
    let used = cluster.read(|state| state.limits(users[0], None).windows[2].used);
    cluster.admit(once).await.unwrap();
    assert_eq!(cluster.read(|state| state.limits(users[0], None).windows[2].used), used);
    cluster.shutdown().await;
}

/// Not a test of its own: the process that is killed.
#[tokio::test(flavor = "multi_thread")]
async fn child_under_load() {
    if let Some(directory) = std::env::var_os(support::CHILD_DIRECTORY) {
        support::load_forever(Path::new(&directory)).await;
    }
}

#[test]
fn sigkill_at_any_moment_loses_nothing_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut total = 0;
    for round in 0..KILL_ROUNDS {
        let mut child = spawn_child("child_under_load", directory.path());
        let heard = listen(&mut child);
        // The moment differs from round to round: while it opens, at the first decisions, around a checkpoint, later.
        if round % 4 != 0 {
            wait_until("the first acknowledgement", || heard.lines() > 10);
        }
        std::thread::sleep(Duration::from_millis(u64::from(round * 97 % 1_400)));
        child.kill().unwrap();
        child.wait().unwrap();
        let lines = heard.finish();
        assert!(!lines.iter().any(|line| line.starts_with("ERROR")), "{lines:?}");
        let acknowledged = acknowledged(&lines);
        total += acknowledged.len();
        runtime.block_on(async {
            match Cluster::open(options(directory.path())).await {
                Ok(cluster) => {
                    assert_known(&cluster, &acknowledged);
                    cluster.shutdown().await;
                }
                Err(OpenError::NotInitialised(_)) => assert!(acknowledged.is_empty()),
                Err(error) => panic!("round {round}: {error}"),
            }
        });
    }
    assert!(total > 1_000, "only {total} acknowledged decisions were tested");
}
