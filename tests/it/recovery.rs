//! Nothing that was answered with 250 is lost, whatever happens to the process or the disk.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::broken_disk::{SmallDisk, fail_syncs};
use crate::support::client::{Client, letter};
use crate::support::node::{PASSWORD, TestNode};
use crate::support::sink::Sink;
use crate::support::{wait_at_most, wait_for};

const ALICE: &str = "alice@demo.test";
const BOB: &str = "bob@example.net";

/// Sends until told to stop or cut off; notes the subject of everything that was answered with 250.
pub fn send_until_cut(
    mut client: Client,
    session: usize,
    accepted: &Mutex<BTreeSet<String>>,
    stop: &AtomicBool,
) -> Option<()> {
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            return None;
        }
        let subject = format!("{session}-{n}-{}", outgate::mail::MessageId::generate());
        for line in ["MAIL FROM:<alice@demo.test>", "RCPT TO:<bob@example.net>", "DATA"] {
            client.try_send(format!("{line}\r\n").as_bytes())?;
            (client.try_answer()?.code < 400).then_some(())?;
        }
        client.try_send(format!("{}.\r\n", letter(ALICE, BOB, &subject, "hello")).as_bytes())?;
        if client.try_answer()?.code == 250 {
            accepted.lock().unwrap().insert(subject);
        }
    }
    None
}

#[test]
fn kill_9_loses_no_accepted_message_and_no_charge() {
    let sink = Sink::start();
    let mut node = TestNode::with_alice(&sink);
    for window in ["minute", "hour", "day", "week", "month"] {
        node.ok(&["user", "set", ALICE, &format!("limit_per_{window}=1000000")]);
    }
    let accepted = Arc::new(Mutex::new(BTreeSet::new()));
    for round in 0..5 {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for session in 0..4 {
                let client = node.login(ALICE);
                let (accepted, stop) = (&accepted, &stop);
                scope.spawn(move || send_until_cut(client, session, accepted, stop));
            }
            let goal = accepted.lock().unwrap().len() + 50 + round * 31;
            wait_at_most(Duration::from_secs(30), "load", || (accepted.lock().unwrap().len() > goal).then_some(()));
            node.kill();
            stop.store(true, Ordering::Relaxed);
        });
        node.restart();
    }
    let accepted = accepted.lock().unwrap().clone();
    wait_at_most(Duration::from_secs(60), "every accepted message", || {
        let arrived: BTreeSet<_> = sink.captured().iter().filter_map(|mail| mail.header("Subject")).collect();
        accepted.is_subset(&arrived).then_some(())
    });
    let used = node.json(&["user", "show", ALICE])["windows"][2]["used"].as_u64().unwrap();
    assert!(used >= accepted.len() as u64, "{used} charged, {} accepted", accepted.len());
    let delivered = sink.captured().len();
    assert!(
        delivered as u64 <= used + 5 * 4 * 20,
        "{delivered} deliveries of {used} charged: duplicates beyond what was in flight"
    );
}

#[test]
fn quarantine_queue_and_users_outlive_a_kill() {
    let sink = Sink::start();
    sink.script(|line| line.starts_with("MAIL").then(|| "451 4.3.0 not now".to_owned()));
    let mut node = TestNode::with_alice(&sink);
    let mut client = node.login(ALICE);
    client.mail(ALICE, BOB, &letter(ALICE, BOB, "spam", crate::support::client::GTUBE));
    assert_eq!(client.mail(ALICE, BOB, &letter(ALICE, BOB, "ham", "hello")).code, 250);
    wait_for("a deferral", || {
        node.json(&["queue", "list"])[0]["recipients"][0]["last_reply"].is_string().then_some(())
    });
    let state = |node: &TestNode| {
        (
            node.json(&["quarantine", "list"]),
            node.json(&["queue", "list"])[0]["id"].clone(),
            node.json(&["user", "list"]),
        )
    };
    let before = state(&node);
    node.kill();
    sink.script(|_| None);
    node.restart();
    assert_eq!(state(&node).0, before.0);
    assert_eq!(state(&node).2, before.2);
    let id = before.1.as_str().unwrap();
    node.cli(&["queue", "retry", id]);
    assert_eq!(sink.wait(1)[0].header("Subject").as_deref(), Some("ham"));
}

