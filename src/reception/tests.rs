#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use outgate_cluster::Command;
use outgate_cluster::command::DomainPatch;

use super::*;
use crate::config::Config;
use crate::submission::fixture::{CONTACT, Fixture, propose};

fn path(text: &str) -> ReversePath {
    if text.is_empty() { ReversePath::Null } else { ReversePath::Address(text.parse().unwrap()) }
}

async fn mail(node: &Fixture, from: &str, size: Option<u64>) -> String {
    let answer = sender(&node.line, &node.client, &path(from), size).await;
    answer.map_or_else(|reply| reply.to_string(), |()| "250".to_owned())
}

async fn rcpt(node: &Fixture, from: &str, known: &[&str], to: &str) -> String {
    let recipients: Vec<Address> = known.iter().map(|known| known.parse().unwrap()).collect();
    let reverse_path = path(from);
    let transaction = Transaction { reverse_path: &reverse_path, recipients: &recipients };
    let answer = recipient(&node.line, &node.client, transaction, &to.parse().unwrap()).await;
    answer.map_or_else(|reply| reply.to_string(), |()| "250".to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn senders_are_asked_for_size_rules_and_a_domain_that_receives() {
    let node = Fixture::new(&["max_message_size=2000", "blocked_senders=mallory@example.com"]).await;
    for (from, size, expected) in [
        ("alice@example.com", None, "250"),
        ("alice@example.com", Some(2000), "250"),
        ("alice@example.com", Some(2001), "552 5.3.4"),
        ("mallory@example.com", None, "550 5.7.1"),
        ("alice@nothing.test", None, "550 5.1.8"),
        ("alice@null.test", None, "550 5.7.27"),
        ("alice@broken.test", None, "451 4.4.3"),
        ("alice@[192.0.2.1]", None, "550 5.1.8"),
        ("", None, "250"),
        ("", Some(2001), "552 5.3.4"),
    ] {
        let reply = mail(&node, from, size).await;
        assert!(reply.starts_with(expected), "{from}: {reply}");
    }
    node.set(&["valid_sender_required=off"]).await;
    assert_eq!(mail(&node, "alice@nothing.test", None).await, "250");
    node.set(&["valid_sender_required=mailbox"]).await;
    assert!(mail(&node, "alice@nothing.test", None).await.starts_with("550 5.1.8"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reached_limit_is_told_at_mail_and_a_lock_is_not() {
    let node = Fixture::new(&["limit_per_minute=1"]).await;
    assert_eq!(mail(&node, "alice@example.com", None).await, "250");
    assert!(node.submit("From: alice@example.com\r\n\r\nx\r\n").await.starts_with("250"));
    let reply = mail(&node, "alice@example.com", None).await;
    assert!(reply.starts_with("451 4.7.1 limit of 1 messages per minute reached, retry after "), "{reply}");
    assert_eq!(mail(&node, "", None).await, "250", "the null sender has its own limit");
    node.set(&["lock_on_limit=true"]).await;
    assert_eq!(mail(&node, "alice@example.com", None).await, "250", "the end of DATA will lock");
    node.set(&["limit_per_minute=0"]).await;
    node.lock().await;
    assert_eq!(mail(&node, "alice@example.com", None).await, "250");
}

#[tokio::test(flavor = "multi_thread")]
async fn recipients_need_a_domain_that_receives_where_mail_goes_by_mx() {
    let node = Fixture::new(&[]).await;
    let cases = [("bob@example.net", "250"), ("bob@nothing.test", "550 5.1.2"), ("bob@null.test", "556 5.1.10")];
    for (to, expected) in cases {
        assert!(rcpt(&node, "alice@example.com", &[], to).await.starts_with(expected), "{to}");
    }
    assert_eq!(rcpt(&node, "alice@example.com", &[], "bob@broken.test").await, "250", "the queue will ask again");
    assert_eq!(rcpt(&node, "alice@example.com", &[], "bob@[192.0.2.1]").await, "250");
    let name = outgate_cluster::DomainName::new("example.com").unwrap();
    let patch = DomainPatch { route: Some("127.0.0.1:26".to_owned()), ..DomainPatch::default() };
    propose(&node.line.cluster, Command::DomainSet { name, patch }).await;
    assert_eq!(rcpt(&node, "alice@example.com", &[], "bob@nothing.test").await, "250", "the route knows");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_makes_the_look_up_needless() {
    let mut config = Config::default();
    config.delivery.relay = "127.0.0.1:26".to_owned();
    let node = Fixture::with_config(&[], config).await;
    assert_eq!(rcpt(&node, "alice@example.com", &[], "bob@nothing.test").await, "250");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_null_sender_has_one_recipient() {
    let node = Fixture::new(&[]).await;
    assert_eq!(rcpt(&node, "", &[], "bob@example.net").await, "250");
    assert!(rcpt(&node, "", &["bob@example.net"], "carol@example.net").await.starts_with("550 5.5.3"));
    assert_eq!(rcpt(&node, "alice@example.com", &["bob@example.net"], "carol@example.net").await, "250");
}

#[tokio::test(flavor = "multi_thread")]
async fn new_addresses_stop_at_the_limit_and_known_ones_pass() {
    let node = Fixture::new(&["max_recipients_per_day=2"]).await;
    let from = "alice@example.com";
    assert!(node.submit("From: alice@example.com\r\n\r\nx\r\n").await.starts_with("250"), "bob is known now");
    assert_eq!(rcpt(&node, from, &[], "bob@example.net").await, "250");
    assert_eq!(rcpt(&node, from, &["bob@example.net"], "carol@example.net").await, "250");
    let known = ["bob@example.net", "carol@example.net"];
    assert_eq!(rcpt(&node, from, &known, "carol@example.net").await, "250", "twice the same");
    assert_eq!(rcpt(&node, from, &known, "BOB@example.net").await, "250");
    let reply = rcpt(&node, from, &known, "dave@example.net").await;
    assert_eq!(reply, "450 4.7.1 limit of 2 different recipients per day reached");
    node.set(&["limits_enabled=false"]).await;
    assert!(rcpt(&node, from, &known, "dave@example.net").await.starts_with("450"), "a limit of its own");
    assert!(node.submit("From: alice@example.com\r\n\r\nx\r\n").await.starts_with("250"));
    node.set(&["max_recipients_per_day=1"]).await;
    assert!(rcpt(&node, from, &[], "dave@example.net").await.starts_with("450"));
    assert_eq!(rcpt(&node, "", &[], "dave@example.net").await, "250", "the null sender is not counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_recipients_lock() {
    let node = Fixture::new(&["invalid_recipient_limit=3"]).await;
    rcpt(&node, "alice@example.com", &[], "a@nothing.test").await;
    malformed_recipient(&node.line, &node.client, &path("alice@example.com")).await;
    assert!(node.submit("From: alice@example.com\r\n\r\nx\r\n").await.starts_with("250"));
    rcpt(&node, "alice@example.com", &[], "b@nothing.test").await;
    assert!(node.submit("From: alice@example.com\r\n\r\nx\r\n").await.starts_with("451 4.7.1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_recipients_of_bounces_do_not_lock() {
    let node = Fixture::new(&["invalid_recipient_limit=1"]).await;
    assert!(rcpt(&node, "", &[], "a@nothing.test").await.starts_with("550 5.1.2"));
    assert!(node.submit("From: alice@example.com\r\n\r\nx\r\n").await.starts_with("250"));
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_recipients_of_one_identity_lock_it_alone() {
    let node = Fixture::new(&["invalid_recipient_limit=1", "identification_method=envelope_sender"]).await;
    malformed_recipient(&node.line, &node.client, &path("bob@example.com")).await;
    assert!(node.submit("From: alice@example.com\r\n\r\nx\r\n").await.starts_with("250"));
    let mut incoming = node.incoming(&["carol@example.net"], "From: bob@example.com\r\n\r\nx\r\n");
    incoming.envelope.reverse_path = path("bob@example.com");
    let reply = crate::submission::submit(&node.line, incoming).await.to_string();
    assert!(reply.starts_with("451 4.7.1 bob@example.com is locked"), "{reply}");
    malformed_recipient(&node.line, &node.client, &path("")).await;
    assert!(node.submit("From: alice@example.com\r\n\r\nx\r\n").await.starts_with("250"));
}

#[tokio::test(flavor = "multi_thread")]
async fn postmaster_is_the_contact_of_the_users_domain() {
    let node = Fixture::new(&[]).await;
    let meant = || postmaster(&node.line, &node.client.user.view).unwrap();
    assert_eq!(meant().as_str(), CONTACT);
    let name = outgate_cluster::DomainName::new("example.com").unwrap();
    let patch = DomainPatch { contact: Some(String::new()), ..DomainPatch::default() };
    propose(&node.line.cluster, Command::DomainSet { name, patch }).await;
    assert_eq!(meant().as_str(), "postmaster@example.com");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_locked_the_contact_is_written_to_alone() {
    let node = Fixture::new(&[]).await;
    let from = "alice@example.com";
    assert_eq!(rcpt(&node, from, &[CONTACT], "bob@example.net").await, "250");
    node.lock().await;
    assert_eq!(rcpt(&node, from, &[], CONTACT).await, "250");
    assert_eq!(rcpt(&node, from, &[], "bob@example.net").await, "250", "refused at the end of DATA");
    let alone = "451 4.7.1 locked: write to the administrator in a message without other recipients";
    assert_eq!(rcpt(&node, from, &[CONTACT], "bob@example.net").await, alone);
    assert_eq!(rcpt(&node, from, &["bob@example.net"], CONTACT).await, alone, "true of either");
    assert_eq!(rcpt(&node, from, &[CONTACT], CONTACT).await, "250", "twice the same");
    assert_eq!(rcpt(&node, from, &["bob@example.net"], "carol@example.net").await, "250");
}
