//! Disks, clocks, cables and processes fail while clients send: what was answered with 250 arrives, and the limit holds.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::network::{MTA, Names, mail};
use crate::support::broken_disk::{SmallDisk, fail_syncs};
use crate::support::client::letter;
use crate::support::cluster::TestCluster;
use crate::support::load::Load;
use crate::support::net::Net;
use crate::support::node::{PASSWORD, TestNode};
use crate::support::postfix::Postfix;
use crate::support::sink::Sink;
use crate::support::{wait_at_most, wait_for};
use crate::take_over::log_bytes;

const ALICE: &str = "alice@demo.test";
const BOB: &str = "bob@example.net";
const CLIENTS: usize = 6;
/// Of each client, between messages.
const PACE: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(30);

/// No other limit binds.
fn limit_per_hour(node: &TestNode, limit: usize) {
    for window in ["minute", "day", "week", "month"] {
        node.ok(&["user", "set", ALICE, &format!("limit_per_{window}=0")]);
    }
    node.ok(&["user", "set", ALICE, &format!("limit_per_hour={limit}")]);
}

fn used_of_hour(node: &TestNode) -> Option<usize> {
    let output = node.cli(&["user", "show", ALICE, "--output", "json"]);
    let user: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    usize::try_from(user["windows"][1]["used"].as_u64()?).ok()
}

/// Waits until the limit is used up and everybody was told.
fn wait_for_limit(node: &TestNode, load: &Load, limit: usize) {
    wait_at_most(PATIENCE, "the limit", || (used_of_hour(node)? >= limit).then_some(()));
    wait_for("refusals by the limit", || load.refused().keys().any(|text| text.contains("limit of")).then_some(()));
}

/// Everything that was answered with 250 arrives, and no more than the limit was let in.
fn wait_for_all(sink: &Sink, cluster: &TestCluster, accepted: &BTreeSet<String>, limit: usize) {
    assert!(accepted.len() <= limit, "{} accepted, the limit is {limit}", accepted.len());
    wait_for_arrival(sink, cluster, accepted);
    wait_at_most(PATIENCE, "empty queues", || cluster.nodes.iter().all(has_empty_queue).then_some(()));
    let arrived = sink.subjects().len();
    println!("{} accepted, {arrived} arrived, {} twice", accepted.len(), sink.repeated());
    assert!(arrived <= limit, "{arrived} arrived, the limit is {limit}");
}

fn wait_for_arrival(sink: &Sink, cluster: &TestCluster, accepted: &BTreeSet<String>) {
    wait_at_most(PATIENCE, "every accepted message", || {
        cluster.nodes.iter().for_each(TestNode::retry_all);
        let arrived = sink.subjects();
        accepted.iter().all(|subject| arrived.contains_key(subject)).then_some(())
    });
}

fn has_empty_queue(node: &TestNode) -> bool {
    node.json(&["queue", "list"]).as_array().unwrap().is_empty()
}

/// Each node takes a message again, and it arrives; `used` is what was let in before.
fn assert_well(sink: &Sink, cluster: &mut TestCluster, used: usize) {
    limit_per_hour(&cluster.nodes[0], used + 3);
    for (number, node) in cluster.nodes.iter_mut().enumerate() {
        node.wait_until_ready();
        let subject = format!("well {number}");
        assert_eq!(node.login(ALICE).mail(ALICE, BOB, &letter(ALICE, BOB, &subject, "hello")).code, 250);
        wait_for("mail of each node", || sink.subjects().contains_key(&subject).then_some(()));
    }
}

/// Nobody was ever told anything but that this node takes no mail now.
fn assert_only_told_to_come_again(load: &Load) {
    let told = load.refused();
    println!("refused: {told:?}");
    assert!(told.keys().all(|text| ["421", "451", "452"].contains(&&text[..3])), "{told:?}");
}

