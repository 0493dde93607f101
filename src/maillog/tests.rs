#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use super::record::{Attempt, Submission};
use super::*;
use crate::mail::MessageId;

const NOW_MS: u64 = 1_790_000_000_000;

fn submission(at_ms: u64, user: &str, subject: &str, status: Status) -> Record {
    let submission = Submission {
        node: 1,
        domain: "example.com".to_owned(),
        user: user.to_owned(),
        identity: None,
        sender: user.to_owned(),
        recipients: vec!["bob@example.net".to_owned()],
        header_from: user.to_owned(),
        subject: subject.to_owned(),
        message_id: "<1@x>".to_owned(),
        client: IpAddr::V4(Ipv4Addr::LOCALHOST),
        helo: "client".to_owned(),
        size: 100,
        class: "clean".to_owned(),
        score: 0.0,
        evidence: Vec::new(),
        reply: "250 2.0.0 accepted".to_owned(),
        status,
        log_index: Some(7),
        counters: Vec::new(),
        cost: 1,
        lock: "unlocked".to_owned(),
        micros: 1,
    };
    Record { at_ms, id: MessageId::generate(), event: Event::Submission(Box::new(submission)) }
}

fn attempt(at_ms: u64, id: MessageId, status: Status) -> Record {
    let origin = Origin {
        user: "carol@example.com".to_owned(),
        domain: "example.com".to_owned(),
        sender: "carol@example.com".to_owned(),
    };
    let attempt = Attempt {
        origin,
        recipient: "bob@example.net".to_owned(),
        status,
        host: "mx.example.net".to_owned(),
        address: None,
        reply: "250 ok".to_owned(),
        tls: None,
    };
    Record { at_ms, id, event: Event::Attempt(attempt) }
}

fn at_ms() -> u64 {
    MessageId::generate().timestamp_ms()
}

#[tokio::test]
async fn a_search_sees_what_was_recorded_before_it_newest_first() {
    let directory = tempfile::tempdir().unwrap();
    let log = Maillog::open(directory.path(), 32).unwrap();
    let now = at_ms();
    for step in 0..5 {
        log.record(submission(now + step, "alice@example.com", &format!("mail {step}"), Status::Accepted));
    }
    let found = log.search(Query { count: Some(3), ..Query::default() }).await.unwrap();
    let times: Vec<_> = found.iter().map(|record| record.at_ms - now).collect();
    assert_eq!(times, [4, 3, 2]);
}

#[tokio::test]
async fn a_journey_is_oldest_first_and_survives_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let now = at_ms();
    let first = submission(now, "alice@example.com", "hello", Status::Accepted);
    let id = first.id;
    {
        let log = Maillog::open(directory.path(), 32).unwrap();
        log.record(first.clone());
        log.record(submission(now, "bob@example.com", "other", Status::Accepted));
        log.shutdown().await;
    }
    let log = Maillog::open(directory.path(), 32).unwrap();
    log.record(attempt(now + 5, id, Status::Deferred));
    log.record(attempt(now + 9, id, Status::Delivered));
    // By a node whose clock was behind.
    log.record(attempt(now - 7, id, Status::Deferred));
    let journey = log.search(Query { id: Some(id), ..Query::default() }).await.unwrap();
    let attempts = [(now - 7, Status::Deferred), (now + 5, Status::Deferred), (now + 9, Status::Delivered)];
    assert_eq!(journey[0], first, "it begins with the arrival");
    assert_eq!(journey[1..], attempts.map(|(at_ms, status)| attempt(at_ms, id, status)));
}

