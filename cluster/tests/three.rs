//! Three nodes in one process, over real sockets: they join, agree, and stay right while one is away.

#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::Path;
use std::process::Command as Process;
use std::time::Duration;

use outgate_cluster::command::{DomainPatch, Subject};
use outgate_cluster::state::Key;
use outgate_cluster::store::identity::Home;
use outgate_cluster::store::snapshot::SnapshotFile;
use outgate_cluster::store::{Limits, checkpoint, codec};
use outgate_cluster::{
    Actor, AdmissionVerdict, Cluster, Command, DomainName, JoinError, Login, OpenOptions, Outcome, Token, UserId, Wish,
};
use support::{add_users, admit, lasting_records, wait_until};
use tempfile::TempDir;

fn options(directory: &Path, listen: &str) -> OpenOptions {
    OpenOptions {
        directory: directory.to_owned(),
        propose_timeout: Duration::from_secs(5),
        listen: Some(listen.parse().unwrap()),
        advertise: None,
    }
}

fn actor() -> Actor {
    Actor("test".to_owned())
}

struct Three {
    directories: Vec<TempDir>,
    nodes: Vec<Option<Cluster>>,
    addresses: Vec<String>,
}

impl Three {
    /// The first node, alone.
    async fn first() -> Self {
        let mut three = Self { directories: Vec::new(), nodes: Vec::new(), addresses: Vec::new() };
        let directory = tempfile::tempdir().unwrap();
        let options = options(directory.path(), "127.0.0.1:0");
        Cluster::init(&options).unwrap();
        three.take(directory, Cluster::open(options).await.unwrap());
        three
    }

    async fn start() -> Self {
        let mut three = Self::first().await;
        three.join().await;
        three.join().await;
        three.wait_for_voters(&[1, 2, 3]);
        three
    }

    fn take(&mut self, directory: TempDir, cluster: Cluster) {
        self.addresses.push(cluster.address().unwrap().to_string());
        self.directories.push(directory);
        self.nodes.push(Some(cluster));
    }

    async fn join(&mut self) {
        let token = self.node(1).token(Duration::from_secs(60), actor()).await.unwrap();
        let token: Token = token.to_string().parse().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let address = free_address();
        let options = options(directory.path(), &address);
        let id = Cluster::join(&options, &self.addresses[0], &token, &address).await.unwrap();
        assert_eq!(id, self.nodes.len() as u64 + 1);
        let cluster = Cluster::open(options).await.unwrap();
        wait_until("a joined node is ready", || cluster.is_ready());
        self.take(directory, cluster);
    }

    fn node(&self, id: usize) -> &Cluster {
        self.nodes[id - 1].as_ref().unwrap()
    }

    fn running(&self) -> impl Iterator<Item = &Cluster> {
        self.nodes.iter().flatten()
    }

    fn wait_for_voters(&self, voters: &[u64]) {
        for node in self.running() {
            wait_until("the same voters everywhere", || node.voters() == voters && node.is_ready());
        }
    }

    async fn stop(&mut self, id: u64) {
        self.nodes[usize::try_from(id).unwrap() - 1].take().unwrap().shutdown().await;
    }

    async fn restart(&mut self, id: u64, limits: Limits) {
        let place = usize::try_from(id).unwrap() - 1;
        let options = options(self.directories[place].path(), &self.addresses[place]);
        self.nodes[place] = Some(Cluster::open_with(options, limits).await.unwrap());
    }

    /// All die at once, and are back with what their disks held.
    async fn crash(&mut self) {
        let ids = 1..=self.nodes.len() as u64;
        let copies: Vec<TempDir> = self.directories.iter().map(|directory| copy(directory.path())).collect();
        for id in ids.clone() {
            self.stop(id).await;
        }
        self.directories = copies;
        for id in ids {
            self.restart(id, Limits::default()).await;
        }
    }

    /// All running nodes have applied the same and hold the same.
    async fn assert_alike(&self) {
        for node in self.running() {
            node.barrier().await.unwrap();
        }
        wait_until("equal states", || {
            let mut states = self.running().map(|node| (node.applied(), lasting_records(node)));
            let first = states.next().unwrap();
            states.all(|state| state == first)
        });
    }

