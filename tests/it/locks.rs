//! The lock machine from outside: abuse, replies, timeout, the unlock counter, the admin's hand.

use std::time::Duration;

use crate::support::client::{Answer, Client, GTUBE, letter};
use crate::support::node::TestNode;
use crate::support::sink::Sink;
use crate::support::wait_at_most;

const ALICE: &str = "alice@demo.test";
const BOB: &str = "bob@example.net";

fn spam(client: &mut Client, subject: &str) -> Answer {
    client.mail(ALICE, BOB, &letter(ALICE, BOB, subject, GTUBE))
}

fn ham(client: &mut Client) -> Answer {
    client.mail(ALICE, BOB, &letter(ALICE, BOB, "ham", "hello"))
}

fn five_spam(client: &mut Client) {
    for n in 0..5 {
        assert_eq!(spam(client, &format!("spam {n}")).code, 550);
    }
}

#[test]
fn five_spam_lock_and_open_sessions_are_refused() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    let mut open = node.login(ALICE);
    let mut client = node.login(ALICE);
    assert_eq!(ham(&mut client).code, 250);
    for n in 0..4 {
        spam(&mut client, &format!("spam {n}"));
        assert_eq!(node.lock_of(ALICE)["state"], "unlocked");
    }
    spam(&mut client, "spam 4");
    let lock = node.lock_of(ALICE);
    assert_eq!((&lock["state"], &lock["unlocks_used"]), (&"locked".into(), &0.into()), "{lock}");
    assert!(lock["reason"].as_str().unwrap().contains("spam") && !lock["until"].is_null(), "{lock}");
    for session in [&mut open, &mut client] {
        let refused = ham(session);
        assert!(
            refused.text.starts_with("451 4.7.1 ") && refused.text.contains("is locked, contact postmaster@demo.test"),
            "{refused:?}"
        );
    }
    let mut fresh = node.login(ALICE);
    assert_eq!(ham(&mut fresh).code, 451);
    node.ok(&["user", "unlock", ALICE]);
    assert_eq!(ham(&mut fresh).code, 250);
    sink.wait(2);
}

#[test]
fn a_new_password_ends_what_the_old_one_began() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    let (mut idle, mut busy) = (node.login(ALICE), node.login(ALICE));
    node.ok(&["user", "set", ALICE, "limit_per_minute=50"]);
    assert_eq!(ham(&mut idle).code, 250, "a setting ends no session");
    busy.say("MAIL FROM:<alice@demo.test>");
    busy.say("RCPT TO:<bob@example.net>");
    busy.say("DATA");
    node.ok(&["user", "password", ALICE, "--password", "a new one"]);
    busy.send(format!("{}.\r\n", letter(ALICE, BOB, "late", "hello")).as_bytes());
    assert_eq!(busy.answer().text, "550 5.7.1 sender not permitted");
    assert_eq!(ham(&mut idle).text, "530 5.7.0 authentication required");
    assert_eq!(ham(&mut Client::login(node.submission, ALICE, "a new one")).code, 250);
    assert_eq!(sink.wait(2).len(), 2);
}

#[test]
fn locked_responses_reject_and_discard_and_the_contact_stays_reachable() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    node.ok(&["user", "lock", ALICE, "--reason", "test"]);
    let mut client = node.login(ALICE);
    node.ok(&["user", "set", ALICE, "locked_response=reject"]);
    assert!(ham(&mut client).text.starts_with("550 5.7.1"));
    node.ok(&["user", "set", ALICE, "locked_response=discard"]);
    assert_eq!(ham(&mut client).code, 250);
    let contact = "postmaster@demo.test";
    assert_eq!(client.mail(ALICE, contact, &letter(ALICE, contact, "help", "please unlock me")).code, 250);
    let delivered = sink.wait(1);
    assert_eq!(delivered[0].recipients, [contact]);
    client.say("MAIL FROM:<alice@demo.test>");
    assert_eq!(client.say("RCPT TO:<postmaster@demo.test>").code, 250);
    assert_eq!(client.say("RCPT TO:<bob@example.net>").code, 451);
    client.say("RSET");
    assert_eq!(node.lock_of(ALICE)["state"], "locked_manually");
    assert_eq!(node.json(&["quarantine", "list"]).as_array().unwrap().len(), 1, "one copy of equal messages");
}

