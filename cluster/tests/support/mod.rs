//! What the tests of the store share.

#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses a part")]
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "deadlines")]

pub(crate) mod disk;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use outgate_cluster::command::{DomainPatch, NewUser};
use outgate_cluster::state::Key;
use outgate_cluster::state::settings::Patch;
use outgate_cluster::{
    AdmissionId, AdmissionVerdict, Admit, Class, Cluster, Command, DomainName, Login, OpenOptions, Outcome, UserId,
    Wish,
};

/// Where the child of a test finds its directory; without it the child's test does nothing.
pub(crate) const CHILD_DIRECTORY: &str = "OUTGATE_TEST_CHILD_DIRECTORY";

pub(crate) fn options(directory: &Path) -> OpenOptions {
    OpenOptions::alone(directory.to_owned(), Duration::from_secs(20))
}

/// Users of `example.com` that no limit stops.
pub(crate) async fn add_users(cluster: &Cluster, count: usize) -> Vec<UserId> {
    let name = DomainName::new("example.com").unwrap();
    cluster.propose(Command::DomainAdd { name: name.clone(), patch: DomainPatch::default() }).await.unwrap();
    let keys = ["minute", "hour", "day", "week", "month"];
    let unlimited = keys.map(|window| format!("limit_per_{window}=0"));
    let settings = Patch::parse(&unlimited, outgate_cluster::state::settings::Level::User).unwrap();
    let mut users = Vec::new();
    for number in 0..count {
        let login = Login::Mailbox { local: format!("user{number}"), domain: name.clone() };
        let password_hash = Some("$argon2id$x".to_owned());
        let user = NewUser { login, owner: None, password_hash, settings: settings.clone() };
        let outcome = cluster.propose(Command::UserAdd { user }).await.unwrap().outcome;
        let Outcome::UserAdded(id) = outcome else { panic!("{outcome:?}") };
        users.push(id);
    }
    users
}

pub(crate) fn admit(cluster: &Cluster, user: UserId, wish: Wish) -> Admit {
    let id = cluster.next_admission();
    Admit {
        id,
        settled_below: 0,
        user,
        identity: None,
        wish,
        class: Class::Clean,
        score: 0,
        recipients: vec![id.sequence],
        null_sender: false,
        to_contact: false,
        message: format!("m{}", id.sequence),
    }
}

/// Everything that the state holds.
pub(crate) fn records(cluster: &Cluster) -> Vec<(Key, Vec<u8>)> {
    cluster.read(|state| state.keys().map(|key| (key.clone(), state.record(&key).unwrap())).collect())
}

/// Everything but time, which goes on while a node is idle.
pub(crate) fn lasting_records(cluster: &Cluster) -> Vec<(Key, Vec<u8>)> {
    records(cluster).into_iter().filter(|(key, _)| *key != Key::Clock).collect()
}

/// Waits until `reached` holds; the deadline is a bound, not a guess.
pub(crate) fn wait_until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !reached() {
        assert!(Instant::now() < deadline, "{what} did not happen in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs `test` of this very binary in another process, with its directory in the environment.
pub(crate) fn spawn_child(test: &str, directory: &Path) -> Child {
    Process::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD_DIRECTORY, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// What the child says: `ACK epoch sequence`, after the cluster acknowledged it.
pub(crate) async fn load_forever(directory: &Path) {
    let options = options(directory);
    match Cluster::init(&options) {
        Ok(()) | Err(outgate_cluster::OpenError::AlreadyInitialised(_)) => {}
        Err(error) => panic!("{error}"),
    }
    let cluster = Cluster::open(options).await.unwrap();
    let login = "user0@example.com".parse().unwrap();
    let user = match cluster.read(|state| state.user(&login)) {
        Some(user) => user.id,
        None => add_users(&cluster, 1).await[0],
    };
    say(&format!("READY {}", cluster.epoch()));
    let workers = (0..64).map(|_| {
        let cluster = cluster.clone();
        tokio::spawn(async move {
            loop {
                let admit = admit(&cluster, user, Wish::Accept);
                let id = admit.id;
                match cluster.admit(admit).await {
                    Ok(applied) if applied.outcome.verdict == AdmissionVerdict::Accepted => {
                        say(&format!("ACK {} {}", id.epoch, id.sequence));
                    }
                    Ok(_) => return,
                    Err(error) => return say(&format!("ERROR {error}")),
                }
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
    let failure = tokio::time::timeout(Duration::from_secs(5), cluster.failed()).await;
    say(&format!("FAILED {}", failure.unwrap_or_else(|_| "not said".to_owned())));
}

/// One line, written with one call, so that a kill never leaves half of one that counts.
fn say(line: &str) {
    drop(std::io::stdout().lock().write_all(format!("{line}\n").as_bytes()));
}

/// Follows a child's output in a thread of its own.
pub(crate) struct Heard {
    thread: std::thread::JoinHandle<Vec<String>>,
    count: std::sync::Arc<std::sync::atomic::AtomicUsize>,
}

pub(crate) fn listen(child: &mut Child) -> Heard {
    let output = BufReader::new(child.stdout.take().unwrap());
    let count = std::sync::Arc::<std::sync::atomic::AtomicUsize>::default();
    let counter = count.clone();
    let thread = std::thread::spawn(move || {
        let mut lines = Vec::new();
        for line in output.split(b'\n').map_while(Result::ok) {
            lines.push(String::from_utf8_lossy(&line).into_owned());
            counter.store(lines.len(), std::sync::atomic::Ordering::Relaxed);
        }
        lines
    });
    Heard { thread, count }
}

impl Heard {
    pub(crate) fn lines(&self) -> usize {
        self.count.load(std::sync::atomic::Ordering::Relaxed)
    }

    pub(crate) fn finish(self) -> Vec<String> {
        self.thread.join().unwrap()
    }
}

/// The admissions that a child said were acknowledged.
pub(crate) fn acknowledged(lines: &[String]) -> BTreeSet<(u64, u64)> {
    let parse = |line: &String| {
        let (epoch, sequence) = line.strip_prefix("ACK ")?.split_once(' ')?;
        Some((epoch.parse().ok()?, sequence.parse().ok()?))
    };
    lines.iter().filter_map(parse).collect()
}

/// Panics where an acknowledged admission of the last life is not known any more.
pub(crate) fn assert_known(cluster: &Cluster, acknowledged: &BTreeSet<(u64, u64)>) {
    let node = cluster.node_id();
    for (epoch, sequence) in acknowledged {
        let id = AdmissionId { node, epoch: *epoch, sequence: *sequence };
        assert!(cluster.read(|state| state.admission(id)).is_some(), "acknowledged and gone: {id:?}");
    }
}
