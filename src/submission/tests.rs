#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::fs;
use std::time::Duration;

use outgate_cluster::command::{DkimAlgorithm, DomainPatch, NewUser, UserPatch};
use outgate_cluster::state::settings::{Level, Patch};
use outgate_cluster::{AdmissionId, Command, DomainName, Login};

use super::fixture::{CONTACT, Fixture, login, propose};
use super::*;
use crate::mail::ReversePath;

const PLAIN: &str = "From: Alice <alice@example.com>\r\nTo: bob@example.net\r\nSubject: lunch\r\n\r\nat noon?\r\n";
const GTUBE: &str = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X";
const EICAR: &str = concat!(r"X5O!P%@AP[4\PZX54(P^)7CC)7}$EI", "CAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*");

fn spam(n: usize) -> String {
    format!("From: alice@example.com\r\nSubject: offer {n}\r\n\r\n{GTUBE}\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_message_is_accepted_stamped_queued_and_logged() {
    let node = Fixture::new(&[]).await;
    let incoming = node.incoming(&["bob@example.net", "carol@example.net"], PLAIN);
    let id = incoming.id;
    assert_eq!(submit(&node.line, incoming).await, Reply::accepted(id));
    let bytes = node.line.queue.bytes(id).await.unwrap();
    assert_eq!(bytes.body(), b"at noon?\r\n");
    assert_eq!(bytes.named("X-Outgate-Domain").next().unwrap().text(), "example.com");
    assert_eq!(bytes.named("X-Report-Abuse-To").next().unwrap().text(), CONTACT);
    let [record] = &node.records().await[..] else { panic!("one record") };
    assert_eq!((record.status, record.class.as_str(), record.lock.as_str()), (Status::Accepted, "clean", "unlocked"));
    assert_eq!((record.subject.as_str(), record.recipients.len()), ("lunch", 2));
    assert!(record.log_index.is_some() && record.counters.contains(&"user/minute 1/60".to_owned()), "{record:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_the_limit_gets_through() {
    let node = Fixture::new(&["limit_per_minute=5"]).await;
    let mut accepted = 0;
    for _ in 0..20 {
        let reply = node.submit(PLAIN).await;
        accepted += usize::from(reply.starts_with("250 "));
        assert!(reply.starts_with("250 ") || reply.starts_with("451 4.7.1 limit of 5 messages per minute"), "{reply}");
    }
    assert_eq!((accepted, node.queued().await, node.records().await.len()), (5, 5, 20));
    let refused = node.records().await.remove(0);
    assert_eq!((refused.status, refused.class.as_str()), (Status::Rejected, "limit"));
}

#[tokio::test(flavor = "multi_thread")]
async fn five_spam_messages_lock_and_locked_mail_is_kept_once() {
    let node = Fixture::new(&[]).await;
    for n in 0..5 {
        let reply = node.submit(&spam(n)).await;
        assert!(reply.starts_with("550 5.7.1 message ") && reply.ends_with(" refused as spam"), "{reply}");
    }
    assert_eq!(node.held().await.len(), 5);
    for _ in 0..3 {
        assert_eq!(node.submit(PLAIN).await, format!("451 4.7.1 192.0.2.9/32 is locked, contact {CONTACT}"));
    }
    assert_eq!((node.held().await.len(), node.queued().await), (6, 0));
    let records = node.records().await;
    assert_eq!(records.len(), 8);
    assert_eq!((records[0].class.as_str(), records[0].lock.as_str()), ("locked", "locked"));
    assert_eq!((records[7].class.as_str(), records[7].status), ("spam", Status::Quarantined));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_locked_response_is_the_settings() {
    let node = Fixture::new(&["locked_response=reject"]).await;
    node.lock().await;
    assert!(node.submit(PLAIN).await.starts_with("550 5.7.1 192.0.2.9/32 is locked"));
    node.set(&["locked_response=discard"]).await;
    assert!(node.submit(PLAIN).await.starts_with("250 2.0.0 accepted as "));
    assert_eq!((node.queued().await, node.held().await.len()), (0, 1));
    assert_eq!(node.records().await[0].status, Status::Discarded);
    let to_contact = node.incoming(&[CONTACT], PLAIN);
    assert_eq!(submit(&node.line, to_contact).await.code, 250, "the admin contact can be written to");
    assert_eq!(node.queued().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn spam_is_held_whatever_the_client_hears_or_delivered_where_it_is_not_blocked() {
    let node = Fixture::new(&["quarantine_response=accepted"]).await;
    assert!(node.submit(&spam(0)).await.starts_with("250 2.0.0"));
    assert_eq!((node.queued().await, node.held().await.len()), (0, 1));
    node.set(&["block_spam=false"]).await;
    let incoming = node.incoming(&["bob@example.net"], &spam(1));
    let id = incoming.id;
    assert_eq!(submit(&node.line, incoming).await.code, 250);
    let bytes = node.line.queue.bytes(id).await.unwrap();
    assert_eq!(bytes.named("X-Outgate-Class").next().unwrap().text(), "spam");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_virus_is_refused_held_and_locks_at_once() {
    let node = Fixture::new(&["block_spam=false"]).await;
    let reply = node.submit(&format!("From: alice@example.com\r\n\r\n{EICAR}\r\n")).await;
    assert!(reply.starts_with("550 5.7.1 ") && reply.ends_with("it carries a virus"), "{reply}");
    assert_eq!(node.held().await[0].class, "virus");
    assert!(node.submit(PLAIN).await.starts_with("451 4.7.1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn form_size_and_author_are_refused_without_a_strike() {
    let node = Fixture::new(&["max_message_size=2000", "require_from_domain=example.com"]).await;
    for (text, expected) in [
        (format!("From: alice@example.com\r\n\r\n{}\r\n", "x".repeat(999)), "550 5.6.0 message "),
        (format!("From: alice@example.com\r\n\r\n{}", "x\r\n".repeat(1_000)), "552 5.3.4 message exceeds 2000 octets"),
        (format!("rubbish\r\n{PLAIN}"), "550 5.6.0 message "),
        (format!("{}{PLAIN}", "Received: x\r\n".repeat(101)), "554 5.4.6 message "),
        (PLAIN.replace("Alice <alice@example.com>", "a@example.com, b@example.org"), "550 5.7.1 message "),
        (PLAIN.replace("From: Alice <alice@example.com>\r\n", ""), "550 5.7.1 message "),
    ] {
        let reply = node.submit(&text).await;
        assert!(reply.starts_with(expected), "{reply}");
    }
    assert_eq!((node.records().await.len(), node.held().await.len(), node.queued().await), (6, 0, 0));
    assert!(node.submit(PLAIN).await.starts_with("250 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_that_was_disabled_since_its_login_is_refused_and_logged() {
    let node = Fixture::new(&[]).await;
    let patch = UserPatch { enabled: Some(false), ..UserPatch::default() };
    propose(&node.line.cluster, Command::UserSet { login: login(), patch }).await;
    assert_eq!(node.submit(PLAIN).await, "550 5.7.1 sender not permitted");
    assert_eq!(node.records().await[0].status, Status::Rejected);
}

#[tokio::test(flavor = "multi_thread")]
async fn identities_are_locked_alone_and_their_header_is_removed() {
    let header = r#"identification_headers=[{"name":"X-Person","regex":null,"remove":true}]"#;
    let node = Fixture::new(&["identification_method=header", header]).await;
    let from = |person: &str, text: &str| format!("X-Person: {person}\r\n{text}");
    for n in 0..5 {
        node.submit(&from("Dave", &spam(n))).await;
    }
    assert_eq!(node.submit(&from("Dave", PLAIN)).await, format!("451 4.7.1 dave is locked, contact {CONTACT}"));
    let incoming = node.incoming(&["bob@example.net"], &from("Erin", PLAIN));
    let id = incoming.id;
    assert_eq!(submit(&node.line, incoming).await.code, 250);
    let bytes = node.line.queue.bytes(id).await.unwrap();
    assert_eq!(bytes.named("X-Person").count(), 0);
    assert_eq!(bytes.named("X-Outgate-Identity").next().unwrap().text(), "erin");
}

fn dkim_key(selector: &str) -> Command {
    let der = aws_lc_rs::signature::Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new()).unwrap();
    let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der.as_ref());
    Command::DkimPut {
        domain: DomainName::new("example.com").unwrap(),
        selector: selector.to_owned(),
        algorithm: DkimAlgorithm::Ed25519Sha256,
        private_key: format!("-----BEGIN PRIVATE KEY-----\n{base64}\n-----END PRIVATE KEY-----\n"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_authors_domain_signs_with_both_keys_of_the_selector() {
    let node = Fixture::new(&[]).await;
    for selector in ["default", "default-ed25519", "default-old", "other"] {
        propose(&node.line.cluster, dkim_key(selector)).await;
    }
    let signatures = async |text: &str| {
        let incoming = node.incoming(&["bob@example.net"], text);
        let id = incoming.id;
        assert_eq!(submit(&node.line, incoming).await.code, 250);
        let bytes = node.line.queue.bytes(id).await.unwrap();
        bytes.named("DKIM-Signature").count()
    };
    assert_eq!(signatures(PLAIN).await, 2);
    assert_eq!(signatures(&PLAIN.replace("alice@example.com", "alice@example.org")).await, 0);
    assert_eq!(signatures(&PLAIN.replace("From:", "X-From:")).await, 2, "by the envelope sender");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_signs_for_its_own_domain_a_smarthost_for_all() {
    let node = Fixture::new(&[]).await;
    propose(&node.line.cluster, dkim_key("default")).await;
    let name = DomainName::new("example.org").unwrap();
    propose(&node.line.cluster, Command::DomainAdd { name, patch: DomainPatch::default() }).await;
    for (login, setting, expected) in [
        ("dave@example.com", "max_unlocks=1", 1),
        ("example.com", "max_unlocks=1", 1),
        ("dave@example.org", "max_unlocks=1", 0),
        ("example.org", "require_from_domain=.example.com", 0),
        ("erin@example.org", "require_from_domain=example.com,example.org", 1),
        ("frank@example.org", "identification_method=envelope_sender", 1),
    ] {
        let login: Login = login.parse().unwrap();
        let settings = Patch::parse(&[setting], Level::User).unwrap();
        let user =
            NewUser { login: login.clone(), owner: None, password_hash: Some("$argon2id$".to_owned()), settings };
        propose(&node.line.cluster, Command::UserAdd { user }).await;
        let view = Arc::new(node.line.cluster.read(|state| state.user(&login)).unwrap());
        let mut incoming = node.incoming(&["bob@example.net"], PLAIN);
        incoming.client.user = Authenticated { view: Arc::clone(&view), authentication_user: None, place: None };
        let judged = judge::judge(&node.line, view, &incoming, check::run).await;
        let signed = decide::stamped(&node.line, &incoming, &judged).await;
        assert_eq!(signed.named("DKIM-Signature").count(), expected, "{login} {setting}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_answer_needs_a_quarantine_that_holds() {
    let node = Fixture::new(&["quarantine_response=accepted"]).await;
    let quarantine = node.directory.path().join("quarantine");
    fs::remove_dir_all(&quarantine).unwrap();
    fs::write(&quarantine, "no directory").unwrap();
    assert!(node.submit(&spam(0)).await.starts_with("451 4.3.0"));
    node.set(&["quarantine_response=rejected"]).await;
    assert!(node.submit(&spam(1)).await.starts_with("550 5.7.1"));
    assert_eq!(node.records().await[0].status, Status::Refused);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_user_cannot_fill_the_disk() {
    let node = Fixture::new(&["locked_response=discard"]).await;
    node.lock().await;
    let different = |n: usize| PLAIN.replace("lunch", &format!("lunch {n}"));
    for n in 0..100 {
        assert!(node.submit(&different(n)).await.starts_with("250"));
    }
    assert!(node.submit(&different(100)).await.starts_with("451 4.3.0"), "neither kept nor dropped");
    assert!(node.submit(&different(7)).await.starts_with("250"), "a retry of what is kept");
    node.set(&["locked_response=defer"]).await;
    assert!(node.submit(&different(101)).await.contains("is locked"));
    assert_eq!((node.held().await.len(), node.records().await.len()), (100, 103));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_not_spent_on_quarantine() {
    let mut config = Config::default();
    config.spool.free_min_bytes = u64::MAX;
    let node = Fixture::with_config(&[], config).await;
    assert!(node.submit(&spam(0)).await.starts_with("550 5.7.1"));
    node.lock().await;
    assert!(node.submit(PLAIN).await.contains("is locked"));
    assert_eq!(node.held().await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_decision_the_client_keeps_its_message() {
    let node = Fixture::new(&[]).await;
    node.line.cluster.shutdown().await;
    let reply = node.submit(PLAIN).await;
    assert!(reply.starts_with("421 4.3.2") || reply.starts_with("451 4.3.0"), "{reply}");
    assert_eq!((node.queued().await, node.records().await.len()), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_null_sender_has_a_limit_of_its_own() {
    let node = Fixture::new(&["limit_per_minute=1"]).await;
    for _ in 0..3 {
        let mut incoming = node.incoming(&["bob@example.net"], PLAIN);
        incoming.envelope.reverse_path = ReversePath::Null;
        assert_eq!(submit(&node.line, incoming).await.code, 250);
    }
    assert!(node.submit(PLAIN).await.starts_with("250"));
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_that_panic_answer_as_scanner_failure_says() {
    let node = Fixture::new(&[]).await;
    let large = format!("{PLAIN}{}", "0123456789\r\n".repeat(30_000));
    let submit = async |text: &str| {
        let incoming = node.incoming(&["bob@example.net"], text);
        submit_checked(&node.line, incoming, |_, _| panic!("a check panics")).await.to_string()
    };
    for text in [PLAIN, &large] {
        assert_eq!(submit(text).await, "451 4.3.0 content check failed, try later");
    }
    let patch = Patch::parse(&["scanner_failure=accept"], Level::Cluster).unwrap();
    propose(&node.line.cluster, Command::DefaultsSet { patch }).await;
    for text in [PLAIN, &large] {
        assert!(submit(text).await.starts_with("250 2.0.0"));
    }
    let records = node.records().await;
    assert_eq!((records.len(), node.queued().await), (4, 2));
    assert_eq!((records[3].class.as_str(), records[3].status), ("blocked", Status::Rejected));
    assert!(records.iter().all(|record| record.evidence[1].starts_with("content: the checks failed")), "{records:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_of_data_without_a_message_is_logged() {
    let node = Fixture::new(&[]).await;
    let incoming = node.incoming(&["bob@example.net"], "");
    let refuse = |fault| refused(&node.line, incoming.id, &node.client, &incoming.envelope, 99, fault).to_string();
    assert_eq!(refuse(Fault::TooLarge { limit: 10 }), "552 5.3.4 message exceeds 10 octets");
    let record = node.records().await.remove(0);
    assert_eq!(record.evidence, ["size: too large"]);
    assert_eq!((record.class.as_str(), record.status, record.size), ("oversize", Status::Refused, 99));
    assert_eq!(record.reply, "552 5.3.4 message exceeds 10 octets");
    for (fault, text) in [
        (Fault::BareCr, "structure: a CR without LF"),
        (Fault::BareLf, "structure: an LF without CR"),
        (Fault::Nul, "structure: a NUL octet"),
    ] {
        assert!(refuse(fault).starts_with("550 5.6.0 message "));
        assert!(
            node.records().await.iter().any(|record| record.evidence == [text] && record.class == "blocked"),
            "{text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_at_once_never_pass_the_limit() {
    let node = Arc::new(Fixture::new(&["limit_per_minute=40"]).await);
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let node = Arc::clone(&node);
            tokio::spawn(async move { node.submit(PLAIN).await.starts_with("250") })
        })
        .collect();
    let mut accepted = 0;
    for task in tasks {
        accepted += usize::from(task.await.unwrap());
    }
    assert_eq!((accepted, node.queued().await, node.records().await.len()), (40, 40, 100));
}

/// What the state still remembers of this node's admissions.
fn remembered(node: &Fixture) -> Vec<u64> {
    let (id, epoch) = (node.line.cluster.node_id(), node.line.cluster.epoch());
    let next = node.line.cluster.next_admission();
    node.line.cluster.settle(next);
    let outcome = |sequence| AdmissionId { node: id, epoch, sequence };
    let known = |sequence: &u64| node.line.cluster.read(|state| state.admission(outcome(*sequence)).is_some());
    (0..next.sequence).filter(known).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_admission_is_settled_in_the_end() {
    let node = Fixture::new(&["limit_per_minute=2"]).await;
    for text in [PLAIN, &spam(0), PLAIN, PLAIN] {
        node.submit(text).await;
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        // An admission carries what was settled before it, so only the last may be remembered.
        node.submit(PLAIN).await;
        if remembered(&node).len() <= 1 {
            break;
        }
        assert!(Instant::now() < deadline, "{:?}", remembered(&node));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn recipient_hashes_are_the_same_for_ever() {
    let hash = |text: &str| recipient_hash(&text.parse().unwrap());
    assert_eq!(hash("Bob@example.net"), hash("bob@EXAMPLE.net"));
    assert_ne!(hash("bob@example.net"), hash("bob@example.org"));
    assert_eq!(hash("bob@example.net"), 14_391_659_330_605_427_083);
}
