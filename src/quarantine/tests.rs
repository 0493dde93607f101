#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::fs;

use bytes::Bytes;

use super::*;
use crate::mail::{Body, ReversePath};

const DAY_MS: u64 = 24 * 3600 * 1000;

fn held(id: MessageId, user: &str) -> Held {
    let envelope = Envelope {
        reverse_path: ReversePath::Null,
        recipients: Vec::new(),
        body: Body::SevenBit,
        smtputf8: false,
        ret: None,
        envid: None,
    };
    Held {
        id,
        envelope,
        domain: "example.com".to_owned(),
        user: user.to_owned(),
        identity: None,
        class: "spam".to_owned(),
        score: 1.0,
        evidence: vec!["gtube: test string".to_owned()],
        subject: "hello".to_owned(),
        size: 10,
        held_ms: id.timestamp_ms(),
        max_days_to_retry: 4,
    }
}

fn message(text: &'static str) -> Message {
    Message::new(Bytes::from_static(text.as_bytes()))
}

/// An id of that time; `low` tells ids of one time apart.
fn id_at(ms: u64, low: u8) -> MessageId {
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&ms.to_be_bytes()[2..]);
    bytes[15] = low;
    MessageId::from_bytes(bytes)
}

#[tokio::test]
async fn what_is_held_comes_back_byte_for_byte_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let id = MessageId::generate();
    let text = message("Subject: a\r\n\r\nline\nwith bare feed\r\n");
    let first = Quarantine::open(directory.path(), 14).unwrap();
    assert!(first.hold(held(id, "alice@example.com"), text.clone(), false).await.unwrap());
    drop(first);
    let quarantine = Quarantine::open(directory.path(), 14).unwrap();
    assert_eq!(quarantine.show(id).await.unwrap(), (held(id, "alice@example.com"), text));
    quarantine.remove(id).await.unwrap();
    assert!(matches!(quarantine.show(id).await, Err(QuarantineError::Unknown(gone)) if gone == id));
    assert!(matches!(quarantine.remove(id).await, Err(QuarantineError::Unknown(_))));
}

#[tokio::test]
async fn lists_newest_first_with_filters() {
    let directory = tempfile::tempdir().unwrap();
    let quarantine = Quarantine::open(directory.path(), 14).unwrap();
    let ids: Vec<_> = (0u8..4).map(|n| id_at(DAY_MS * (100 + u64::from(n) / 2), n)).collect();
    for (n, id) in ids.iter().enumerate() {
        let user = if n % 2 == 0 { "alice@example.com" } else { "bob@example.com" };
        quarantine.hold(held(*id, user), message("\r\nx"), false).await.unwrap();
    }
    let list = async |domain, user, count| -> Vec<MessageId> {
        quarantine.list(domain, user, count).await.unwrap().iter().map(|held| held.id).collect()
    };
    assert_eq!(list(None, None, 10).await, [ids[3], ids[2], ids[1], ids[0]]);
    assert_eq!(list(None, None, 2).await, [ids[3], ids[2]]);
    assert_eq!(list(Some("example.com"), Some("bob@example.com"), 10).await, [ids[3], ids[1]]);
    assert_eq!(list(Some("example.org"), None, 10).await, []);
}

#[tokio::test]
async fn once_keeps_one_copy_until_it_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let quarantine = Quarantine::open(directory.path(), 14).unwrap();
    let ids: Vec<_> = (0..6).map(|n| id_at(DAY_MS * 100, n)).collect();
    let hold =
        async |n: usize, user: &str, text| quarantine.hold(held(ids[n], user), message(text), true).await.unwrap();
    assert!(hold(0, "alice", "Date: 1\r\nSubject: s\r\n\r\nbody").await);
    assert!(!hold(1, "alice", "Date: 2\r\nMessage-ID: <2@x>\r\nSubject: s\r\n\r\nbody").await, "a retry");
    assert!(hold(2, "bob", "Date: 1\r\nSubject: s\r\n\r\nbody").await, "another User");
    assert!(hold(3, "alice", "Date: 1\r\nSubject: s\r\n\r\nother body").await);
    assert!(hold(4, "alice", "Date: 1\r\nSubject: t\r\n\r\nbody").await);
    quarantine.remove(ids[0]).await.unwrap();
    assert!(hold(5, "alice", "Date: 3\r\nSubject: s\r\n\r\nbody").await, "the copy is gone");
}

#[tokio::test]
async fn a_copy_is_wanted_once_and_while_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let quarantine = Quarantine::open(directory.path(), 14).unwrap();
    let (first, other) = (held(id_at(DAY_MS, 1), "a"), held(id_at(DAY_MS, 2), "a"));
    let wants = async |held: &Held, text| quarantine.wants(held.clone(), message(text)).await;
    assert!(wants(&first, "\r\nx").await.unwrap());
    assert!(quarantine.hold(first.clone(), message("\r\nx"), true).await.unwrap());
    assert!(!wants(&other, "\r\nx").await.unwrap());
    let huge = Held { size: 100 << 20, ..other };
    assert!(matches!(wants(&huge, "\r\ny").await, Err(QuarantineError::Full)));
    assert!(matches!(quarantine.hold(huge, message("\r\ny"), true).await, Err(QuarantineError::Full)));
}