#[tokio::test]
async fn filters_are_joined_by_and() {
    let directory = tempfile::tempdir().unwrap();
    let log = Maillog::open(directory.path(), 32).unwrap();
    let now = at_ms();
    log.record(submission(now, "alice@example.com", "Quarterly Report", Status::Accepted));
    log.record(submission(now + 1, "alice@example.com", "lunch", Status::Refused));
    log.record(submission(now + 2, "bob@example.com", "quarterly numbers", Status::Accepted));
    log.record(attempt(now + 3, MessageId::generate(), Status::Delivered));
    let count = async |query: Query| log.search(query).await.unwrap().len();
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(count(Query { user: text("ALICE@example.com"), ..Query::default() }).await, 2);
    assert_eq!(count(Query { user: text("a*ce@example*"), text: text("report"), ..Query::default() }).await, 1);
    assert_eq!(count(Query { text: text("quarterly*num"), ..Query::default() }).await, 1);
    assert_eq!(count(Query { text: text("num*quarterly"), ..Query::default() }).await, 0);
    assert_eq!(count(Query { status: Some(Status::Refused), ..Query::default() }).await, 1);
    assert_eq!(count(Query { status: Some(Status::Delivered), ..Query::default() }).await, 1);
    assert_eq!(count(Query { class: text("spam"), ..Query::default() }).await, 0);
    for (user, found) in [("lice@example.com", 0), ("alice@example", 0), ("*@example.com", 4), ("*b@*", 1), ("*", 4)] {
        assert_eq!(count(Query { user: text(user), ..Query::default() }).await, found, "{user}");
    }
    assert_eq!(count(Query { class: text("clean"), ..Query::default() }).await, 3);
    assert_eq!(count(Query { class: text("lean"), ..Query::default() }).await, 0);
    assert_eq!(count(Query { domain: text("ample.com"), ..Query::default() }).await, 0);
    assert_eq!(count(Query { domain: text("example.com"), ..Query::default() }).await, 4);
    let delivered = Query { user: text("carol@example.com"), status: Some(Status::Delivered), ..Query::default() };
    assert_eq!(count(delivered.clone()).await, 1);
    assert_eq!(count(Query { domain: text("example.net"), ..delivered.clone() }).await, 0);
    assert_eq!(count(Query { text: text("carol@"), ..Query::default() }).await, 1);
    assert_eq!(count(Query { submissions: true, ..delivered }).await, 0);
    assert_eq!(count(Query { since_ms: Some(now + 1), until_ms: Some(now + 2), ..Query::default() }).await, 2);
}

#[tokio::test]
async fn a_torn_and_a_damaged_line_are_lost_alone() {
    let directory = tempfile::tempdir().unwrap();
    let now = at_ms();
    {
        let log = Maillog::open(directory.path(), 32).unwrap();
        for step in 0..3 {
            log.record(submission(now + step, "alice@example.com", "mail", Status::Accepted));
        }
        log.shutdown().await;
    }
    let file = fs::read_dir(directory.path()).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&file).unwrap();
    let second = bytes.iter().position(|&b| b == b'\n').unwrap() + 30;
    bytes[second] ^= 1;
    fs::write(&file, &bytes[..bytes.len() - 20]).unwrap();
    let log = Maillog::open(directory.path(), 32).unwrap();
    log.record(submission(now + 9, "alice@example.com", "mail", Status::Accepted));
    let times: Vec<_> = log.search(Query::default()).await.unwrap().iter().map(|record| record.at_ms - now).collect();
    assert_eq!(times, [9, 0]);
}

#[tokio::test]
async fn expired_segments_go_and_foreign_files_stay() {
    let directory = tempfile::tempdir().unwrap();
    let names = [1_000u64, 2_000, NOW_MS * 2].map(|ms| directory.path().join(format!("{ms:015}.log")));
    for name in &names {
        fs::File::create(name).unwrap().write_all(b"junk\n").unwrap();
    }
    fs::write(directory.path().join("notes.txt"), "keep").unwrap();
    let log = Maillog::open(directory.path(), 32).unwrap();
    assert!(!names[0].exists());
    assert!(names[1].exists(), "its newest record may be as young as its successor");
    assert!(names[2].exists());
    assert!(directory.path().join("notes.txt").exists());
    assert_eq!(log.search(Query::default()).await.unwrap(), []);
}