#[test]
fn a_full_disk_is_452_and_recovers_by_itself() {
    let Some(disk) = SmallDisk::mount(300) else { return };
    let sink = Sink::start();
    let directory = tempfile::tempdir_in(disk.path()).unwrap();
    let node = TestNode::start_in(
        directory,
        &format!("[spool]\nfree_min_bytes = 67108864\n[delivery]\nrelay = \"{}\"\n", sink.address),
    );
    node.ok(&["domain", "add", "demo.test"]);
    node.ok(&["settings", "set", "valid_sender_required=off"]);
    node.ok(&["user", "add", ALICE, "--password", PASSWORD]);
    let mut client = node.login(ALICE);
    assert_eq!(client.mail(ALICE, BOB, &letter(ALICE, BOB, "before", "hello")).code, 250);
    disk.fill();
    wait_for("452", || {
        let answer = client.say("MAIL FROM:<alice@demo.test>");
        client.say("RSET");
        answer.text.starts_with("452 4.3.1").then_some(())
    });
    wait_for("a refused command", || {
        let output = node.cli(&["user", "set", ALICE, "limit_per_day=7"]);
        String::from_utf8_lossy(&output.stderr).contains("the disk is nearly full").then_some(())
    });
    disk.empty();
    wait_for("room again", || {
        (node.login(ALICE).mail(ALICE, BOB, &letter(ALICE, BOB, "after", "hello")).code == 250).then_some(())
    });
    let subjects: Vec<_> = sink.wait(2).iter().filter_map(|mail| mail.header("Subject")).collect();
    assert!(subjects.contains(&"before".to_owned()) && subjects.contains(&"after".to_owned()), "{subjects:?}");
}

#[test]
fn a_clean_restart_waits_for_the_reply_to_the_final_dot_and_begins_nothing_else() {
    let sink = Sink::start();
    let ended = Arc::new(AtomicBool::new(false));
    let of_sink = Arc::clone(&ended);
    // One transaction takes longer than a stop would like, and others wait behind it for the only connection.
    sink.script(move |line| {
        if line == "." && !of_sink.swap(true, Ordering::Relaxed) {
            std::thread::sleep(Duration::from_secs(7));
        }
        None
    });
    let relay = format!("[delivery]\nrelay = \"{}\"\nconnections_per_host_max = 1\n", sink.address);
    let mut node = TestNode::start(&relay);
    node.ok(&["domain", "add", "demo.test"]);
    node.ok(&["settings", "set", "valid_sender_required=off"]);
    node.ok(&["user", "add", ALICE, "--password", PASSWORD]);
    let mut client = node.login(ALICE);
    for n in 0..4 {
        assert_eq!(client.mail(ALICE, BOB, &letter(ALICE, BOB, &format!("m{n}"), "hello")).code, 250);
    }
    wait_for("the final dot", || ended.load(Ordering::Relaxed).then_some(()));
    node.stop();
    assert_eq!(sink.captured().len(), 1, "only what was on its way is finished");
    node.restart();
    sink.wait(4);
    wait_for("an empty queue", || (node.json(&["queue", "list"]).as_array()?.is_empty()).then_some(()));
    let mut subjects: Vec<_> = sink.captured().iter().filter_map(|mail| mail.header("Subject")).collect();
    subjects.sort_unstable();
    assert_eq!(subjects, ["m0", "m1", "m2", "m3"]);
}

/// Other than a full disk at a write, one at a sync leaves nobody knowing what is on disk.
#[test]
fn a_sync_that_fails_for_want_of_room_stops_the_node_and_is_no_452() {
    let sink = Sink::start();
    let mut node = TestNode::with_alice(&sink);
    let mut client = node.login(ALICE);
    assert_eq!(client.mail(ALICE, BOB, &letter(ALICE, BOB, "before", "hello")).code, 250);
    let Some(mut strace) = fail_syncs(&node, "spool-writer", "ENOSPC") else { return };
    let answer = client.mail(ALICE, BOB, &letter(ALICE, BOB, "doubtful", "hello"));
    assert!(answer.code != 250 && answer.code != 452, "{answer:?}");
    wait_for("the end of the node", || node.has_ended().then_some(()));
    strace.wait().unwrap();
    assert!(node.log().contains("fdatasync"), "{}", node.log());
    node.restart();
    sink.wait(1);
    let mut client = node.login(ALICE);
    assert_eq!(client.mail(ALICE, BOB, &letter(ALICE, BOB, "after", "hello")).code, 250);
}