#[test]
fn max_unlocks_zero_makes_the_first_lock_permanent_after_its_time() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    node.ok(&["user", "set", ALICE, "max_unlocks=0", "lock_timeout=1"]);
    five_spam(&mut node.login(ALICE));
    wait_at_most(Duration::from_secs(80), "a permanent lock", || {
        (node.lock_of(ALICE)["state"] == "locked_permanently").then_some(())
    });
    assert_eq!(ham(&mut node.login(ALICE)).code, 451);
}

#[test]
fn the_timeout_unlocks_as_often_as_allowed_and_a_kill_forgets_nothing() {
    let sink = Sink::start();
    let mut node = TestNode::with_alice(&sink);
    node.ok(&["user", "set", ALICE, "max_unlocks=1", "lock_timeout=1", "limit_per_day=50"]);
    let mut client = node.login(ALICE);
    assert_eq!(ham(&mut client).code, 250);
    five_spam(&mut client);
    let before = node.json(&["user", "show", ALICE]);
    node.kill();
    node.restart();
    let after = node.json(&["user", "show", ALICE]);
    assert_eq!((&before["lock"], &before["windows"][2]["used"]), (&after["lock"], &after["windows"][2]["used"]));
    wait_at_most(Duration::from_secs(80), "the unlock by timeout", || {
        (node.lock_of(ALICE)["state"] == "unlocked").then_some(())
    });
    assert_eq!(node.lock_of(ALICE)["unlocks_used"], 1);
    let mut client = node.login(ALICE);
    assert_eq!(ham(&mut client).code, 250);
    five_spam(&mut client);
    assert_eq!(node.lock_of(ALICE)["state"], "locked");
    wait_at_most(Duration::from_secs(80), "a permanent lock", || {
        (node.lock_of(ALICE)["state"] == "locked_permanently").then_some(())
    });
    node.ok(&["user", "unlock", ALICE]);
    assert_eq!(node.lock_of(ALICE)["unlocks_used"], 0);
    assert_eq!(ham(&mut node.login(ALICE)).code, 250);
}

#[test]
fn a_virus_locks_at_once_unless_automatic_lock_is_off() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    let eicar = concat!("X5O!P%@AP[4\\PZX54(P^)7CC)7}$", "EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*");
    node.ok(&["user", "set", ALICE, "automatic_lock=false"]);
    let mut client = node.login(ALICE);
    let refused = client.mail(ALICE, BOB, &letter(ALICE, BOB, "bill", eicar));
    assert!(refused.text.starts_with("550 5.7.1") && refused.text.contains("virus"), "{refused:?}");
    assert_eq!(node.lock_of(ALICE)["state"], "unlocked");
    node.ok(&["user", "set", ALICE, "automatic_lock=inherit"]);
    client.mail(ALICE, BOB, &letter(ALICE, BOB, "bill", eicar));
    assert_eq!(node.lock_of(ALICE)["state"], "locked");
}

#[test]
fn why_tells_the_rule_and_the_counters() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    let mut client = node.login(ALICE);
    let refused = spam(&mut client, "win");
    let id = refused.text.split_whitespace().find(|word| word.len() == 26).unwrap();
    let why = node.ok(&["why", id]);
    for part in [ALICE, "spam", "GTUBE", "unlocked", "550 5.7.1"] {
        assert!(why.to_lowercase().contains(&part.to_lowercase()), "`{part}` in:\n{why}");
    }
    for n in 0..4 {
        spam(&mut client, &format!("more {n}"));
    }
    let why = node.ok(&["why", ALICE]);
    assert!(why.contains("locked") && why.contains("spam"), "{why}");
}