/// The node with the full disk delivers what it has, though it cannot note that, and repeats none of it.
#[test]
fn a_full_disk_of_one_node_loses_nothing() {
    const LIMIT: usize = 200;
    let Some(disks) = (0..3).map(|_| SmallDisk::mount(400)).collect::<Option<Vec<_>>>() else { return };
    let (sink, open) = Sink::closed();
    let mut next = disks.iter();
    let mut cluster = TestCluster::in_directories(&sink, || next.next().unwrap().directory());
    limit_per_hour(&cluster.nodes[0], LIMIT);
    let full = cluster.leader();
    let load = Load::start(CLIENTS, PACE, cluster.addresses());
    load.wait_for_more("load", 60);
    disks[full].fill();
    let filled = Instant::now();
    let refuses = || TcpStream::connect(cluster.nodes[full].submission).is_err().then_some(());
    wait_for("the full node to refuse", refuses);
    println!("refused {:?} after the disk was full", filled.elapsed());
    load.wait_for_more("mail at the others", 40);
    wait_for_limit(&cluster.nodes[(full + 1) % 3], &load, LIMIT);
    assert_only_told_to_come_again(&load);
    let accepted = load.stop();
    open.store(true, Ordering::Relaxed);
    wait_for_arrival(&sink, &cluster, &accepted);
    let ended = cluster.nodes[full].has_ended();
    println!("ended: {ended}");
    disks[full].empty();
    if ended {
        let log = cluster.nodes[full].log();
        assert_eq!(log.matches("the node has stopped: ").count(), 1, "{log}");
        cluster.nodes[full].kill();
        cluster.nodes[full].restart();
    }
    cluster.nodes[full].wait_until_ready();
    wait_for_all(&sink, &cluster, &accepted, LIMIT);
    assert!(ended || sink.repeated() == 0, "{} came again", sink.repeated());
    assert_well(&sink, &mut cluster, LIMIT);
}

/// What is left would do for the queue, and does not for the log: no client is to learn that with each message.
#[test]
fn a_node_that_decides_nothing_for_want_of_room_refuses_tcp() {
    let Some(disk) = SmallDisk::mount(400) else { return };
    let (sink, full) = (Sink::start(), 1);
    let mut number = 0;
    let mut cluster = TestCluster::in_directories(&sink, || {
        number += 1;
        if number == full + 1 { disk.directory() } else { tempfile::tempdir().unwrap() }
    });
    cluster.nodes[full].add_config("[spool]\nfree_min_bytes = 1\n");
    cluster.nodes[full].restart();
    disk.fill_but(20);
    let address = cluster.nodes[full].submission;
    wait_for("the full node to refuse", || TcpStream::connect(address).is_err().then_some(()));
    assert_eq!(cluster.nodes[full].get("/readyz").0, 503);
    disk.empty();
    cluster.nodes[full].wait_until_ready();
    assert_well(&sink, &mut cluster, 0);
}

/// The thread's next sync fails for good: the node must not go on, and nobody misses anything.
fn outlive_failing_syncs(thread: &str) {
    const LIMIT: usize = 400;
    let sink = Sink::start();
    let mut cluster = TestCluster::with_alice(&sink);
    limit_per_hour(&cluster.nodes[0], LIMIT);
    let victim = cluster.leader();
    let load = Load::start(CLIENTS, PACE, cluster.addresses());
    load.wait_for_more("load", 60);
    let Some(mut strace) = fail_syncs(&cluster.nodes[victim], thread, "EIO") else { return };
    let failing = Instant::now();
    wait_for("the end of the node", || cluster.nodes[victim].has_ended().then_some(()));
    println!("ended {:?} after syncs began to fail", failing.elapsed());
    strace.wait().unwrap();
    load.wait_for_more("mail at the others", 60);
    wait_for_limit(&cluster.nodes[(victim + 1) % 3], &load, LIMIT);
    assert_only_told_to_come_again(&load);
    let accepted = load.stop();
    let log = cluster.nodes[victim].log();
    let last = log.lines().last().unwrap();
    assert!(last.contains("the node has stopped: ") && last.contains("Input/output error"), "{last}");
    cluster.nodes[victim].kill();
    cluster.nodes[victim].restart();
    wait_for_all(&sink, &cluster, &accepted, LIMIT);
    assert_well(&sink, &mut cluster, LIMIT);
}

