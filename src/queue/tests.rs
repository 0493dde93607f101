#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::path::PathBuf;

use bytes::Bytes;

use std::path::Path;

use super::*;
use crate::config::DeliveryConfig;
use crate::delivery::sink::{Captured, Say, Sink, polite, reply, until};
use crate::mail::{Address, Body, Notify, Recipient, Return, ReversePath};
use crate::maillog::{Event, Query, Status};
use crate::mirror::Handed;

mod ends;
mod hands;

const HOUR_MS: u64 = 3_600_000;
const TAG: AdmissionTag = AdmissionTag { node: 1, epoch: 2, sequence: 3 };

struct Bench {
    directory: PathBuf,
    queue: Queue,
    undecided: Vec<Undecided>,
    maillog: Maillog,
    metrics: Arc<Metrics>,
    settled: Arc<Mutex<Vec<AdmissionTag>>>,
}

fn config(sink: &Sink) -> Config {
    let mut config = Config::default();
    config.node.hostname = "out.example".to_owned();
    config.listener.clear();
    config.spool.free_min_bytes = 0;
    config.delivery = DeliveryConfig {
        relay: sink.address.to_string(),
        reply_timeout_s: 1,
        final_reply_timeout_s: 1,
        connect_timeout_s: 1,
        connections_per_host_max: 1,
        ..DeliveryConfig::default()
    };
    config
}

impl Bench {
    async fn open(directory: &Path, config: Config) -> Self {
        Self::open_with(directory, config, Arc::new(|_| None)).await
    }

    async fn open_with(directory: &Path, config: Config, find_route: FindRoute) -> Self {
        let maillog = Maillog::open(&directory.join("log"), 1).unwrap();
        let (metrics, settled) = (Arc::new(Metrics::default()), Arc::<Mutex<Vec<AdmissionTag>>>::default());
        let of_call = Arc::clone(&settled);
        let servers = vec!["127.0.0.1:9".parse().unwrap()];
        let dns = Dns::new(&crate::config::DnsConfig { servers, timeout_s: 1 }).unwrap();
        let sync_seconds = metrics.spool_sync_seconds.clone();
        let (disks, left) = Disks::alone(&directory.join("spool"), &config.spool, sync_seconds).await.unwrap();
        let parts = QueueParts {
            config: Arc::new(config),
            dns,
            disks,
            maillog: maillog.clone(),
            metrics: Arc::clone(&metrics),
            on_settled: Arc::new(move |tag| of_call.lock().unwrap().push(tag)),
            find_route,
            may_deliver: Arc::new(|| true),
        };
        let (queue, undecided) = Queue::open(parts, left).await.unwrap();
        Self { directory: directory.to_owned(), queue, undecided, maillog, metrics, settled }
    }

    async fn start(directory: &Path, config: Config) -> Self {
        let bench = Self::open(directory, config).await;
        bench.queue.start();
        bench
    }

    async fn send(&self, message: NewMessage) -> MessageId {
        let stored = self.queue.store(message).await.unwrap();
        let id = stored.id;
        self.queue.deliver(stored);
        id
    }

    async fn log(&self, id: MessageId) -> Vec<(Status, String)> {
        let records = self.maillog.search(Query { id: Some(id), ..Query::default() }).await.unwrap();
        let told = records.into_iter().filter_map(|record| match record.event {
            Event::Attempt(attempt) => Some((attempt.status, attempt.reply)),
            Event::Change { status, detail, .. } => Some((status, detail)),
            Event::Submission(_) => None,
        });
        told.collect()
    }

