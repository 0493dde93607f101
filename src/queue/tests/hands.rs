//! Messages that change hands between nodes.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// Answers the final dot of its first message late, and tells when it has come; the others of the queue wait for its only
/// connection.
async fn slow_sink() -> (Sink, Arc<AtomicUsize>) {
    let dots = Arc::new(AtomicUsize::new(0));
    let of_sink = Arc::clone(&dots);
    let sink = Sink::start(move |line, number| match line {
        "." if of_sink.fetch_add(1, Ordering::SeqCst) == 0 => {
            Say::Late(Duration::from_millis(500), "250 2.0.0 ok\r\n".to_owned())
        }
        _ => polite(line, number),
    });
    (sink.await, dots)
}

fn all_to(node: Option<u64>, ids: &[MessageId]) -> Handed {
    ids.iter().map(|id| (*id, node)).collect()
}

#[tokio::test]
async fn what_waits_is_not_begun_once_others_have_it() {
    let (directory, later) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (sink, dots) = slow_sink().await;
    let bench = Bench::start(directory.path(), config(&sink)).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(bench.send(message(&["bob@x.example"])).await);
    }
    // One is at its final dot, the others wait in the hop's actor.
    until(|| dots.load(Ordering::SeqCst) == 1).await;
    bench.queue.let_go(all_to(None, &ids)).await;
    bench.copy(later.path());
    bench.wait(<[_]>::is_empty).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!((sink.messages().len(), bench.metrics.duplicates.get()), (1, 1));
    assert!(
        Bench::open(later.path(), config(&sink)).await.queue.list(None, 9).await.is_empty(),
        "gone at once on disk"
    );
}

#[tokio::test]
async fn a_session_that_comes_late_hands_in_nothing_that_others_have() {
    let (directory, sink) = (tempfile::tempdir().unwrap(), Sink::start(polite).await);
    let bench = Bench::start(directory.path(), config(&sink)).await;
    let stored = bench.queue.store(message(&["bob@x.example"])).await.unwrap();
    bench.queue.let_go(all_to(Some(2), &[stored.id])).await;
    bench.queue.deliver(stored);
    bench.send(message(&["carol@x.example"])).await;
    sink.wait(1).await;
    bench.wait(<[_]>::is_empty).await;
    assert_eq!(sink.messages().len(), 1);
}

#[tokio::test]
async fn what_comes_back_is_delivered_though_this_node_let_go_of_it_before() {
    let (directory, (sink, dots)) = (tempfile::tempdir().unwrap(), slow_sink().await);
    let bench = Bench::open(directory.path(), config(&sink)).await;
    let id = bench.send(message(&["bob@x.example"])).await;
    let back = || vec![Entry::new(NewMessage { id, ..message(&["bob@x.example"]) }, now_ms())];
    bench.queue.let_go(all_to(Some(2), &[id])).await;
    bench.queue.take_over(back(), "node 2 is down");
    bench.queue.start();
    // The same while an attempt is under way.
    until(|| dots.load(Ordering::SeqCst) == 1).await;
    bench.queue.let_go(all_to(Some(2), &[id])).await;
    bench.queue.take_over(back(), "node 2 is down");
    bench.wait(<[_]>::is_empty).await;
    assert_eq!((sink.messages().len(), bench.metrics.duplicates.get()), (1, 0));
    assert_eq!(bench.log(id).await.last().unwrap().0, Status::Delivered);
}