#[tokio::test]
async fn ten_thousand_records_in_many_threads_are_all_there() {
    let directory = tempfile::tempdir().unwrap();
    let log = Maillog::open(directory.path(), 32).unwrap();
    let now = at_ms();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let log = log.clone();
            scope.spawn(move || {
                for step in 0..2_500 {
                    log.record(submission(now + step, &format!("user{thread}@example.com"), "mail", Status::Accepted));
                }
            });
        }
    });
    let all = log.search(Query { count: Some(20_000), ..Query::default() }).await.unwrap();
    assert_eq!(all.len(), 10_000);
}

/// Waits for the segment, which nobody flushes, to hold that many lines.
fn wait_for_lines(directory: &Path, lines: usize) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let count = || -> usize {
        let files = fs::read_dir(directory).unwrap();
        files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap().lines().count()).sum()
    };
    while count() < lines {
        assert!(Instant::now() < deadline, "{} lines of {lines}", count());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_record_is_in_the_file_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let log = Maillog::open(directory.path(), 32).unwrap();
    let begun = Instant::now();
    for n in 1..=40 {
        log.record(submission(at_ms(), "alice@example.com", "mail", Status::Accepted));
        wait_for_lines(directory.path(), n);
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "a write interval for each: {:?}", begun.elapsed());
}

#[test]
fn a_full_waiting_room_drops_and_never_waits() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("log");
    let directory = Directory::open(&path).unwrap();
    let writer = Writer::start(directory, 32, 4).unwrap();
    fs::remove_dir_all(&path).unwrap();
    let begun = Instant::now();
    for _ in 0..1_000 {
        writer.push(submission(at_ms(), "alice@example.com", "mail", Status::Accepted));
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    fs::create_dir_all(&path).unwrap();
    writer.stop();
    let kept = fs::read_dir(&path).unwrap().map(|file| fs::read_to_string(file.unwrap().path()).unwrap());
    let lines: usize = kept.map(|text| text.lines().count()).sum();
    assert!((4..=100).contains(&lines), "{lines}");
}

/// By the clock of the node that it came to; this one's is another.
#[tokio::test]
async fn a_message_is_found_whatever_the_clock_of_its_id_said() {
    let directory = tempfile::tempdir().unwrap();
    let log = Maillog::open(directory.path(), 3_650).unwrap();
    let now = at_ms();
    for late_h in [3, 30] {
        let record = submission(now - late_h * 3_600_000, "alice@example.com", "early", Status::Accepted);
        let id = record.id;
        log.record(record);
        let query = Query { id: Some(id), ..Query::default() };
        let found = log.search(query.clone()).await.unwrap();
        assert_eq!(found.len(), usize::from(late_h < 24), "{late_h} hours behind");
        let earlier = query.before_birth().unwrap();
        assert_eq!(earlier.before_birth(), None);
        assert_eq!(log.search(earlier).await.unwrap().len(), usize::from(late_h > 24));
    }
}

#[tokio::test]
async fn a_disk_that_takes_nothing_fails_the_search_and_not_the_node() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("log");
    let log = Maillog::open(&directory, 32).unwrap();
    fs::remove_dir_all(&directory).unwrap();
    log.record(submission(at_ms(), "alice@example.com", "mail", Status::Accepted));
    assert!(log.search(Query::default()).await.is_err());
    fs::create_dir_all(&directory).unwrap();
    assert_eq!(log.search(Query::default()).await.unwrap().len(), 1, "written once the disk is back");
    log.shutdown().await;
}

#[test]
fn a_record_of_an_earlier_version_is_read() {
    let text = r#"{"event":"change","status":"frozen","by":"queue","detail":"x"}"#;
    let Event::Change { origin, .. } = serde_json::from_str(text).unwrap() else { panic!() };
    assert_eq!(origin, Origin::default());
    let text = r#"{"event":"attempt","recipient":"a@b","status":"delivered","host":"h","address":"192.0.2.1","reply":"250","tls":null}"#;
    assert!(matches!(serde_json::from_str(text).unwrap(), Event::Attempt(attempt) if attempt.recipient == "a@b"));
}
