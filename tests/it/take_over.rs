//! Two disks for every 250: what happens to the mail of a node that is gone, and when it is back.

use std::collections::BTreeSet;
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::client::{GTUBE, letter};
use crate::support::cluster::TestCluster;
use crate::support::node::TestNode;
use crate::support::sink::Sink;
use crate::support::{wait_at_most, wait_for};

const ALICE: &str = "alice@demo.test";
const BOB: &str = "bob@example.net";
/// A node is declared down after six seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// Subjects that were accepted.
fn send(node: &TestNode, label: &str, count: usize) -> BTreeSet<String> {
    let mut client = node.login(ALICE);
    let subjects = (0..count).map(|number| format!("{label}-{number}"));
    subjects
        .inspect(|subject| assert_eq!(client.mail(ALICE, BOB, &letter(ALICE, BOB, subject, "hello")).code, 250))
        .collect()
}

fn submissions(node: &TestNode, subject: &str) -> usize {
    let found = node.json(&["log", "search", "--status", "accepted", "--text", subject]);
    found.as_array().unwrap().len()
}

/// Bytes of log segments right in a directory.
pub fn log_bytes(node: &TestNode, directory: &str) -> u64 {
    let Ok(files) = std::fs::read_dir(node.data().join("maillog").join(directory)) else { return 0 };
    let lengths = files.flatten().filter(|file| file.file_name().to_string_lossy().ends_with(".log"));
    lengths.map(|file| file.metadata().unwrap().len()).sum()
}

fn queued(node: &TestNode) -> usize {
    node.json(&["queue", "list"]).as_array().unwrap().len()
}

fn metric(node: &TestNode, name: &str) -> u64 {
    let (_, text) = node.get("/metrics");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} is missing in {text}")).parse().unwrap()
}

fn signal(node: &TestNode, name: &str) {
    Command::new("kill").args([&format!("-{name}"), &node.pid().to_string()]).status().unwrap();
}

fn ownership(node: &TestNode, of: usize) -> (u64, bool) {
    let status = node.json(&["cluster", "status"]);
    let shown = &status["nodes"][of];
    (shown["owner_epoch"].as_u64().unwrap(), shown["owns_mail"].as_bool().unwrap())
}

#[test]
fn mail_of_a_dead_node_is_delivered_once_by_its_mirrors_and_its_return_repeats_nothing() {
    let (sink, open) = Sink::closed();
    let mut cluster = TestCluster::with_alice(&sink);
    let victim = 1;
    let sent = send(&cluster.nodes[victim], "m", 30);
    wait_for("the first attempts", || (queued(&cluster.nodes[victim]) == 30).then_some(()));
    let logged = |node: &TestNode| submissions(node, "m-");
    wait_for("one log for all nodes", || cluster.nodes.iter().all(|node| logged(node) == 30).then_some(()));
    wait_for("a mirrored log", || {
        let own = log_bytes(&cluster.nodes[victim], "");
        [0, 2].iter().any(|at| log_bytes(&cluster.nodes[*at], "of-2") == own).then_some(())
    });
    cluster.nodes[victim].kill();
    open.store(true, Ordering::Relaxed);
    wait_at_most(PATIENCE, "a take-over", || {
        let taken: u64 = [0, 2].iter().map(|at| metric(&cluster.nodes[*at], "outgate_messages_taken_over_total")).sum();
        (taken == 30).then_some(())
    });
    wait_at_most(PATIENCE, "every message", || (sink.subjects().len() == 30).then_some(()));
    assert_eq!(ownership(&cluster.nodes[0], victim), (1, false));
    // Its log is read from its mirror.
    assert!([0, 2].iter().all(|at| logged(&cluster.nodes[*at]) == 30));
    cluster.nodes[victim].restart();
    assert_eq!(ownership(&cluster.nodes[0], victim), (2, true));
    assert_eq!(queued(&cluster.nodes[victim]), 0, "what others have taken over is theirs");
    cluster.nodes[victim].retry_all();
    send(&cluster.nodes[victim], "after", 3);
    wait_for("mail of the node that is back", || (sink.subjects().len() == 33).then_some(()));
    let arrived = sink.subjects();
    assert!(sent.iter().all(|subject| arrived[subject] == 1), "{arrived:?}");
    for node in &cluster.nodes {
        assert_eq!(metric(node, "outgate_duplicates_total"), 0);
    }
    let taken = cluster.nodes[0].json(&["log", "search", "--text", "node 2 is down"]);
    assert_eq!(taken.as_array().unwrap().len(), 30);
    let why = cluster.nodes[0].ok(&["why", taken[0]["id"].as_str().unwrap()]);
    assert!(why.contains("take-over") && why.contains("delivered"), "{why}");
}

