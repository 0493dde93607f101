//! The power goes under real nodes: of one disk, and of all disks at once. What was answered with 250 arrives.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use crate::recovery::send_until_cut;
use crate::support::cluster::TestCluster;
use crate::support::disk::Disk;
use crate::support::node::TestNode;
use crate::support::sink::Sink;
use crate::support::wait_at_most;

const ALICE: &str = "alice@demo.test";
const PATIENCE: Duration = Duration::from_secs(60);
const SESSIONS: usize = 6;

fn disk() -> Option<Disk> {
    Disk::new().inspect_err(|reason| println!("skipped: no power can be cut here: {reason}")).ok()
}

/// A node's directory whose data is on the disk; what the test itself writes is not.
fn on(disk: &Disk, number: usize) -> TempDir {
    let (directory, data) = (tempfile::tempdir().unwrap(), disk.home(&format!("data{number}")));
    std::fs::create_dir(&data).unwrap();
    std::fs::File::open(disk.home("")).unwrap().sync_all().unwrap();
    std::os::unix::fs::symlink(&data, directory.path().join("data")).unwrap();
    directory
}

fn unlimited(cluster: &TestCluster) {
    for window in ["minute", "hour", "day", "week", "month"] {
        cluster.nodes[0].ok(&["user", "set", ALICE, &format!("limit_per_{window}=0")]);
    }
}

/// Loads all nodes, calls `cut` in the middle, and returns what was answered with 250.
fn load(cluster: &TestCluster, cut: impl FnOnce()) -> BTreeSet<String> {
    let (accepted, stop) = (Mutex::new(BTreeSet::new()), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for session in 0..SESSIONS {
            let (client, accepted, stop) = (cluster.nodes[session % 3].login(ALICE), &accepted, &stop);
            scope.spawn(move || send_until_cut(client, session, accepted, stop));
        }
        let count = || accepted.lock().unwrap().len();
        wait_at_most(PATIENCE, "load", || (count() > 150).then_some(()));
        cut();
        std::thread::sleep(Duration::from_secs(1));
        stop.store(true, Ordering::Relaxed);
    });
    accepted.into_inner().unwrap()
}

fn wait_for_all(sink: &Sink, accepted: &BTreeSet<String>, nodes: &[&TestNode]) {
    wait_at_most(PATIENCE, "every accepted message", || {
        nodes.iter().for_each(|node| node.retry_all());
        let arrived = sink.subjects();
        accepted.iter().all(|subject| arrived.contains_key(subject)).then_some(())
    });
}

/// Only what was on its way to the next hop may.
fn assert_few_came_again(sink: &Sink, accepted: &BTreeSet<String>) {
    let repeated = sink.repeated();
    assert!(repeated <= SESSIONS, "{repeated} of {} came again", accepted.len());
    println!("{} messages, {repeated} twice", accepted.len());
}

#[test]
fn a_power_cut_of_one_node_costs_no_accepted_message() {
    let Some(disk) = disk() else { return };
    let (sink, open) = Sink::closed();
    let mut number = 0;
    let mut cluster = TestCluster::in_directories(&sink, || {
        number += 1;
        if number == 2 { on(&disk, number) } else { tempfile::tempdir().unwrap() }
    });
    unlimited(&cluster);
    let accepted = load(&cluster, || disk.cut().unwrap());
    // Without its disk the node cannot go on, and says so.
    let ended = || cluster.nodes[1].cluster_status().is_none().then_some(());
    wait_at_most(PATIENCE, "the end of the node without a disk", ended);
    cluster.nodes[1].kill();
    open.store(true, Ordering::Relaxed);
    wait_for_all(&sink, &accepted, &[&cluster.nodes[0], &cluster.nodes[2]]);
    disk.restore();
    cluster.nodes[1].restart();
    wait_for_all(&sink, &accepted, &[&cluster.nodes[1]]);
    assert_few_came_again(&sink, &accepted);
}

#[test]
fn a_power_cut_of_all_nodes_at_once_costs_no_accepted_message() {
    let Some(disk) = disk() else { return };
    let (sink, open) = Sink::closed();
    let mut number = 0;
    let mut cluster = TestCluster::in_directories(&sink, || {
        number += 1;
        on(&disk, number)
    });
    unlimited(&cluster);
    let accepted = load(&cluster, || disk.cut().unwrap());
    cluster.nodes.iter_mut().for_each(TestNode::kill);
    disk.restore();
    cluster.nodes.iter_mut().for_each(TestNode::spawn);
    cluster.nodes.iter_mut().for_each(TestNode::wait_until_ready);
    open.store(true, Ordering::Relaxed);
    let nodes: Vec<&TestNode> = cluster.nodes.iter().collect();
    wait_for_all(&sink, &accepted, &nodes);
    let used = cluster.nodes[0].json(&["user", "show", ALICE])["windows"][2]["used"].as_u64().unwrap();
    assert!(used >= accepted.len() as u64, "{used} charged of {}", accepted.len());
    assert_few_came_again(&sink, &accepted);
}
