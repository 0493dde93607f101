//! Who may send: logins, networks, failures.

use crate::support::client::{Client, letter};
use crate::support::node::{PASSWORD, TestNode};
use crate::support::sink::Sink;
use crate::support::wait_for;

const ALICE: &str = "alice@demo.test";

#[test]
fn mailbox_and_domain_log_in_and_others_do_not() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    node.ok(&["user", "add", "demo.test", "--password", "of the domain"]);
    let mut domain = Client::login(node.submission, "demo.test", "of the domain");
    assert_eq!(
        domain.mail("any@demo.test", "bob@example.net", &letter("any@demo.test", "bob@example.net", "x", "hello")).code,
        250
    );
    node.login("ALICE@Demo.Test");
    node.ok(&["user", "disable", ALICE]);
    for (login, password) in
        [(ALICE, PASSWORD), (ALICE, "wrong"), ("nobody@demo.test", "x"), ("", ""), ("demo.test", PASSWORD)]
    {
        let refused = Client::secured(node.submission).auth(login, password);
        assert_eq!(refused.text, "535 5.7.8 authentication credentials invalid", "{login}");
    }
}

#[test]
fn auth_needs_tls_and_mail_needs_auth() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    let mut client = Client::connect(node.submission);
    assert_eq!(client.answer().code, 220);
    let clear = client.say("EHLO client.test");
    assert!(!clear.text.contains("AUTH") && clear.text.contains("STARTTLS"), "{clear:?}");
    assert!(client.auth(ALICE, PASSWORD).text.starts_with("538 5.7.11"));
    assert!(client.say("MAIL FROM:<alice@demo.test>").text.starts_with("530 5.7.0"));
    client.starttls();
    let secured = client.say("EHLO client.test");
    assert!(secured.text.contains("AUTH PLAIN LOGIN") && !secured.text.contains("STARTTLS"), "{secured:?}");
    assert!(client.say("MAIL FROM:<alice@demo.test>").text.starts_with("530 5.7.0"));
    assert!(client.say("AUTH CRAM-MD5").text.starts_with("504 5.5.4"));
    assert_eq!(client.auth(ALICE, PASSWORD).code, 235);
}

#[test]
fn implicit_tls_serves_the_same() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    let mut client = Client::connect(node.submissions);
    client.wrap();
    assert_eq!(client.answer().code, 220);
    client.say("EHLO client.test");
    assert_eq!(client.auth(ALICE, PASSWORD).code, 235);
    assert_eq!(client.mail(ALICE, "bob@example.net", &letter(ALICE, "bob@example.net", "x", "hello")).code, 250);
}

#[test]
fn a_network_sends_without_login_by_the_longest_prefix() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    node.ok(&["domain", "add", "wide.test"]);
    node.ok(&["user", "add", "127.0.1.0/24", "--domain", "wide.test"]);
    node.ok(&["user", "add", "127.0.1.9", "--domain", "demo.test"]);
    let from = |source: &str| {
        let mut client = Client::connect_from(source.parse().unwrap(), node.submission);
        client.answer();
        client.say("EHLO client.test");
        client.mail("x@wide.test", "bob@example.net", &letter("x@wide.test", "bob@example.net", "x", "hello"))
    };
    assert_eq!(from("127.0.1.8").code, 250);
    assert_eq!(from("127.0.1.9").code, 250);
    assert_eq!(from("127.0.2.1").code, 530);
    let domains: Vec<_> = sink.wait(2).iter().map(|mail| mail.header("X-Outgate-Domain").unwrap()).collect();
    assert_eq!(domains.iter().filter(|domain| *domain == "wide.test").count(), 1, "{domains:?}");
    assert_eq!(domains.iter().filter(|domain| *domain == "demo.test").count(), 1, "{domains:?}");
    node.ok(&["settings", "set", "ip_authentication=false"]);
    assert_eq!(from("127.0.1.8").code, 530);
    let twice = node.cli(&["user", "add", "127.0.1.0/24", "--domain", "demo.test"]);
    assert_eq!(twice.status.code(), Some(1), "{}", String::from_utf8_lossy(&twice.stderr));
}

#[test]
fn a_network_with_a_password_must_give_it() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    node.ok(&["user", "add", "127.0.3.0/24", "--domain", "demo.test", "--password", PASSWORD]);
    let mut client = Client::connect_from("127.0.3.1".parse().unwrap(), node.submission);
    client.answer();
    client.say("EHLO client.test");
    assert_eq!(client.say("MAIL FROM:<x@demo.test>").code, 530);
    client.starttls();
    client.say("EHLO client.test");
    assert_eq!(client.auth("127.0.3.0/24", PASSWORD).code, 235);
    assert_eq!(client.say("MAIL FROM:<x@demo.test>").code, 250);
}

#[test]
fn failed_logins_put_an_address_on_the_block_list() {
    let sink = Sink::start();
    let mut node = TestNode::with_alice(&sink);
    node.ok(&["settings", "set", "auth_failures_max=3"]);
    let source = "127.0.4.4".parse().unwrap();
    for _ in 0..3 {
        let mut client = Client::connect_from(source, node.submission);
        client.answer();
        client.say("EHLO client.test");
        client.starttls();
        client.say("EHLO client.test");
        assert_eq!(client.auth(ALICE, "wrong").code, 535);
    }
    let blocked = |node: &TestNode| Client::connect_from(source, node.submission).answer();
    assert!(blocked(&node).text.starts_with("421 4.7.0"), "{:?}", blocked(&node));
    node.kill();
    node.restart();
    assert_eq!(blocked(&node).code, 421);
    assert!(node.ok(&["auth-blocks", "list"]).contains("127.0.4.4"));
    node.ok(&["auth-blocks", "remove", "127.0.4.4"]);
    assert_eq!(blocked(&node).code, 220);
    node.login(ALICE);
}

#[test]
fn concurrent_sessions_of_a_user_are_bounded() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    node.ok(&["user", "set", ALICE, "max_connections=2"]);
    let first = node.login(ALICE);
    let _second = node.login(ALICE);
    assert!(Client::secured(node.submission).auth(ALICE, PASSWORD).text.starts_with("421 4.7.0"));
    drop(first);
    wait_for("a place for another session", || {
        (Client::secured(node.submission).auth(ALICE, PASSWORD).code == 235).then_some(())
    });
}

#[test]
fn sender_rules_hold_for_envelope_and_header() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    node.ok(&["user", "set", ALICE, "require_from_domain=demo.test,*.branch.test"]);
    let mut client = node.login(ALICE);
    let mut send = |envelope: &str, header: &str| {
        client.mail(envelope, "bob@example.net", &letter(header, "bob@example.net", "x", "hello")).text
    };
    assert!(send("other@evil.test", ALICE).starts_with("550 5.7.1"));
    assert!(send(ALICE, "boss@evil.test").starts_with("550 5.7.1"));
    assert!(send(ALICE, "alice@demo.test>, <boss@evil.test").starts_with("550 5.7.1"));
    assert!(send("x@paris.branch.test", "x@paris.branch.test").starts_with("250"));
    assert!(send(ALICE, ALICE).starts_with("250"));
    node.ok(&["user", "set", ALICE, "blocked_senders=al*@demo.test"]);
    assert!(send(ALICE, ALICE).starts_with("550 5.7.1"));
}
