//! What a proposer hears when there is too much, when it takes too long, and when the store has stopped.

#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::Duration;

use outgate_cluster::command::{Actor, DomainPatch, Subject};
use outgate_cluster::store::Limits;
use outgate_cluster::{Cluster, Command, DomainName, OpenOptions, Outcome, ProposeError, Refusal, Wish};
use support::{add_users, admit, options};

async fn fresh(directory: &tempfile::TempDir, propose_timeout: Duration) -> Cluster {
    let options = OpenOptions { propose_timeout, ..options(directory.path()) };
    Cluster::init(&options).unwrap();
    Cluster::open(options).await.unwrap()
}

fn lock(reason_bytes: usize) -> Command {
    let subject = Subject { login: "nobody.example".parse().unwrap(), identity: None };
    Command::Lock { subject, actor: Actor("test".to_owned()), reason: "x".repeat(reason_bytes) }
}

fn add(name: &str) -> Command {
    Command::DomainAdd { name: DomainName::new(name).unwrap(), patch: DomainPatch::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_callers_gets_its_own_outcome() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = fresh(&directory, Duration::from_secs(20)).await;
    let callers: Vec<_> = (0..500)
        .map(|number| {
            let cluster = cluster.clone();
            // Every name twice: one of the two is refused, and the refusal names it.
            let name = format!("d{}.example", number / 2);
            tokio::spawn(async move { (name.clone(), cluster.propose(add(&name)).await.unwrap()) })
        })
        .collect();
    let (mut done, mut indexes) = (0, std::collections::BTreeSet::new());
    for caller in callers {
        let (name, applied) = caller.await.unwrap();
        indexes.insert(applied.index);
        if applied.outcome == Outcome::Done {
            done += 1;
        } else {
            let refused = Refusal::DomainExists(DomainName::new(&name).unwrap());
            assert_eq!(applied.outcome, Outcome::Refused(refused));
        }
    }
    assert_eq!(done, 250);
    assert!(indexes.len() < 400, "{} entries for 500 commands: nothing was packed", indexes.len());
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_a_caller_is_answered_as_one_and_does_not_nest() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = fresh(&directory, Duration::from_secs(20)).await;
    let noise: Vec<_> = (0..50)
        .map(|number| {
            let cluster = cluster.clone();
            tokio::spawn(async move { cluster.propose(add(&format!("n{number}.example"))).await.unwrap().outcome })
        })
        .collect();
    let batch = Command::Batch(vec![add("a.example"), Command::Tick, add("a.example")]);
    let outcome = cluster.propose(batch).await.unwrap().outcome;
    let refused = Outcome::Refused(Refusal::DomainExists(DomainName::new("a.example").unwrap()));
    assert_eq!(outcome, Outcome::Batch(vec![Outcome::Done, Outcome::Done, refused]));
    for other in noise {
        assert_eq!(other.await.unwrap(), Outcome::Done);
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_above_the_bound_is_refused_and_a_large_one_goes_alone() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = fresh(&directory, Duration::from_secs(20)).await;
    assert!(matches!(cluster.propose(lock(17 * 1024 * 1024)).await, Err(ProposeError::TooLarge { .. })));
    assert!(matches!(cluster.propose(lock(2 * 1024 * 1024)).await.unwrap().outcome, Outcome::Refused(_)));
    cluster.shutdown().await;
}

/// On one thread every caller runs before the task that packs.
#[tokio::test(flavor = "current_thread")]
async fn more_than_the_queue_holds_is_busy_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = fresh(&directory, Duration::from_secs(60)).await;
    // The queue holds 64 MiB: four of these.
    let callers: Vec<_> = (0..12)
        .map(|_| {
            let cluster = cluster.clone();
            tokio::spawn(async move { cluster.propose(lock(15 * 1024 * 1024)).await })
        })
        .collect();
    let mut busy = 0;
    for caller in callers {
        busy += usize::from(matches!(caller.await.unwrap(), Err(ProposeError::Busy)));
    }
    assert_eq!(busy, 8);
    assert!(cluster.propose(Command::Tick).await.is_ok());
    cluster.shutdown().await;
}

/// The store has threads of its own here: the reader blocks those that apply, and with them their timers.
#[test]
fn nobody_waits_longer_than_the_timeout_and_a_retry_is_harmless() {
    let directory = tempfile::tempdir().unwrap();
    let threads = || tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    let (store, caller) = (threads(), threads());
    let cluster = store.block_on(fresh(&directory, Duration::from_millis(300)));
    let user = store.block_on(add_users(&cluster, 1))[0];
    let used = || cluster.read(|state| state.limits(user, None).windows[2].used);
    // A reader that does not let go of the state keeps everything from being applied.
    let (held, holds) = std::sync::mpsc::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let reader = {
        let cluster = cluster.clone();
        std::thread::spawn(move || {
            cluster.read(|_| {
                held.send(()).unwrap();
                released.recv().unwrap();
            });
        })
    };
    holds.recv().unwrap();
    let once = admit(&cluster, user, Wish::Accept);
    assert!(matches!(caller.block_on(cluster.admit(once.clone())), Err(ProposeError::Timeout)));
    release.send(()).unwrap();
    reader.join().unwrap();
    support::wait_until("the late decision", || used() == 1);
    caller.block_on(cluster.admit(once)).unwrap();
    assert_eq!(used(), 1);
    store.block_on(cluster.shutdown());
}

#[tokio::test(flavor = "multi_thread")]
async fn time_passes_without_anybody_proposing() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    Cluster::init(&options).unwrap();
    let limits = Limits { idle_tick_interval: Duration::from_millis(100), ..Limits::default() };
    let cluster = Cluster::open_with(options, limits).await.unwrap();
    let begun = cluster.read(|state| state.now());
    support::wait_until("a tick", || cluster.read(|state| state.now()) > begun);
    assert!(cluster.now() >= cluster.read(|state| state.now()));
    cluster.shutdown().await;
}