#[test]
fn a_log_that_cannot_be_synced_stops_one_node_and_nothing_is_lost() {
    outlive_failing_syncs("log-writer");
}

#[test]
fn a_queue_that_cannot_be_synced_stops_one_node_and_nothing_is_lost() {
    outlive_failing_syncs("spool-writer");
}

/// Queued under one clock, taken over under another: nobody waits for an hour that has passed elsewhere, or has not begun.
#[test]
fn clocks_hours_apart_take_over_and_limits_hold() {
    const PER_NODE: usize = 8;
    let (sink, open) = Sink::closed();
    let Some(mut cluster) = TestCluster::with_clocks(&sink, ["-2h", "+0h", "+3h"]) else { return };
    limit_per_hour(&cluster.nodes[0], 2 * 3 * PER_NODE);
    for (round, owner) in [2, 0].into_iter().enumerate() {
        open.store(false, Ordering::Relaxed);
        for (at, node) in cluster.nodes.iter().enumerate() {
            let mut client = node.login(ALICE);
            for number in 0..PER_NODE {
                let mail = letter(ALICE, BOB, &format!("{round}-{at}-{number}"), "hello");
                assert_eq!(client.mail(ALICE, BOB, &mail).code, 250);
            }
        }
        take_over_from(&mut cluster, owner, &format!("{round}-{owner}-"), PER_NODE, &sink, &open);
        cluster.nodes.iter().for_each(TestNode::retry_all);
        let all = 3 * PER_NODE * (round + 1);
        wait_at_most(PATIENCE, "every message", || (sink.subjects().len() == all).then_some(()));
        wait_at_most(PATIENCE, "empty queues", || cluster.nodes.iter().all(has_empty_queue).then_some(()));
    }
    for node in &cluster.nodes {
        let refused = node.login(ALICE).mail(ALICE, BOB, &letter(ALICE, BOB, "one too many", "hello"));
        assert!(refused.text.starts_with("451 4.7.1 limit of 48 messages per hour reached"), "{refused:?}");
    }
    assert_eq!(sink.repeated(), 0, "{:?}", sink.subjects());
    assert_well(&sink, &mut cluster, 2 * 3 * PER_NODE);
}

/// Kills the owner of queued mail; the others deliver it, and all know its journey, also the owner when it is back.
fn take_over_from(cluster: &mut TestCluster, owner: usize, label: &str, count: usize, sink: &Sink, open: &AtomicBool) {
    let queued = |node: &TestNode| node.json(&["queue", "list"]).as_array().unwrap().len();
    wait_for("the first attempts", || (queued(&cluster.nodes[owner]) == count).then_some(()));
    let others = [(owner + 1) % 3, (owner + 2) % 3];
    let copy = format!("of-{}", owner + 1);
    wait_for("a mirrored log", || {
        let own = log_bytes(&cluster.nodes[owner], "");
        others.iter().any(|at| log_bytes(&cluster.nodes[*at], &copy) == own).then_some(())
    });
    cluster.nodes[owner].kill();
    let killed = Instant::now();
    open.store(true, Ordering::Relaxed);
    let arrived = || sink.subjects().keys().filter(|subject| subject.starts_with(label)).count();
    wait_at_most(PATIENCE, "the mail of the dead node", || (arrived() == count).then_some(()));
    println!("node {} was taken over from after {:?}", owner + 1, killed.elapsed());
    others.iter().for_each(|at| assert_journey_is_known(&cluster.nodes[*at], label, count, owner + 1));
    cluster.nodes[owner].restart();
    assert_journey_is_known(&cluster.nodes[owner], label, count, owner + 1);
    assert!(has_empty_queue(&cluster.nodes[owner]), "what others have taken over is theirs");
}