/// A node that only stood still for a while comes back in the same process and knows that its mail is gone.
#[test]
fn a_node_that_froze_delivers_nothing_that_others_have_taken_over() {
    let (sink, open) = Sink::closed();
    let cluster = TestCluster::with_alice(&sink);
    let victim = (cluster.leader() + 1) % 3;
    let sent = send(&cluster.nodes[victim], "m", 20);
    wait_for("the first attempts", || (queued(&cluster.nodes[victim]) == 20).then_some(()));
    signal(&cluster.nodes[victim], "STOP");
    open.store(true, Ordering::Relaxed);
    let others: Vec<&TestNode> = (0..3).filter(|at| *at != victim).map(|at| &cluster.nodes[at]).collect();
    wait_at_most(PATIENCE, "every message", || (sink.subjects().len() == 20).then_some(()));
    assert!(others.iter().all(|node| queued(node) == 0));
    signal(&cluster.nodes[victim], "CONT");
    wait_at_most(PATIENCE, "the node to own mail again", || (ownership(others[0], victim) == (2, true)).then_some(()));
    wait_for("mail is taken again", || TcpStream::connect(cluster.nodes[victim].submission).ok());
    assert_eq!(queued(&cluster.nodes[victim]), 0);
    assert_eq!(metric(&cluster.nodes[victim], "outgate_messages_yielded_total"), 20);
    let again = send(&cluster.nodes[victim], "after", 3);
    wait_for("new mail", || again.iter().all(|subject| sink.subjects().contains_key(subject)).then_some(()));
    assert!(sent.iter().all(|subject| sink.subjects()[subject] == 1), "{:?}", sink.subjects());
}

/// First the mirror is lost, later the owner: the copy was made again in between.
#[test]
fn a_message_outlives_first_its_mirror_and_then_its_owner() {
    let (sink, open) = Sink::closed();
    let mut cluster = TestCluster::with_alice(&sink);
    let owner = cluster.leader();
    let sent = send(&cluster.nodes[owner], "m", 30);
    let (first, second) = ((owner + 1) % 3, (owner + 2) % 3);
    cluster.nodes[first].kill();
    wait_at_most(PATIENCE, "copies that are made again", || {
        (metric(&cluster.nodes[owner], "outgate_mirror_copies_remade_total") > 0
            && metric(&cluster.nodes[owner], "outgate_mirror_copies_missing") == 0)
            .then_some(())
    });
    cluster.nodes[first].restart();
    cluster.nodes[owner].kill();
    open.store(true, Ordering::Relaxed);
    wait_at_most(PATIENCE, "every message", || {
        cluster.nodes[first].retry_all();
        cluster.nodes[second].retry_all();
        (sink.subjects().len() == 30).then_some(())
    });
    assert!(sent.iter().all(|subject| sink.subjects()[subject] == 1), "{:?}", sink.subjects());
    cluster.nodes[owner].restart();
    assert_eq!(queued(&cluster.nodes[owner]), 0);
}

