//! Limits as a client meets them.

use crate::support::client::{GTUBE, letter};
use crate::support::node::TestNode;
use crate::support::sink::Sink;

const ALICE: &str = "alice@demo.test";

#[test]
fn exactly_the_limit_gets_through_over_many_sessions() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    node.ok(&["user", "set", ALICE, "limit_per_minute=5"]);
    let answers: Vec<_> = std::thread::scope(|scope| {
        let sessions: Vec<_> = (0..4)
            .map(|session| {
                let mut client = node.login(ALICE);
                scope.spawn(move || {
                    (0..5)
                        .map(|n| {
                            client.mail(
                                ALICE,
                                "bob@example.net",
                                &letter(ALICE, "bob@example.net", &format!("{session}/{n}"), "hello"),
                            )
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        sessions.into_iter().flat_map(|session| session.join().unwrap()).collect()
    });
    assert_eq!(answers.iter().filter(|answer| answer.code == 250).count(), 5, "{answers:?}");
    for refused in answers.iter().filter(|answer| answer.code != 250) {
        assert!(
            refused.text.starts_with("451 4.7.1 limit of 5 messages per minute reached, retry after "),
            "{refused:?}"
        );
    }
    sink.wait(5);
    let user = node.json(&["user", "show", ALICE]);
    assert_eq!(user["windows"][0]["used"], 5);
    assert_eq!(user["settings"]["limit_per_minute"], serde_json::json!({"value": 5, "from": "user"}));
}

#[test]
fn a_known_limit_is_told_at_mail_and_costs_nothing() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    node.ok(&["user", "set", ALICE, "limit_per_hour=1"]);
    let mut client = node.login(ALICE);
    assert_eq!(client.mail(ALICE, "bob@example.net", &letter(ALICE, "bob@example.net", "1", "hello")).code, 250);
    let refused = client.say("MAIL FROM:<alice@demo.test>");
    assert!(refused.text.starts_with("451 4.7.1 limit of 1 messages per hour"), "{refused:?}");
    node.ok(&["user", "set", ALICE, "limit_per_hour=2"]);
    assert_eq!(client.mail(ALICE, "bob@example.net", &letter(ALICE, "bob@example.net", "2", "hello")).code, 250);
}

#[test]
fn a_limit_that_counts_as_abuse_locks() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    node.ok(&["user", "set", ALICE, "limit_per_hour=1", "lock_on_limit=true"]);
    let mut client = node.login(ALICE);
    let mut hello = |n: &str| client.mail(ALICE, "bob@example.net", &letter(ALICE, "bob@example.net", n, "hello"));
    assert_eq!(hello("1").code, 250);
    let refused = hello("2");
    assert!(refused.text.starts_with("451 4.7.1 limit of 1 messages per hour"), "{refused:?}");
    assert_eq!(node.lock_of(ALICE)["state"], "locked");
    assert!(hello("3").text.contains("is locked"));
    assert_eq!(sink.wait(1).len(), 1);
}

#[test]
fn a_message_counts_once_or_per_recipient() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    node.ok(&["user", "set", ALICE, "limit_per_day=4"]);
    let mut client = node.login(ALICE);
    let mut three = |expected: u16| {
        let sender = client.say("MAIL FROM:<alice@demo.test>").code;
        if expected != 250 {
            assert_eq!(sender, expected);
            return;
        }
        for n in 0..3 {
            client.say(&format!("RCPT TO:<r{n}@example.net>"));
        }
        client.say("DATA");
        client.send(format!("{}.\r\n", letter(ALICE, "r0@example.net", "three", "hello")).as_bytes());
        assert_eq!(client.answer().code, expected);
    };
    three(250);
    node.ok(&["user", "set", ALICE, "limit_unit=recipients"]);
    let used = |node: &TestNode| node.json(&["limits", "show", ALICE]);
    assert!(used(&node).to_string().contains("recipients"), "{}", used(&node));
    three(250);
    three(451);
}

#[test]
fn a_message_that_no_wait_can_help_is_refused_for_good() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    node.ok(&["user", "set", ALICE, "limit_unit=recipients", "limit_per_minute=5"]);
    let mut client = node.login(ALICE);
    let mut to_many = |count: usize| {
        client.say("MAIL FROM:<alice@demo.test>");
        for n in 0..count {
            client.say(&format!("RCPT TO:<r{n}@example.net>"));
        }
        client.say("DATA");
        client.send(format!("{}.\r\n", letter(ALICE, "r0@example.net", "many", "hello")).as_bytes());
        client.answer().text
    };
    assert_eq!(to_many(8), "550 5.7.1 limit of 5 recipients per minute is less than this message needs");
    assert!(to_many(3).starts_with("250 "), "what was refused costs nothing");
    assert!(to_many(3).starts_with("451 4.7.1 limit of 5 recipients per minute reached"), "this one fits later");
    assert_eq!(node.json(&["log", "search", "--status", "refused"]).as_array().unwrap().len(), 1);
}

#[test]
fn different_recipients_are_limited_and_known_ones_still_pass() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    node.ok(&["user", "set", ALICE, "max_recipients_per_day=2"]);
    let mut client = node.login(ALICE);
    for to in ["a@example.net", "b@example.net"] {
        assert_eq!(client.mail(ALICE, to, &letter(ALICE, to, "x", "hello")).code, 250);
    }
    let refused = client.mail(ALICE, "c@example.net", &letter(ALICE, "c@example.net", "x", "hello"));
    assert!(refused.text.starts_with("450 4.7.1"), "{refused:?}");
    assert_eq!(client.mail(ALICE, "a@example.net", &letter(ALICE, "a@example.net", "x", "hello")).code, 250);
}