#[tokio::test]
async fn a_marker_without_its_copy_counts_for_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let quarantine = Quarantine::open(directory.path(), 14).unwrap();
    let (lost, next) = (id_at(DAY_MS, 1), id_at(DAY_MS, 2));
    assert!(quarantine.hold(held(lost, "a"), message("\r\nx"), true).await.unwrap());
    fs::remove_file(directory.path().join("1").join(format!("{lost}.held"))).unwrap();
    assert!(quarantine.hold(held(next, "a"), message("\r\nx"), true).await.unwrap());
    assert!(!quarantine.hold(held(lost, "a"), message("\r\nx"), true).await.unwrap());
}

#[tokio::test]
async fn simultaneous_retries_leave_one_copy() {
    let directory = tempfile::tempdir().unwrap();
    let quarantine = Quarantine::open(directory.path(), 14).unwrap();
    let tasks: Vec<_> = (0..20)
        .map(|n| {
            let quarantine = quarantine.clone();
            tokio::spawn(
                async move { quarantine.hold(held(id_at(DAY_MS, n), "a"), message("\r\nx"), true).await.unwrap() },
            )
        })
        .collect();
    let mut kept = 0;
    for task in tasks {
        kept += usize::from(task.await.unwrap());
    }
    assert_eq!((kept, quarantine.list(None, None, 100).await.unwrap().len()), (1, 1));
}

#[tokio::test]
async fn an_entry_is_taken_out_once_and_comes_back_or_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let quarantine = Quarantine::open(directory.path(), 14).unwrap();
    let id = id_at(DAY_MS, 1);
    assert!(quarantine.hold(held(id, "a"), message("\r\nx"), true).await.unwrap());
    let takers: Vec<_> = (0..20)
        .map(|_| {
            let quarantine = quarantine.clone();
            tokio::spawn(async move { quarantine.take(id).await.is_ok() })
        })
        .collect();
    let mut taken = 0;
    for taker in takers {
        taken += usize::from(taker.await.unwrap());
    }
    assert_eq!((taken, quarantine.list(None, None, 9).await.unwrap().len()), (1, 0));
    quarantine.put_back(id).await.unwrap();
    assert_eq!(quarantine.take(id).await.unwrap().1, message("\r\nx"));
    let quarantine = Quarantine::open(directory.path(), 14).unwrap();
    assert_eq!(quarantine.take(id).await.unwrap().1, message("\r\nx"), "a crash in between");
    quarantine.taken(id).await.unwrap();
    assert!(matches!(quarantine.take(id).await, Err(QuarantineError::Unknown(_))));
    assert_eq!(fs::read_dir(directory.path().join("once")).unwrap().count(), 0, "its marker went with it");
}

#[tokio::test]
async fn expires_by_age_with_markers_and_directories() {
    let directory = tempfile::tempdir().unwrap();
    let quarantine = Quarantine::open(directory.path(), 14).unwrap();
    let (old, middle, young) = (id_at(DAY_MS * 100, 0), id_at(DAY_MS * 101 + 5, 1), id_at(DAY_MS * 101 + 50, 2));
    for id in [old, middle, young] {
        quarantine.hold(held(id, &id.to_string()), message("\r\nx"), true).await.unwrap();
    }
    let expired = quarantine.expire(DAY_MS * 115 + 20).await.unwrap();
    assert_eq!(expired, [old, middle]);
    assert!(!directory.path().join("100").exists());
    assert_eq!(fs::read_dir(directory.path().join("once")).unwrap().count(), 1);
    assert_eq!(quarantine.list(None, None, 9).await.unwrap().len(), 1);
    assert_eq!(quarantine.expire(DAY_MS * 115 + 20).await.unwrap(), []);
}

#[tokio::test]
async fn half_written_files_go_and_unreadable_ones_hide_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (good, bad) = (id_at(DAY_MS, 1), id_at(DAY_MS, 2));
    let quarantine = Quarantine::open(directory.path(), 14).unwrap();
    quarantine.hold(held(good, "a"), message("\r\nx"), false).await.unwrap();
    let day = directory.path().join("1");
    fs::write(day.join("junk.held.tmp"), "half").unwrap();
    fs::write(day.join(format!("{bad}.held")), "{ no entry").unwrap();
    let quarantine = Quarantine::open(directory.path(), 14).unwrap();
    assert!(!day.join("junk.held.tmp").exists());
    assert_eq!(quarantine.list(None, None, 9).await.unwrap().len(), 1);
    assert!(matches!(quarantine.show(bad).await, Err(QuarantineError::Io(_))));
    quarantine.remove(bad).await.unwrap();
}

#[tokio::test]
async fn a_disk_error_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let quarantine = Quarantine::open(directory.path(), 14).unwrap();
    fs::write(directory.path().join("1"), "a file where a directory must be").unwrap();
    let result = quarantine.hold(held(id_at(DAY_MS, 1), "a"), message("\r\nx"), false).await;
    assert!(matches!(result, Err(QuarantineError::Io(_))));
}