#[test]
fn large_messages_are_mirrored_in_parts_and_arrive_as_they_were() {
    let (sink, open) = Sink::closed();
    let mut cluster = TestCluster::with_alice(&sink);
    let line = "0123456789abcdefghijklmnopqrstuvwxyz".repeat(2) + "\r\n";
    let text: String = (0..80_000).map(|number| format!("{number} {line}")).collect();
    let mail = letter(ALICE, BOB, "large", &text);
    assert_eq!(cluster.nodes[0].login(ALICE).mail(ALICE, BOB, &mail).code, 250);
    cluster.nodes[0].kill();
    open.store(true, Ordering::Relaxed);
    wait_at_most(PATIENCE, "the message", || (sink.subjects().len() == 1).then_some(()));
    assert!(sink.captured()[0].text().contains(&text), "the text is another");
}

/// The node that took over has no mirror but the old owner, whose copy becomes the second one.
#[test]
fn a_message_outlives_a_node_that_took_it_over_and_had_no_other_place_for_it() {
    let (sink, open) = Sink::closed();
    let mut cluster = TestCluster::with_alice(&sink);
    let (owner, taker, full) = (0, 1, 2);
    cluster.nodes[full].add_config("[spool]\nfree_min_bytes = 1000000000000000\n");
    cluster.nodes[full].kill();
    cluster.nodes[full].spawn();
    wait_at_most(PATIENCE, "the full node", || cluster.nodes[full].cluster_status());
    // The full one may have led.
    cluster.nodes[owner].wait_until_ready();
    let sent = send(&cluster.nodes[owner], "m", 10);
    wait_for("the first attempts", || (queued(&cluster.nodes[owner]) == 10).then_some(()));
    cluster.nodes[owner].kill();
    let missing = |node: &TestNode| metric(node, "outgate_mirror_copies_missing");
    wait_at_most(PATIENCE, "a take-over", || {
        let taken = metric(&cluster.nodes[taker], "outgate_messages_taken_over_total");
        (taken == 10 && missing(&cluster.nodes[taker]) == 10).then_some(())
    });
    cluster.nodes[owner].restart();
    assert_eq!(metric(&cluster.nodes[owner], "outgate_messages_yielded_total"), 10);
    wait_at_most(PATIENCE, "second copies", || (missing(&cluster.nodes[taker]) == 0).then_some(()));
    assert_eq!(metric(&cluster.nodes[taker], "outgate_mirror_copies_remade_total"), 0, "they are where they were");
    cluster.nodes[taker].kill();
    open.store(true, Ordering::Relaxed);
    wait_at_most(PATIENCE, "every message", || (sink.subjects().len() == 10).then_some(()));
    assert!(sent.iter().all(|subject| sink.subjects()[subject] == 1), "{:?}", sink.subjects());
}

/// Overwrites half of what the node's queue has on disk.
fn damage_queue(node: &TestNode) {
    let files = std::fs::read_dir(node.data().join("queue")).unwrap().flatten().map(|file| file.path());
    for segment in files.filter(|path| path.extension().is_some_and(|ending| ending == "segment")) {
        let mut bytes = std::fs::read(&segment).unwrap();
        let quarter = bytes.len() / 4;
        bytes[quarter..3 * quarter].fill(0xff);
        std::fs::write(&segment, bytes).unwrap();
    }
}

fn outlive_damage(damage: impl Fn(&TestNode)) {
    let (sink, open) = Sink::closed();
    let mut cluster = TestCluster::with_alice(&sink);
    let sent = send(&cluster.nodes[1], "m", 20);
    wait_for("the first attempts", || (queued(&cluster.nodes[1]) == 20).then_some(()));
    // The index knows all of it by then.
    std::thread::sleep(Duration::from_millis(2_500));
    cluster.nodes[1].kill();
    damage(&cluster.nodes[1]);
    cluster.nodes[1].restart();
    open.store(true, Ordering::Relaxed);
    wait_at_most(PATIENCE, "every message", || {
        cluster.nodes.iter().for_each(TestNode::retry_all);
        (sink.subjects().len() == 20).then_some(())
    });
    assert!(sent.iter().all(|subject| sink.subjects()[subject] == 1), "{:?}", sink.subjects());
    let taken: u64 = cluster.nodes.iter().map(|node| metric(node, "outgate_messages_taken_over_total")).sum();
    assert!((5..20).contains(&taken), "half was damaged, and {taken} were taken over");
    wait_for("empty queues", || (cluster.nodes.iter().map(queued).sum::<usize>() == 0).then_some(()));
}

