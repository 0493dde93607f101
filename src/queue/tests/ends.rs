//! Stops, crashes, failures, administrators, hops that take a few at a time.

use super::*;

#[tokio::test]
async fn administrators_freeze_thaw_and_remove() {
    let (directory, sink) = (
        tempfile::tempdir().unwrap(),
        Sink::start(|line, number| match line {
            line if line.starts_with("RCPT TO:<later") => reply("450 4.2.0 later"),
            _ => polite(line, number),
        })
        .await,
    );
    let bench = Bench::start(directory.path(), config(&sink)).await;
    let id = bench.send(message(&["later@x.example"])).await;
    bench.wait(|entries| entries.len() == 1 && entries[0].recipients[0].status == "deferred").await;
    bench.queue.freeze(id).await.unwrap();
    assert!(bench.queue.show(id).await.unwrap().frozen);
    bench.queue.thaw(id).await.unwrap();
    bench.wait(|entries| entries[0].attempts == 2 && !entries[0].frozen).await;
    assert_eq!(bench.queue.bytes(id).await.unwrap(), message(&[]).message);
    bench.wait(|entries| entries[0].recipients[0].status == "deferred").await;
    while matches!(bench.queue.remove(id, true).await, Err(QueueError::Busy(_))) {}
    let notice = text(&sink.wait(1).await[0]);
    assert!(notice.contains("removed from the queue by an administrator"), "{notice}");
    bench.wait(<[_]>::is_empty).await;
    let statuses: Vec<_> = bench.log(id).await.into_iter().map(|(status, _)| status).collect();
    assert!([Status::Frozen, Status::Queued, Status::Removed].iter().all(|status| statuses.contains(status)));
    assert!(matches!(bench.queue.freeze(id).await, Err(QueueError::Unknown(_))));
}

#[tokio::test]
async fn a_crash_leaves_decided_messages_and_asks_for_the_others() {
    let (directory, later) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sink = Sink::start(polite).await;
    let bench = Bench::open(directory.path(), config(&sink)).await;
    let ours = bench.send(NewMessage { admission: None, ..message(&["ours@x.example"]) }).await;
    let decided = bench.send(message(&["decided@x.example"])).await;
    drop(bench.queue.store(message(&["dropped@x.example"])).await.unwrap());
    let undecided = bench.queue.store(message(&["undecided@x.example"])).await.unwrap();
    until(|| bench.settled.lock().unwrap().len() == 2).await;
    bench.copy(later.path());
    let again = Bench::open(later.path(), config(&sink)).await;
    let ids: Vec<_> = again.queue.list(None, 10).await.into_iter().map(|entry| entry.id).collect();
    let mut expected = [ours, decided];
    expected.sort_unstable();
    assert_eq!(ids, expected);
    assert_eq!(again.undecided.iter().map(|it| (it.id, it.admission)).collect::<Vec<_>>(), [(undecided.id, TAG)]);
    again.queue.decide(vec![(again.undecided[0].clone(), true)]).await.unwrap();
    assert_eq!(again.settled.lock().unwrap().len(), 1, "noted on disk before anybody may forget the admission");
    again.queue.start();
    let taken = sink.wait(3).await;
    let mut to: Vec<_> = taken.iter().flat_map(|taken| taken.recipients.clone()).collect();
    to.sort_unstable();
    assert_eq!(to, ["RCPT TO:<decided@x.example>", "RCPT TO:<ours@x.example>", "RCPT TO:<undecided@x.example>"]);
}