#[test]
fn too_large_is_refused_when_declared_and_when_real() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    node.ok(&["user", "set", ALICE, "max_message_size=5000"]);
    let mut client = node.login(ALICE);
    assert_eq!(client.say("MAIL FROM:<alice@demo.test> SIZE=5001").code, 552);
    let big =
        client.mail(ALICE, "bob@example.net", &letter(ALICE, "bob@example.net", "big", &"0123456789\r\n".repeat(1000)));
    assert!(big.text.starts_with("552 5.3.4"), "{big:?}");
    assert_eq!(client.say("DATA").code, 503);
    assert_eq!(client.mail(ALICE, "bob@example.net", &letter(ALICE, "bob@example.net", "small", "hello")).code, 250);
}

#[test]
fn spam_is_refused_held_and_charged_to_no_window() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    let mut client = node.login(ALICE);
    let refused = client.mail(ALICE, "bob@example.net", &letter(ALICE, "bob@example.net", "win", GTUBE));
    assert!(refused.text.starts_with("550 5.7.1"), "{refused:?}");
    assert_eq!(node.json(&["user", "show", ALICE])["windows"][0]["used"], 0);
    let held = node.json(&["quarantine", "list"]);
    let id = held[0]["id"].as_str().unwrap().to_owned();
    assert!(refused.text.contains(&id), "{refused:?} names {id}");
    node.ok(&["quarantine", "release", &id]);
    let released = sink.wait(1);
    assert!(released[0].text().contains(GTUBE));
    assert_eq!(node.json(&["quarantine", "list"]), serde_json::json!([]));
}

#[test]
fn a_release_stands_in_the_log_before_its_delivery() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    node.ok(&["user", "set", ALICE, "automatic_lock=false"]);
    let mut client = node.login(ALICE);
    for n in 0..3 {
        let subject = format!("win {n}");
        assert_eq!(client.mail(ALICE, "bob@example.net", &letter(ALICE, "bob@example.net", &subject, GTUBE)).code, 550);
        let id = node.json(&["quarantine", "list"])[0]["id"].as_str().unwrap().to_owned();
        node.ok(&["quarantine", "release", &id]);
        let journey = crate::support::wait_for("the end of the journey", || {
            let log = node.json(&["log", "search", "--id", &id]);
            let of = |record: &serde_json::Value| record["event"]["status"].as_str().unwrap().to_owned();
            let statuses: Vec<_> = log.as_array().unwrap().iter().map(of).collect();
            (statuses.len() == 3).then_some(statuses)
        });
        assert_eq!(journey, ["quarantined", "released", "delivered"], "{n}");
    }
}

#[test]
fn accepted_quarantine_answers_250_and_delivers_nothing() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    node.ok(&["user", "set", ALICE, "quarantine_response=accepted"]);
    let mut client = node.login(ALICE);
    assert_eq!(client.mail(ALICE, "bob@example.net", &letter(ALICE, "bob@example.net", "win", GTUBE)).code, 250);
    assert_eq!(client.mail(ALICE, "bob@example.net", &letter(ALICE, "bob@example.net", "ham", "hello")).code, 250);
    let delivered = sink.wait(1);
    assert_eq!(delivered[0].header("Subject").as_deref(), Some("ham"));
    assert_eq!(node.json(&["quarantine", "list"]).as_array().unwrap().len(), 1);
}

#[test]
fn many_releases_at_once_deliver_once() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    let mut client = node.login(ALICE);
    for round in 1..=3 {
        let subject = format!("win {round}");
        assert_eq!(client.mail(ALICE, "bob@example.net", &letter(ALICE, "bob@example.net", &subject, GTUBE)).code, 550);
        let id = node.json(&["quarantine", "list"])[0]["id"].as_str().unwrap().to_owned();
        let released: usize = std::thread::scope(|scope| {
            let release = || usize::from(node.cli(&["quarantine", "release", &id]).status.success());
            let releases: Vec<_> = (0..8).map(|_| scope.spawn(release)).collect();
            releases.into_iter().map(|release| release.join().unwrap()).sum()
        });
        assert_eq!(released, 1);
        sink.wait(round);
        assert!(node.json(&["quarantine", "list"]).as_array().unwrap().is_empty());
    }
    assert_eq!(sink.wait(3).len(), 3);
}