#[test]
fn what_a_damaged_queue_has_lost_without_a_trace_is_delivered_by_its_mirrors() {
    outlive_damage(|node| {
        damage_queue(node);
        std::fs::remove_dir_all(node.data().join("queue/index")).unwrap();
    });
}

#[test]
fn what_cannot_be_read_when_its_turn_comes_is_delivered_by_its_mirrors() {
    outlive_damage(damage_queue);
}

fn held(node: &TestNode) -> Vec<String> {
    let list = node.json(&["quarantine", "list"]);
    list.as_array().unwrap().iter().map(|held| held["id"].as_str().unwrap().to_owned()).collect()
}

/// The files in a node's quarantine whose name has this in it, each with what tells it from a new one of the same name.
fn quarantine_files(node: &TestNode, part: &str) -> BTreeSet<u64> {
    let days = std::fs::read_dir(node.data().join("quarantine")).unwrap().flatten();
    let files = days.filter_map(|day| std::fs::read_dir(day.path()).ok()).flatten().flatten();
    let named = files.filter(|file| file.file_name().to_string_lossy().contains(part));
    named.map(|file| file.metadata().unwrap().ino()).collect()
}

#[test]
fn the_quarantine_of_a_dead_node_is_held_by_another_and_not_twice_when_it_is_back() {
    let sink = Sink::start();
    let mut cluster = TestCluster::with_alice(&sink);
    let victim = (cluster.leader() + 1) % 3;
    let mut client = cluster.nodes[victim].login(ALICE);
    for number in 0..4 {
        let mail = letter(ALICE, BOB, &format!("held {number}"), GTUBE);
        assert_eq!(client.mail(ALICE, BOB, &mail).code, 550);
    }
    let all = held(&cluster.nodes[victim]);
    assert_eq!(all.len(), 4);
    let others = [(victim + 1) % 3, (victim + 2) % 3];
    assert!(others.iter().all(|at| held(&cluster.nodes[*at]).is_empty()), "copies are nobody's to see");
    // What left quarantine before comes back with nobody.
    cluster.nodes[victim].ok(&["quarantine", "remove", &all[0]]);
    let had = quarantine_files(&cluster.nodes[victim], ".held");
    cluster.nodes[victim].kill();
    let taken = || others.iter().flat_map(|at| held(&cluster.nodes[*at])).collect::<BTreeSet<_>>();
    wait_at_most(PATIENCE, "the take-over", || (taken().len() == 3).then_some(()));
    assert_eq!(taken(), all[1..].iter().cloned().collect());
    let holder = others.into_iter().find(|at| held(&cluster.nodes[*at]).contains(&all[1])).unwrap();
    cluster.nodes[holder].ok(&["quarantine", "release", &all[1]]);
    sink.wait(1);
    cluster.nodes[victim].restart();
    assert!(held(&cluster.nodes[victim]).is_empty(), "others hold it");
    assert_eq!(others.iter().map(|at| held(&cluster.nodes[*at]).len()).sum::<usize>(), 2);
    assert_eq!(sink.captured().len(), 1);
    // What the others still hold is here as their copy, or was until they had others.
    let copies = quarantine_files(&cluster.nodes[victim], ".copy-");
    assert!(copies.is_subset(&had), "{copies:?} were made, {had:?} were here");
    let second_copies = || cluster.nodes.iter().map(|node| quarantine_files(node, ".copy-").len()).sum::<usize>();
    wait_for("two copies of each", || (second_copies() == 2).then_some(()));
}