fn assert_journey_is_known(node: &TestNode, label: &str, count: usize, owner: usize) {
    let found = node.json(&["log", "search", "--status", "accepted", "--text", label]);
    let found = found.as_array().unwrap();
    assert_eq!(found.len(), count, "{found:?}");
    for message in found {
        let id = message["id"].as_str().unwrap();
        let steps = || node.json(&["log", "search", "--id", id]).as_array().unwrap().clone();
        let is_known = || {
            let (all, why) = (serde_json::to_string(&steps()).unwrap(), node.ok(&["why", id]));
            let down = format!("node {owner} is down");
            [label, "451 4.3.0 later", &down, "delivered"].iter().all(|part| all.contains(part)).then_some(why)
        };
        let why = wait_for("the whole journey of a message", is_known);
        assert!(why.contains("take-over") && why.contains("delivered"), "{why}");
    }
}

/// What a partition takes from the leader's machine, as matches of incoming and outgoing packets.
struct Partition {
    name: &'static str,
    incoming: String,
    outgoing: String,
}

fn partitions(net: &Net) -> [Partition; 3] {
    let nodes = format!("{}-{}", net.address(1), net.address(3));
    let from_nodes = format!("iifname eth0 ip saddr {nodes}");
    let to_nodes = format!("oifname eth0 ip daddr {nodes}");
    let partition = |name, incoming: &str, outgoing: &str| Partition {
        name,
        incoming: incoming.to_owned(),
        outgoing: outgoing.to_owned(),
    };
    [
        partition("hears no node", &from_nodes, ""),
        partition("is heard by no node", "", &to_nodes),
        partition("has no cluster port", "iifname eth0 tcp dport 7587", "oifname eth0 tcp dport 7587"),
    ]
}

/// Whether a client from outside is welcome.
fn welcomes(address: SocketAddr) -> bool {
    let greeting = || {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok()?;
        Some(line)
    };
    greeting().is_some_and(|line| line.starts_with("220"))
}

#[test]
fn a_leader_that_hears_nobody_and_one_way_partitions() {
    const LIMIT: usize = 900;
    let Some(net) = Net::new(3) else { return };
    let sink = Sink::start_at(&format!("{}:0", net.address(254)));
    let mut cluster = TestCluster::over(&net, &sink);
    limit_per_hour(&cluster.nodes[0], LIMIT);
    let load = Load::start(CLIENTS, PACE, cluster.addresses());
    for partition in partitions(&net) {
        load.wait_for_more("load", 20);
        let lonely = cluster.leader();
        if !net.drop_packets(lonely + 1, &partition.incoming, &partition.outgoing) {
            return;
        }
        outlive_partition(&partition, &cluster, &load, lonely);
        net.pass_packets(lonely + 1);
        let healed = Instant::now();
        let address = cluster.nodes[lonely].submission;
        wait_at_most(PATIENCE, "mail at the healed node", || welcomes(address).then_some(()));
        println!("{}: back {:?} after healing", partition.name, healed.elapsed());
        assert!(healed.elapsed() < Duration::from_secs(4), "{:?}", healed.elapsed());
    }
    wait_for_limit(&cluster.nodes[0], &load, LIMIT);
    assert_only_told_to_come_again(&load);
    let accepted = load.stop();
    wait_for_all(&sink, &cluster, &accepted, LIMIT);
    assert!(sink.repeated() <= 3 * CLIENTS, "{} came again: {:?}", sink.repeated(), sink.subjects());
    assert_well(&sink, &mut cluster, LIMIT);
}