    /// Waits until the queue shows what `holds` asks for.
    async fn wait(&self, holds: impl Fn(&[QueueEntry]) -> bool) -> Vec<QueueEntry> {
        let wait = async {
            loop {
                let entries = self.queue.list(None, 100).await;
                if holds(&entries) {
                    return entries;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the queue gets there in time")
    }

    /// The spool as a killed process would leave it now.
    fn copy(&self, to: &Path) {
        copy(&self.directory.join("spool"), &to.join("spool"));
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

fn message(recipients: &[&str]) -> NewMessage {
    let recipient = |address: &&str| Recipient {
        address: Address::new(address).unwrap(),
        notify: Notify::default(),
        original: None,
    };
    NewMessage {
        id: MessageId::generate(),
        envelope: Envelope {
            reverse_path: ReversePath::Address(Address::new("alice@from.example").unwrap()),
            recipients: recipients.iter().map(recipient).collect(),
            body: Body::SevenBit,
            smtputf8: false,
            ret: None,
            envid: None,
        },
        message: Message::new(Bytes::from_static(b"Subject: x\r\n\r\nbody\r\n.dot\r\n")),
        login: Some("alice@from.example".to_owned()),
        domain: "from.example".to_owned(),
        expires_ms: now_ms() + HOUR_MS,
        admission: Some(TAG),
    }
}

fn text(captured: &Captured) -> String {
    String::from_utf8_lossy(&captured.data).into_owned()
}

#[tokio::test]
async fn a_message_goes_out_byte_for_byte_and_is_settled() {
    let (directory, sink) = (tempfile::tempdir().unwrap(), Sink::start(polite).await);
    let bench = Bench::start(directory.path(), config(&sink)).await;
    let id = bench.send(message(&["a@x.example", "b@y.example"])).await;
    let taken = sink.wait(1).await;
    assert_eq!(taken[0].mail, "MAIL FROM:<alice@from.example> SIZE=26");
    assert_eq!(taken[0].recipients, ["RCPT TO:<a@x.example>", "RCPT TO:<b@y.example>"]);
    assert_eq!(text(&taken[0]), "Subject: x\r\n\r\nbody\r\n..dot\r\n");
    bench.wait(<[_]>::is_empty).await;
    until(|| *bench.settled.lock().unwrap() == [TAG]).await;
    assert_eq!(bench.log(id).await.iter().filter(|(status, _)| *status == Status::Delivered).count(), 2);
    assert_eq!(bench.metrics.queue_messages.get(), 0);
    assert!(matches!(bench.queue.show(id).await, Err(QueueError::Unknown(_))));
    // MAIL, two RCPT and DATA came in one read.
    assert!(sink.reads.lock().unwrap().iter().any(|lines| lines.len() == 4));
    bench.queue.shutdown().await;
}

#[tokio::test]
async fn connections_are_kept_and_changed_after_their_share() {
    let (directory, sink) = (tempfile::tempdir().unwrap(), Sink::start(polite).await);
    let mut config = config(&sink);
    config.delivery.messages_per_connection_max = 3;
    let bench = Bench::start(directory.path(), config).await;
    for _ in 0..7 {
        bench.send(message(&["a@x.example"])).await;
    }
    let taken = sink.wait(7).await;
    assert_eq!(taken.iter().map(|taken| taken.connection).collect::<Vec<_>>(), [0, 0, 0, 1, 1, 1, 2]);
}

#[tokio::test]
async fn a_kept_connection_that_was_closed_is_no_failure() {
    let (directory, sink) = (
        tempfile::tempdir().unwrap(),
        Sink::start(|line, number| match line {
            // The first connection answers its second MAIL with 421, the second simply closes.
            "MAIL FROM:<alice@from.example> SIZE=27" if number == 0 => Say::ReplyAndClose("421 idle\r\n".to_owned()),
            "MAIL FROM:<alice@from.example> SIZE=28" if number == 1 => Say::Close,
            _ => polite(line, number),
        })
        .await,
    );
    let bench = Bench::start(directory.path(), config(&sink)).await;
    for size in 26..=28 {
        let body = format!("Subject: x\r\n\r\n{}\r\n", "b".repeat(size - 16));
        let id = bench.send(NewMessage { message: Message::new(body.into()), ..message(&["a@x.example"]) }).await;
        bench.wait(<[_]>::is_empty).await;
        let statuses: Vec<_> = bench.log(id).await.into_iter().map(|(status, _)| status).collect();
        assert_eq!(statuses, [Status::Delivered], "{size}");
    }
    assert_eq!(sink.connections(), 3);
}

#[tokio::test]
async fn each_recipient_has_its_own_outcome_and_the_sender_hears_of_failures() {
    let (directory, sink) = (
        tempfile::tempdir().unwrap(),
        Sink::start(|line, number| match line {
            line if line.starts_with("RCPT TO:<bad@") => reply("550 5.1.1 nobody\tthere"),
            line if line.starts_with("RCPT TO:<later@") => reply("450 4.2.0 later"),
            _ => polite(line, number),
        })
        .await,
    );
    let bench = Bench::start(directory.path(), config(&sink)).await;
    let id = bench.send(message(&["ok@x.example", "bad@x.example", "later@x.example"])).await;
    let taken = sink.wait(2).await;
    assert_eq!(taken[0].recipients, ["RCPT TO:<ok@x.example>"]);
    assert!(taken[1].mail.starts_with("MAIL FROM:<> SIZE=") && !taken[1].mail.contains("BODY="), "all of it is ASCII");
    assert_eq!(taken[1].recipients, ["RCPT TO:<alice@from.example>"]);
    let notice = text(&taken[1]);
    for part in [
        "Content-Type: multipart/report; report-type=delivery-status;",
        "Final-Recipient: rfc822; bad@x.example\r\nAction: failed\r\nStatus: 5.1.1\r\nRemote-MTA: dns; [127.0.0.1]\r\n\
         Diagnostic-Code: smtp; 550 5.1.1 nobody there\r\n",
        "Content-Type: message/rfc822\r\n",
        "Subject: x\r\n\r\nbody\r\n..dot\r\n",
        "Auto-Submitted: auto-replied\r\n",
    ] {
        assert!(notice.contains(part), "{part}\n{notice}");
    }
    assert!(!notice.contains("later@"));
    let left = bench.wait(|entries| entries.len() == 1 && entries[0].recipients[1].status == "bounced").await;
    let statuses: Vec<_> = left[0].recipients.iter().map(|recipient| recipient.status.as_str()).collect();
    assert_eq!((left[0].id, statuses), (id, vec!["delivered", "bounced", "deferred"]));
    assert_eq!(left[0].recipients[2].last_reply.as_deref(), Some("127.0.0.1: 450 4.2.0 later"));
    assert!(left[0].next_attempt_ms > now_ms() + 800_000);
    assert!(
        bench.log(id).await.iter().any(|(status, detail)| *status == Status::Bounced && detail.starts_with("notice "))
    );
}

#[tokio::test]
async fn a_notice_that_is_refused_is_frozen_and_never_bounced() {
    let (directory, sink) = (
        tempfile::tempdir().unwrap(),
        Sink::start(|line, number| match line {
            line if line.starts_with("RCPT") => reply("550 5.1.1 no"),
            _ => polite(line, number),
        })
        .await,
    );
    let bench = Bench::start(directory.path(), config(&sink)).await;
    bench.send(message(&["bad@x.example"])).await;
    let left = bench.wait(|entries| entries.len() == 1 && entries[0].frozen).await;
    assert_eq!((left[0].sender.as_str(), left[0].attempts), ("", 1));
    assert_eq!(bench.metrics.queue_frozen.get(), 1);
    assert_eq!(left[0].recipients[0].status, "bounced", "{left:?}");
    // An administrator may still try it, once it is thawed, which changes nothing, and remove it.
    assert!(matches!(bench.queue.retry(left[0].id).await, Err(QueueError::Frozen(_))));
    bench.queue.thaw(left[0].id).await.unwrap();
    bench.wait(|entries| entries[0].attempts == 2 && entries[0].frozen).await;
    while matches!(bench.queue.remove(left[0].id, true).await, Err(QueueError::Busy(_))) {}
    bench.wait(<[_]>::is_empty).await;
    assert_eq!(bench.metrics.queue_frozen.get(), 0);
}

#[tokio::test]
async fn what_expires_is_told_and_what_asks_for_silence_is_not() {
    let (directory, sink) = (
        tempfile::tempdir().unwrap(),
        Sink::start(|line, number| match line {
            line if line.starts_with("RCPT TO:<later") => reply("450 4.2.0 later"),
            _ => polite(line, number),
        })
        .await,
    );
    let bench = Bench::start(directory.path(), config(&sink)).await;
    let mut late = message(&["later@x.example", "later.silent@x.example"]);
    late.expires_ms = now_ms();
    late.envelope.recipients[1].notify = Notify { success: false, failure: false, delay: false, explicit: true };
    late.envelope.ret = Some(Return::Headers);
    late.envelope.envid = Some("my id".to_owned());
    let id = bench.send(late).await;
    let notice = text(&sink.wait(1).await[0]);
    assert!(notice.contains("Status: 5.4.7") && notice.contains("Original-Envelope-Id: my id"), "{notice}");
    assert!(notice.contains("Content-Type: text/rfc822-headers") && !notice.contains("..dot"), "{notice}");
    assert!(!notice.contains("later.silent@"));
    bench.wait(<[_]>::is_empty).await;
    assert_eq!(bench.log(id).await.iter().filter(|(status, _)| *status == Status::Expired).count(), 2);
}

#[tokio::test]
async fn success_is_reported_only_where_the_hop_does_not_do_it() {
    for dsn in [true, false] {
        let (directory, sink) = (
            tempfile::tempdir().unwrap(),
            Sink::start(move |line, number| match line {
                "EHLO out.example" if !dsn => reply("250 sink"),
                _ => polite(line, number),
            })
            .await,
        );
        let bench = Bench::start(directory.path(), config(&sink)).await;
        let mut wanted = message(&["a@x.example"]);
        wanted.envelope.recipients[0].notify = Notify { success: true, failure: true, delay: false, explicit: true };
        bench.send(wanted).await;
        let taken = sink.wait(if dsn { 1 } else { 2 }).await;
        bench.wait(<[_]>::is_empty).await;
        assert_eq!(taken[0].recipients[0].ends_with("NOTIFY=SUCCESS,FAILURE"), dsn);
        assert!(dsn || text(&taken[1]).contains("Action: relayed"));
        assert_eq!(sink.messages().len(), if dsn { 1 } else { 2 });
    }
}

#[tokio::test]
async fn a_delay_is_told_once() {
    let (directory, sink) = (
        tempfile::tempdir().unwrap(),
        Sink::start(|line, number| match line {
            line if line.starts_with("RCPT TO:<later") => reply("450 4.2.0 later"),
            _ => polite(line, number),
        })
        .await,
    );
    let mut config = config(&sink);
    config.delivery.retry.delay_notice_s = 1;
    config.delivery.retry.interval_s = 1;
    let bench = Bench::start(directory.path(), config).await;
    bench.send(message(&["later@x.example"])).await;
    let notice = text(&sink.wait(1).await[0]);
    assert!(notice.contains("Action: delayed") && notice.contains("Will-Retry-Until: "), "{notice}");
    let attempts = bench.wait(|entries| entries.len() == 1).await[0].attempts;
    bench.wait(|entries| entries[0].attempts >= attempts + 2).await;
    assert_eq!(sink.messages().len(), 1);
}

/// The reply that ends a hostile or broken server's part, and the status that the recipient gets.
async fn outcome(behaviour: impl Fn(&str, usize) -> Say + Send + Sync + 'static) -> String {
    let (directory, sink) = (tempfile::tempdir().unwrap(), Sink::start(behaviour).await);
    let bench = Bench::start(directory.path(), config(&sink)).await;
    let mut message = message(&["a@x.example"]);
    message.envelope.recipients[0].notify = Notify { success: false, failure: false, delay: false, explicit: true };
    let id = bench.send(message).await;
    let wait = async {
        loop {
            if let Some((status, text)) = bench.log(id).await.into_iter().next() {
                return format!("{status:?}: {text}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("an outcome in time")
}

fn at(step: &'static str, said: Say) -> impl Fn(&str, usize) -> Say + Send + Sync + 'static {
    move |line, number| if line.get(..4).unwrap_or(line) == step { said.clone() } else { polite(line, number) }
}

#[tokio::test]
async fn hostile_and_broken_servers_defer_or_bounce_as_they_say() {
    let flood = "250-x\r\n".repeat(200);
    let cases = [
        ("", reply("554 go away"), "Bounced: 554 go away"),
        ("", reply("421 busy"), "Deferred: 421 busy"),
        ("", Say::Close, "Deferred: connection closed by the server"),
        ("", Say::Silence, "Deferred: no reply in time"),
        ("", reply("SSH-2.0-x"), "Deferred: the server sent something that is no reply"),
        ("EHLO", Say::Reply("2".repeat(10_000)), "Deferred: a reply line has more than 4096 octets"),
        ("EHLO", Say::Reply(flood), "Deferred: a reply has more than 100 lines"),
        ("MAIL", reply("451 4.7.1 wait"), "Deferred: 451 4.7.1 wait"),
        ("MAIL", reply("550 5.7.1 never"), "Bounced: 550 5.7.1 never"),
        ("MAIL", Say::Close, "Deferred: connection "),
        ("RCPT", reply("552 5.5.3 too many"), "Deferred: 552 5.5.3 too many"),
        ("RCPT", reply("552 5.2.2 full"), "Bounced: 552 5.2.2 full"),
        ("DATA", reply("451 no"), "Deferred: 451 no"),
        ("DATA", reply("554 no"), "Bounced: 554 no"),
        (".", reply("554 5.7.1 spam"), "Bounced: 554 5.7.1 spam"),
        (".", reply("452 4.3.1 full"), "Deferred: 452 4.3.1 full"),
        (".", Say::Close, "Deferred: after the end of the message: connection closed by the server"),
        (".", Say::Silence, "Deferred: after the end of the message: no reply in time"),
        (".", reply("354 what"), "Deferred: 354 what"),
    ];
    for (step, said, expected) in cases {
        let got = outcome(at(step, said.clone())).await;
        assert!(got.starts_with(expected), "{step}: {said:?}: {got}");
    }
}

#[tokio::test]
async fn a_hop_without_extensions_is_served_verb_by_verb() {
    let (directory, sink) = (
        tempfile::tempdir().unwrap(),
        Sink::start(|line, number| match line {
            "EHLO out.example" => reply("502 what"),
            _ => polite(line, number),
        })
        .await,
    );
    let bench = Bench::start(directory.path(), config(&sink)).await;
    bench.send(message(&["a@x.example"])).await;
    assert_eq!(sink.wait(1).await[0].mail, "MAIL FROM:<alice@from.example>");
    let reads = sink.reads.lock().unwrap().clone();
    assert_eq!(
        reads[1..5].concat(),
        ["HELO out.example", "MAIL FROM:<alice@from.example>", "RCPT TO:<a@x.example>", "DATA"]
    );
}

#[tokio::test]
async fn what_the_hop_cannot_carry_bounces_before_it_is_tried() {
    let plain = |line: &str, number| match line {
        "EHLO out.example" => reply("250-sink\r\n250 SIZE 20"),
        _ => polite(line, number),
    };
    assert!(outcome(plain).await.starts_with("Bounced: the next hop takes messages of at most 20 octets"));
}

#[tokio::test]
async fn tls_is_used_where_offered_and_done_without_where_it_fails() {
    let offering = "250-sink\r\n250 STARTTLS";
    for works in [true, false] {
        let (directory, sink) = (
            tempfile::tempdir().unwrap(),
            Sink::start(move |line, number| match line {
                "EHLO out.example" => reply(offering),
                "STARTTLS" if works => Say::StartTls,
                "STARTTLS" => Say::ReplyAndClose("220 go\r\nrubbish".to_owned()),
                _ => polite(line, number),
            })
            .await,
        );
        let bench = Bench::start(directory.path(), config(&sink)).await;
        bench.send(message(&["a@x.example"])).await;
        let taken = sink.wait(1).await;
        assert_eq!((taken[0].tls, taken[0].connection), (works, usize::from(!works)));
    }
}

#[tokio::test]
async fn a_hop_that_is_down_is_not_asked_by_every_message() {
    let (directory, sink) = (tempfile::tempdir().unwrap(), Sink::start(|_, _| Say::Close).await);
    let bench = Bench::start(directory.path(), config(&sink)).await;
    for _ in 0..5 {
        bench.send(message(&["a@x.example"])).await;
    }
    let left = bench.wait(|all| all.len() == 5 && all.iter().all(|one| one.recipients[0].status == "deferred")).await;
    assert_eq!(sink.connections(), 1);
    bench.queue.retry(left[0].id).await.unwrap();
    until(|| sink.connections() == 2).await;
}

#[tokio::test]
async fn what_must_not_leave_bounces() {
    let (directory, sink) = (tempfile::tempdir().unwrap(), Sink::start(polite).await);
    let bench = Bench::start(directory.path(), config(&sink)).await;
    let mut broken = message(&["a@x.example"]);
    broken.message = Message::new(Bytes::from_static(b"Subject: x\r\n\r\na\nb\r\n"));
    broken.envelope.ret = Some(Return::Headers);
    let id = bench.send(broken).await;
    let taken = sink.wait(1).await;
    assert!(text(&taken[0]).contains("LF without CR"));
    assert_eq!(bench.log(id).await[0].0, Status::Bounced);
}