#[tokio::test]
async fn what_was_delivered_is_not_delivered_again_after_a_crash() {
    let (directory, later) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sink = Sink::start(|line, number| match line {
        line if line.starts_with("RCPT TO:<later") => reply("450 4.2.0 later"),
        _ => polite(line, number),
    })
    .await;
    let bench = Bench::start(directory.path(), config(&sink)).await;
    let id = bench.send(message(&["ok@x.example", "later@x.example"])).await;
    bench.send(message(&["done@x.example"])).await;
    let before = bench.wait(|all| all.len() == 1 && all[0].recipients[1].status == "deferred").await;
    bench.queue.shutdown().await;
    bench.copy(later.path());
    let polite = Sink::start(polite).await;
    let again = Bench::start(later.path(), config(&polite)).await;
    let after = again.queue.show(id).await.unwrap();
    assert_eq!(after.next_attempt_ms, before[0].next_attempt_ms);
    again.queue.retry(id).await.unwrap();
    let taken = polite.wait(1).await;
    again.wait(<[_]>::is_empty).await;
    assert_eq!(taken[0].recipients, ["RCPT TO:<later@x.example>"]);
    assert_eq!(polite.messages().len(), 1);
}

#[tokio::test]
async fn a_stop_cuts_what_has_not_begun_and_keeps_its_place_in_the_schedule() {
    let (directory, later) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let silent = Sink::start(|line, number| if line.starts_with("MAIL") { Say::Silence } else { polite(line, number) });
    let silent = silent.await;
    let mut slow = config(&silent);
    slow.delivery.reply_timeout_s = 300;
    let bench = Bench::start(directory.path(), slow).await;
    for _ in 0..3 {
        bench.send(message(&["a@x.example"])).await;
    }
    until(|| silent.reads.lock().unwrap().iter().flatten().any(|line| line.starts_with("MAIL"))).await;
    tokio::time::timeout(Duration::from_secs(10), bench.queue.shutdown()).await.expect("a stop without delay");
    bench.copy(later.path());
    let polite = Sink::start(polite).await;
    let again = Bench::start(later.path(), config(&polite)).await;
    polite.wait(3).await;
    again.wait(<[_]>::is_empty).await;
    assert_eq!(polite.messages().len(), 3);
}

#[tokio::test]
async fn a_queue_whose_owner_has_died_takes_no_mail_and_says_so() {
    let (directory, sink) = (tempfile::tempdir().unwrap(), Sink::start(polite).await);
    let bench = Bench::open_with(directory.path(), config(&sink), Arc::new(|_| panic!("a fault in the owner"))).await;
    bench.queue.start();
    assert!(bench.queue.has_room());
    bench.send(message(&["a@x.example"])).await;
    let reason = tokio::time::timeout(Duration::from_secs(20), bench.queue.failed()).await.expect("a failure in time");
    assert_eq!(reason, "the queue's actor has ended");
    assert!(!bench.queue.has_room());
}

#[tokio::test]
async fn a_queue_whose_spool_has_died_begins_no_delivery() {
    let (directory, silent) = (
        tempfile::tempdir().unwrap(),
        Sink::start(|line, number| match line {
            line if line.starts_with("MAIL") => Say::Silence,
            _ => polite(line, number),
        })
        .await,
    );
    let mut config = config(&silent);
    config.delivery.reply_timeout_s = 300;
    config.spool.segment_max_bytes = 1;
    let bench = Bench::start(directory.path(), config).await;
    bench.send(message(&["a@x.example"])).await;
    until(|| silent.reads.lock().unwrap().iter().flatten().any(|line| line.starts_with("MAIL"))).await;
    // A new segment finds no place.
    std::fs::remove_dir_all(directory.path().join("spool")).unwrap();
    let refused = bench.queue.store(message(&["b@x.example"])).await;
    assert!(matches!(refused, Err(SpoolError::Stopped)));
    let reason = tokio::time::timeout(Duration::from_secs(20), bench.queue.failed()).await.expect("a failure in time");
    assert!(reason.starts_with("the spool stops after a disk error"), "{reason}");
    assert!(!bench.queue.has_room());
    bench.wait(|all| all[0].recipients[0].status == "queued" && all[0].next_attempt_ms > all[0].arrived_ms).await;
    tokio::time::timeout(Duration::from_secs(10), bench.queue.shutdown()).await.expect("a stop without delay");
    assert!(silent.messages().is_empty());
}