fn outlive_partition(Partition { name, .. }: &Partition, cluster: &TestCluster, load: &Load, lonely: usize) {
    let (cut, address) = (Instant::now(), cluster.nodes[lonely].submission);
    wait_for("the lonely leader to refuse", || (!welcomes(address)).then_some(()));
    let refused = cut.elapsed();
    println!("{name}: refused after {refused:?}");
    let other = &cluster.nodes[(lonely + 1) % 3];
    wait_for("another leader", || (other.cluster_status()?["leader"].as_u64()? != lonely as u64 + 1).then_some(()));
    println!("{name}: another leader after {:?}", cut.elapsed());
    load.wait_for_more("mail at the majority", 40);
    println!("{name}: 40 more after {:?}", cut.elapsed());
    assert!(refused < Duration::from_secs(2), "{name}: {refused:?}");
    assert!(!welcomes(address), "{name}: it must go on refusing");
}

/// Nodes are killed and come back until the limit is used up.
#[test]
fn limits_bind_while_nodes_die() {
    const LIMIT: usize = 200;
    let sink = Sink::start();
    let mut cluster = TestCluster::with_alice(&sink);
    limit_per_hour(&cluster.nodes[0], LIMIT);
    let load = Load::start(CLIENTS, 3 * PACE, cluster.addresses());
    let mut kills = 0;
    load.wait_for_more("load", 20);
    while kills < 3 || used_of_hour(&cluster.nodes[0]) < Some(LIMIT) {
        assert!(kills < 12, "the limit is not used up by {} messages, {:?}", load.count(), load.refused());
        let victim = kills % 3;
        cluster.nodes[victim].kill();
        kills += 1;
        let (other, goal) = (&cluster.nodes[(victim + 1) % 3], load.count() + 10);
        wait_at_most(PATIENCE, "the others to go on", || {
            (load.count() >= goal || used_of_hour(other)? >= LIMIT).then_some(())
        });
        cluster.nodes[victim].restart();
        load.find(cluster.addresses());
    }
    wait_for_limit(&cluster.nodes[0], &load, LIMIT);
    assert_only_told_to_come_again(&load);
    let accepted = load.stop();
    wait_for_all(&sink, &cluster, &accepted, LIMIT);
    let in_flight = CLIENTS * kills;
    println!("{kills} kills");
    assert!(accepted.len() + in_flight >= LIMIT, "{} of {LIMIT} were told so", accepted.len());
    assert!(sink.repeated() <= in_flight, "{} came again: {:?}", sink.repeated(), sink.subjects());
}

/// With the timers that Postfix has by itself, a message that it defers is not tried again for five minutes.
#[test]
fn postfix_with_its_default_timers_finds_the_nodes_that_are_left() {
    const MESSAGES: usize = 80;
    let Some(net) = Net::new(MTA) else { return };
    let Some(_names) = Names::start(&net) else { return };
    let sink = Sink::start_at(&format!("{}:0", net.address(254)));
    let mut cluster = TestCluster::over(&net, &sink);
    limit_per_hour(&cluster.nodes[0], 0);
    let (folder, machine, relay) = (tempfile::tempdir().unwrap(), net.namespace(MTA), "[filter.test]:587");
    let logins = format!("{relay} {ALICE}:{PASSWORD}\n");
    let Some(postfix) = Postfix::start(folder.path(), Some(&machine), relay, &logins, "") else { return };
    let victim = cluster.leader();
    let mut killed = Instant::now();
    for number in 0..MESSAGES {
        if number == MESSAGES / 4 {
            cluster.nodes[victim].kill();
            killed = Instant::now();
        }
        postfix.send(ALICE, BOB, &mail(&format!("{number}")));
        std::thread::sleep(PACE);
    }
    println!("sent within {:?} of the kill", killed.elapsed());
    let sent = Instant::now();
    while sink.subjects().len() < MESSAGES {
        let arrived = sink.subjects().len();
        assert!(sent.elapsed() < Duration::from_secs(60), "{arrived} of {MESSAGES} arrived\n{}", postfix.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("all there {:?} after the last, {} twice", sent.elapsed(), sink.repeated());
    let deferred = postfix.log().matches("status=deferred").count();
    assert_eq!(deferred, 0, "{}", postfix.log());
}