    async fn shutdown(mut self) {
        for node in self.nodes.iter_mut().filter_map(Option::take) {
            node.shutdown().await;
        }
    }
}

fn copy(from: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    let copied = Process::new("cp").arg("-a").arg(from.join(".")).arg(to.path()).status().unwrap();
    assert!(copied.success());
    to
}

/// A port that was free a moment ago.
fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

async fn limited_user(cluster: &Cluster, limit: u64) -> UserId {
    let user = add_users(cluster, 1).await[0];
    let settings = outgate_cluster::state::settings::Patch::parse(
        &[format!("limit_per_hour={limit}")],
        outgate_cluster::state::settings::Level::User,
    )
    .unwrap();
    let login: Login = "user0@example.com".parse().unwrap();
    let patch = outgate_cluster::command::UserPatch { settings, ..Default::default() };
    assert_eq!(cluster.propose(Command::UserSet { login, patch }).await.unwrap().outcome, Outcome::Done);
    user
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn any_node_decides_and_all_agree() {
    let three = Three::start().await;
    let user = limited_user(three.node(3), 100).await;
    let senders: Vec<_> = (0..300)
        .map(|number| {
            let node = three.node(number % 3 + 1).clone();
            tokio::spawn(async move { node.admit(admit(&node, user, Wish::Accept)).await.unwrap().outcome.verdict })
        })
        .collect();
    let mut accepted = 0;
    for sender in senders {
        accepted += usize::from(sender.await.unwrap() == AdmissionVerdict::Accepted);
    }
    assert_eq!(accepted, 100);
    three.assert_alike().await;
    three.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_lock_holds_everywhere_from_the_moment_it_is_acknowledged() {
    let three = Three::start().await;
    let user = add_users(three.node(1), 1).await[0];
    for round in 0..30 {
        let (locker, other) = (three.node(round % 3 + 1), three.node((round + 1) % 3 + 1));
        let subject = Subject { login: "user0@example.com".parse().unwrap(), identity: None };
        let lock = Command::Lock { subject: subject.clone(), actor: actor(), reason: "test".to_owned() };
        locker.propose(lock).await.unwrap();
        let verdict = other.admit(admit(other, user, Wish::Accept)).await.unwrap().outcome.verdict;
        assert!(matches!(verdict, AdmissionVerdict::Locked { .. }), "{verdict:?}");
        other.propose(Command::Unlock { subject, actor: actor() }).await.unwrap();
        let verdict = locker.admit(admit(locker, user, Wish::Accept)).await.unwrap().outcome.verdict;
        assert_eq!(verdict, AdmissionVerdict::Accepted);
    }
    three.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_others_go_on_without_the_leader_and_it_catches_up() {
    let mut three = Three::start().await;
    let user = add_users(three.node(1), 1).await[0];
    let leader = three.node(1).leader().unwrap();
    three.stop(leader).await;
    let left = three.running().next().unwrap().clone();
    wait_until("another leader", || left.leader().is_some_and(|other| other != leader) && left.is_ready());
    for node in three.running() {
        let verdict = node.admit(admit(node, user, Wish::Accept)).await.unwrap().outcome.verdict;
        assert_eq!(verdict, AdmissionVerdict::Accepted);
    }
    three.restart(leader, Limits::default()).await;
    three.wait_for_voters(&[1, 2, 3]);
    three.assert_alike().await;
    three.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn behind_a_barrier_is_all_that_was_acknowledged_before_all_nodes_died() {
    let mut three = Three::start().await;
    for round in 0..5 {
        let name = DomainName::new(&format!("d{round}.example")).unwrap();
        let add = Command::DomainAdd { name: name.clone(), patch: DomainPatch::default() };
        assert_eq!(three.node(2).propose(add).await.unwrap().outcome, Outcome::Done);
        three.crash().await;
        for node in three.running() {
            while node.barrier().await.is_err() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert!(node.read(|state| state.domain(&name)).is_some(), "round {round}");
        }
        three.wait_for_voters(&[1, 2, 3]);
        three.assert_alike().await;
    }
    three.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn without_a_majority_nothing_is_decided_and_everything_comes_back() {
    let mut three = Three::start().await;
    let user = add_users(three.node(1), 1).await[0];
    let leader = three.node(1).leader().unwrap();
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    for other in &others {
        three.stop(*other).await;
    }
    let alone = three.running().next().unwrap().clone();
    wait_until("it notices that it is alone", || !alone.is_ready());
    assert!(alone.admit(admit(&alone, user, Wish::Accept)).await.is_err());
    assert!(alone.barrier().await.is_err());
    three.restart(others[0], Limits::default()).await;
    wait_until("two of three are enough", || alone.is_ready());
    let verdict = alone.admit(admit(&alone, user, Wish::Accept)).await.unwrap().outcome.verdict;
    assert_eq!(verdict, AdmissionVerdict::Accepted);
    three.restart(others[1], Limits::default()).await;
    three.wait_for_voters(&[1, 2, 3]);
    three.assert_alike().await;
    three.shutdown().await;
}

/// A snapshot every hundred entries, and ten entries kept behind it.
fn short() -> Limits {
    Limits { snapshot_log_bytes_min: 1, snapshot_log_entries_max: 100, log_entries_kept: 10, ..Limits::default() }
}

/// Stops a follower, and cuts the others' log behind what it has.
async fn leave_behind(three: &mut Three) -> u64 {
    let away = (1..=3).find(|id| Some(*id) != three.node(1).leader()).unwrap();
    three.stop(away).await;
    for id in (1..=3).filter(|id| *id != away) {
        three.stop(id).await;
        three.restart(id, short()).await;
    }
    let left = three.running().next().unwrap().clone();
    wait_until("two of three are enough", || left.is_ready());
    for number in 0..400 {
        let name = DomainName::new(&format!("d{number}.example")).unwrap();
        left.propose(Command::DomainAdd { name, patch: DomainPatch::default() }).await.unwrap();
    }
    wait_until("the log is cut", || three.running().all(|node| node.log_begins() > 100));
    away
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_damaged_snapshot_is_refused_and_written_again() {
    let mut three = Three::start().await;
    let away = leave_behind(&mut three).await;
    let leader = three.running().next().unwrap().leader().unwrap();
    // The last snapshot that the entries were worth.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let directory = three.directories[usize::try_from(leader).unwrap() - 1].path().join("snapshot");
    let mut files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let file = files.find(|path| path.extension().is_some_and(|end| end == "snapshot")).unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    three.restart(away, short()).await;
    three.wait_for_voters(&[1, 2, 3]);
    let [away, leader] = [away, leader].map(|id| three.node(usize::try_from(id).unwrap()));
    wait_until("it has caught up", || away.applied() >= leader.applied());
    // It may be of the same entry.
    assert!(!file.exists() || SnapshotFile { path: file }.load().is_ok(), "what is damaged has been replaced");
    three.assert_alike().await;
    three.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_that_was_long_away_gets_a_snapshot() {
    let mut three = Three::start().await;
    let away = leave_behind(&mut three).await;
    let place = usize::try_from(away).unwrap() - 1;
    let before = copy(three.directories[place].path());
    three.restart(away, short()).await;
    three.wait_for_voters(&[1, 2, 3]);
    three.assert_alike().await;
    // What came by snapshot is on its disk.
    three.stop(away).await;
    three.restart(away, short()).await;
    three.wait_for_voters(&[1, 2, 3]);
    three.assert_alike().await;
    // As a crash leaves it that comes between the snapshot and everything that follows from it.
    three.stop(away).await;
    let snapshot = three.directories[place].path().join("snapshot");
    let copied = Process::new("cp").arg("-r").arg(snapshot).arg(before.path()).status().unwrap();
    assert!(copied.success());
    three.directories[place] = before;
    three.restart(away, short()).await;
    three.wait_for_voters(&[1, 2, 3]);
    three.assert_alike().await;
    three.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_older_copy_of_a_disk_is_found_out() {
    let mut three = Three::start().await;
    let user = add_users(three.node(1), 1).await[0];
    let follower = (1..=3).find(|id| Some(*id) != three.node(1).leader()).unwrap();
    let place = usize::try_from(follower).unwrap() - 1;
    three.stop(follower).await;
    let older = copy(three.directories[place].path());
    three.restart(follower, Limits::default()).await;
    let node = three.nodes[place].clone().unwrap();
    wait_until("it is back", || node.is_ready());
    node.admit(admit(&node, user, Wish::Accept)).await.unwrap();
    three.stop(follower).await;
    three.directories[place] = older;
    three.restart(follower, Limits::default()).await;
    let why =
        tokio::time::timeout(Duration::from_secs(20), three.nodes[place].as_ref().unwrap().failed()).await.unwrap();
    assert!(why.contains("older than what the other nodes know"), "{why}");
    three.stop(follower).await;
    let refused = Cluster::open(options(three.directories[place].path(), &three.addresses[place])).await.err().unwrap();
    assert!(refused.to_string().contains("remove this node and join anew"), "{refused}");
    assert!(three.running().all(|node| node.is_ready()));
    three.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_removed_node_is_nobody() {
    let mut three = Three::start().await;
    let (first, third) = (three.node(1).clone(), three.node(3).clone());
    first.propose(Command::NodeRemove { node: 3, actor: actor() }).await.unwrap();
    wait_until("two vote", || first.voters() == [1, 2]);
    wait_until("the removed one is told", || !third.is_ready());
    assert!(third.propose(Command::Tick).await.is_err());
    three.stop(3).await;
    three.restart(3, Limits::default()).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!three.node(3).is_ready());
    assert!(first.is_ready());
    three.stop(3).await;
    // Its id is not given out again.
    let token = first.token(Duration::from_secs(60), actor()).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let address = free_address();
    let options = options(directory.path(), &address);
    assert_eq!(Cluster::join(&options, &three.addresses[0], &token, &address).await.unwrap(), 4);
    let fourth = Cluster::open(options).await.unwrap();
    wait_until("the fourth votes", || first.voters() == [1, 2, 4] && fourth.is_ready());
    fourth.shutdown().await;
    three.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_leader_of_two_can_be_removed() {
    let mut two = Three::first().await;
    two.join().await;
    two.wait_for_voters(&[1, 2]);
    let user = add_users(two.node(2), 1).await[0];
    assert_eq!(two.node(2).leader(), Some(1));
    let removed = two.node(2).propose(Command::NodeRemove { node: 1, actor: actor() }).await.unwrap();
    assert_eq!(removed.outcome, Outcome::Done);
    let left = two.node(2).clone();
    wait_until("the other votes alone", || left.voters() == [2] && left.leader() == Some(2) && left.is_ready());
    two.stop(1).await;
    let verdict = left.admit(admit(&left, user, Wish::Accept)).await.unwrap().outcome.verdict;
    assert_eq!(verdict, AdmissionVerdict::Accepted);
    two.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_token_opens_once_for_its_own_cluster_only() {
    let directories: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut clusters = Vec::new();
    for directory in &directories[..2] {
        let options = options(directory.path(), "127.0.0.1:0");
        Cluster::init(&options).unwrap();
        clusters.push(Cluster::open(options).await.unwrap());
    }
    let member = clusters[0].address().unwrap().to_string();
    let fresh = || options(&directories[2].path().join("new"), "127.0.0.1:0");
    let ask = async |token: &Token, address: &str| Cluster::join(&fresh(), &member, token, address).await;
    let foreign = clusters[1].token(Duration::from_secs(60), actor()).await.unwrap();
    assert!(matches!(ask(&foreign, "a:1").await, Err(JoinError::OtherCluster(_))));
    let short = clusters[0].token(Duration::from_millis(1), actor()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let refused = ask(&short, "a:1").await.unwrap_err().to_string();
    assert!(refused.contains("unknown, used or expired"), "{refused}");
    let token = clusters[0].token(Duration::from_secs(60), actor()).await.unwrap();
    assert_eq!(ask(&token, "a:1").await.unwrap(), 2);
    let again =
        Cluster::join(&options(&directories[2].path().join("other"), "127.0.0.1:0"), &member, &token, "b:1").await;
    assert!(again.unwrap_err().to_string().contains("unknown, used or expired"));
    assert!(matches!(ask(&token, "a:1").await, Err(JoinError::Open(_))));
    for cluster in clusters {
        cluster.shutdown().await;
    }
}

/// Brings a node up, as the mail side does once it has nothing that others have taken over.
async fn come_up(node: &Cluster) {
    let command = Command::NodeUp { node: node.node_id(), owner_epoch: node.owner_epoch() };
    node.propose(command).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_silent_node_is_declared_down_after_a_lease_and_owns_nothing_until_it_comes_up_anew() {
    let mut three = Three::start().await;
    assert!(three.running().all(|node| !node.holds_lease()), "nobody owns mail yet");
    for id in 1..=3 {
        come_up(three.node(id)).await;
    }
    wait_until("leases", || three.running().all(Cluster::holds_lease));
    let leader = three.node(1).leader().unwrap();
    let user = add_users(three.node(1), 1).await[0];
    three.stop(leader).await;
    let left: Vec<Cluster> = three.running().cloned().collect();
    let stopped = tokio::time::Instant::now();
    wait_until("it is declared down", || left.iter().all(|node| node.read(|state| state.out()) == [leader]));
    assert!(stopped.elapsed() > Duration::from_millis(4_500), "a lease may have run on: {:?}", stopped.elapsed());
    wait_until("the others go on", || left.iter().all(Cluster::holds_lease));
    three.restart(leader, Limits::default()).await;
    let back = three.node(usize::try_from(leader).unwrap()).clone();
    wait_until("it is there again", || back.is_ready());
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(!back.holds_lease(), "others have taken over what it had");
    let stale = back.admit(admit(&back, user, Wish::Accept)).await.unwrap();
    assert_eq!(stale.outcome.verdict, AdmissionVerdict::Stale);
    come_up(&back).await;
    wait_until("a new lease", || back.holds_lease());
    assert_eq!(back.owner_epoch(), 2);
    let accepted = back.admit(admit(&back, user, Wish::Accept)).await.unwrap();
    assert_eq!(accepted.outcome.verdict, AdmissionVerdict::Accepted);
    three.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_whose_state_differs_stops_for_good() {
    let often = || Limits { state_hash_interval: Duration::from_millis(300), ..Limits::default() };
    let mut three = Three::start().await;
    for id in 1..=3 {
        three.stop(id).await;
    }
    let victim = three.directories[2].path().to_owned();
    {
        let home = Home::open(&victim).unwrap();
        let (mut copy, _) = checkpoint::load(&victim.join("state"), home.identity.cluster).unwrap();
        let meta = copy.meta().clone();
        // A token that only this node believes in, with all sums in order.
        let token = codec::encode(&(u64::MAX, None::<([u8; 32], u64)>));
        copy.write([(Key::Token([9; 32]), Some(token))], meta.applied, meta.membership).unwrap();
    }
    for id in 1..=3 {
        three.restart(id, often()).await;
    }
    let (first, third) = (three.node(1).clone(), three.node(3).clone());
    wait_until("a leader", || first.is_ready() || third.is_ready());
    let why = loop {
        first.propose(Command::Tick).await.ok();
        if let Ok(why) = tokio::time::timeout(Duration::from_millis(100), third.failed()).await {
            break why;
        }
    };
    assert!(why.contains("differs from the other nodes'"), "{why}");
    wait_until("the others go on", || first.is_ready() && three.node(2).is_ready());
    assert!(!third.is_ready() && third.propose(Command::Tick).await.is_err());
    three.stop(3).await;
    let refused = Cluster::open(options(&victim, &three.addresses[2])).await.err().unwrap();
    assert!(refused.to_string().contains("remove this node and join anew"), "{refused}");
    three.shutdown().await;
}

/// It would lead the others when its turn comes, and none of them could ask it anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_listens_to_no_others_does_not_start() {
    let mut three = Three::start().await;
    three.stop(2).await;
    let deaf = OpenOptions { listen: None, ..options(three.directories[1].path(), &three.addresses[1]) };
    let refused = Cluster::open(deaf).await.err().unwrap().to_string();
    assert_eq!(refused, "this node is one of 3, which could not reach it: set cluster.listen");
    three.shutdown().await;
}