#[tokio::test]
async fn thawing_what_is_not_frozen_changes_nothing() {
    let (directory, sink) = (
        tempfile::tempdir().unwrap(),
        Sink::start(|line, number| match line {
            line if line.starts_with("RCPT") => reply("450 4.2.0 later"),
            _ => polite(line, number),
        })
        .await,
    );
    let bench = Bench::start(directory.path(), config(&sink)).await;
    let id = bench.send(message(&["later@x.example"])).await;
    let before = bench.wait(|all| all.len() == 1 && all[0].next_attempt_ms > now_ms() + 1000).await[0].clone();
    while matches!(bench.queue.thaw(id).await, Err(QueueError::Busy(_))) {}
    let after = bench.queue.show(id).await.unwrap();
    assert_eq!((after.attempts, after.next_attempt_ms), (1, before.next_attempt_ms));
}

#[tokio::test]
async fn a_message_that_comes_twice_goes_out_once() {
    let (directory, sink) = (tempfile::tempdir().unwrap(), Sink::start(polite).await);
    let bench = Bench::open(directory.path(), config(&sink)).await;
    let twice = message(&["a@x.example"]);
    bench.send(NewMessage { admission: None, ..twice.clone() }).await;
    bench.send(NewMessage { admission: None, ..twice }).await;
    bench.send(message(&["b@x.example"])).await;
    assert_eq!((bench.queue.list(None, 10).await.len(), bench.metrics.queue_messages.get()), (2, 2));
    bench.queue.start();
    bench.wait(<[_]>::is_empty).await;
    let mut to: Vec<_> = sink.messages().into_iter().flat_map(|taken| taken.recipients).collect();
    to.sort();
    assert_eq!(to, ["RCPT TO:<a@x.example>", "RCPT TO:<b@x.example>"]);
}

#[tokio::test]
async fn a_removal_that_cannot_be_noted_is_not_answered_as_done() {
    for notify in [false, true] {
        let (directory, sink) = (tempfile::tempdir().unwrap(), Sink::start(polite).await);
        let mut config = config(&sink);
        config.spool.segment_max_bytes = 1;
        let bench = Bench::open(directory.path(), config).await;
        let (first, second) =
            (bench.send(message(&["a@x.example"])).await, bench.send(message(&["b@x.example"])).await);
        bench.queue.remove(first, notify).await.unwrap();
        // A new segment finds no place.
        std::fs::remove_dir_all(directory.path().join("spool")).unwrap();
        let removed = bench.queue.remove(second, notify).await;
        assert!(matches!(removed, Err(QueueError::Spool(SpoolError::Stopped))), "{notify}: {removed:?}");
    }
}

#[tokio::test]
async fn what_is_too_much_for_one_transaction_goes_in_the_next_at_once() {
    let many = std::sync::atomic::AtomicUsize::new(0);
    let (directory, sink) = (
        tempfile::tempdir().unwrap(),
        Sink::start(move |line, number| {
            use std::sync::atomic::Ordering::SeqCst;
            match line.get(..4).unwrap_or(line) {
                "MAIL" => many.store(0, SeqCst),
                "RCPT" if line.contains("full@") => return reply("452 4.2.2 mailbox full"),
                "RCPT" if many.fetch_add(1, SeqCst) >= 2 => return reply("452 4.5.3 too many recipients"),
                _ => {}
            }
            polite(line, number)
        })
        .await,
    );
    let bench = Bench::start(directory.path(), config(&sink)).await;
    bench.send(message(&["a@x.example", "b@x.example", "c@x.example", "d@x.example", "full@x.example"])).await;
    let left = bench.wait(|all| all[0].recipients[3].status == "delivered" && all[0].next_attempt_ms > now_ms()).await;
    let statuses: Vec<_> = left[0].recipients.iter().map(|recipient| recipient.status.as_str()).collect();
    assert_eq!(statuses, ["delivered", "delivered", "delivered", "delivered", "deferred"]);
    assert_eq!((sink.messages().len(), left[0].attempts), (2, 2));
}
