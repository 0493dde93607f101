#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use bytes::Bytes;
use prometheus_client::metrics::histogram::Histogram;
use ractor::{Actor, ActorRef};
use tokio::sync::mpsc;

use super::sink::{Say, Sink, polite, reply, until};
use super::*;
use crate::config::{DeliveryConfig, DnsConfig, SpoolConfig};
use crate::mail::{Address, Body, Notify, Recipient, ReversePath};

/// Hops without a queue: jobs go in, what became of them comes out.
pub(crate) struct Bench {
    pub(crate) shared: Arc<Shared>,
    report: Report,
    finished: mpsc::UnboundedReceiver<Finished>,
    _directory: tempfile::TempDir,
}

impl Bench {
    pub(crate) async fn new(delivery: DeliveryConfig) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let spool_config = SpoolConfig { free_min_bytes: 0, ..SpoolConfig::default() };
        let buckets = Histogram::new([1.0]);
        let (disks, _) = Disks::alone(directory.path(), &spool_config, buckets).await.unwrap();
        let servers = vec![crate::dns::tests::serve().await];
        let dns = Dns::new(&DnsConfig { servers, timeout_s: 1 }).unwrap();
        let config = Arc::new(Config { listener: Vec::new(), delivery, ..Config::default() });
        let shared =
            Arc::new(Shared::new(config, "out.example".to_owned(), dns, disks, Arc::default(), Arc::new(|| true)));
        let (sender, finished) = mpsc::unbounded_channel();
        let report: Report = Arc::new(move |one| sender.send(one).unwrap_or_default());
        Self { shared, report, finished, _directory: directory }
    }

    async fn hop(&self, hop: &Arc<NextHop>) -> ActorRef<DeliveryMessage> {
        Actor::spawn(None, Delivery, (Arc::clone(hop), Arc::clone(&self.shared))).await.unwrap().0
    }

    pub(crate) fn job(&self, hop: &Arc<NextHop>, envelope: Envelope) -> Box<Job> {
        Box::new(Job {
            id: MessageId::generate(),
            hop: Arc::clone(hop),
            recipients: (0..envelope.recipients.len()).collect(),
            envelope: Arc::new(envelope),
            message: Some(Message::new(Bytes::from_static(b"Subject: x\r\n\r\nbody\r\n"))),
            hosts: hop.hosts.clone().into(),
            force: false,
            let_go: LetGo::default(),
            report: Arc::clone(&self.report),
            answered: false,
        })
    }

    /// Hands one message to a fresh actor.
    async fn send(&self, hop: &Arc<NextHop>) {
        let job = self.job(hop, envelope("a@from.example", "b@to.example"));
        self.hop(hop).await.cast(DeliveryMessage::Job(job)).unwrap();
    }

    /// What became of the next message that comes back, of its first recipient.
    pub(crate) async fn outcome(&mut self) -> (Fate, String, String) {
        let wait = tokio::time::timeout(Duration::from_secs(20), self.finished.recv());
        let finished = wait.await.expect("an answer in time").unwrap();
        let first = finished.outcomes.into_iter().next().unwrap();
        (first.fate, first.answer.status, first.answer.reply)
    }
}

pub(crate) fn envelope(sender: &str, recipient: &str) -> Envelope {
    Envelope {
        reverse_path: ReversePath::Address(Address::new(sender).unwrap()),
        recipients: vec![Recipient {
            address: Address::new(recipient).unwrap(),
            notify: Notify::default(),
            original: None,
        }],
        body: Body::SevenBit,
        smtputf8: true,
        ret: None,
        envid: None,
    }
}

pub(crate) fn host(sink: &Sink) -> Host {
    Host { name: sink.address.ip().to_string(), port: sink.address.port() }
}

pub(crate) fn route(hosts: Vec<Host>) -> Arc<NextHop> {
    Arc::new(NextHop { hosts, auth: None, configured: true })
}

fn at(step: &'static str, said: Say) -> impl Fn(&str, usize) -> Say + Send + Sync + 'static {
    move |line, number| if line.get(..4).unwrap_or(line) == step { said.clone() } else { polite(line, number) }
}

#[tokio::test]
async fn a_transaction_has_a_deadline_whatever_each_reply_may_take() {
    for step in ["", "EHLO", "RCPT", "DATA"] {
        let tarpit = Sink::start(at(step, Say::Silence)).await;
        let mut bench = Bench::new(DeliveryConfig { transaction_timeout_s: 1, ..DeliveryConfig::default() }).await;
        // Further hosts are not tried once the time is over.
        let late = Sink::start(polite).await;
        bench.send(&route(vec![host(&tarpit), host(&late)])).await;
        assert_eq!(
            bench.outcome().await,
            (Fate::Deferred, "4.4.2".to_owned(), "no reply in time".to_owned()),
            "{step}"
        );
        assert_eq!(late.connections(), 0);
    }
}

#[tokio::test]
async fn a_tarpit_with_many_names_holds_the_connections_to_its_address_only() {
    let tarpit = Sink::start_at("127.0.0.2", at("MAIL", Say::Silence)).await;
    let good = Sink::start(polite).await;
    let mut bench = Bench::new(DeliveryConfig { connections_max: 2, ..DeliveryConfig::default() }).await;
    for _ in 0..5 {
        bench.send(&route(vec![host(&tarpit)])).await;
    }
    until(|| tarpit.connections() == 1).await;
    bench.send(&route(vec![host(&good)])).await;
    assert_eq!(bench.outcome().await.0, Fate::Delivered);
    assert_eq!(tarpit.connections(), 1);
}

#[tokio::test]
async fn a_hop_that_strangers_named_takes_so_many_jobs_and_no_more() {
    let tarpit = Sink::start(at("MAIL", Say::Silence)).await;
    for (configured, reply) in [(false, "too many messages wait for the next hop"), (true, "")] {
        let delivery =
            DeliveryConfig { connections_per_host_max: 1, local_addresses: true, ..DeliveryConfig::default() };
        let mut bench = Bench::new(delivery).await;
        let hop = Arc::new(NextHop { hosts: vec![host(&tarpit)], auth: None, configured });
        let actor = bench.hop(&hop).await;
        for _ in 0..5_002 {
            actor.cast(DeliveryMessage::Job(bench.job(&hop, envelope("a@from.example", "b@to.example")))).unwrap();
        }
        if configured {
            actor.stop_and_wait(None, None).await.unwrap();
            assert_eq!(bench.outcome().await.2, "the attempt was interrupted");
        } else {
            assert_eq!(bench.outcome().await, (Fate::Deferred, "4.4.5".to_owned(), reply.to_owned()));
        }
    }
}

#[tokio::test]
async fn a_hop_is_logged_in_to_by_auth_plain() {
    for (answer, fate, status) in
        [("235 2.7.0 welcome", Fate::Delivered, "2.0.0"), ("535 5.7.8 who", Fate::Deferred, "5.7.8")]
    {
        let sink = Sink::start(move |line, number| match line.get(..4).unwrap_or(line) {
            "EHLO" => reply("250-sink\r\n250 AUTH LOGIN PLAIN"),
            "AUTH" => reply(answer),
            _ => polite(line, number),
        })
        .await;
        let mut bench = Bench::new(DeliveryConfig::default()).await;
        let auth = Some(("alice".to_owned(), "secret".to_owned()));
        bench.send(&Arc::new(NextHop { hosts: vec![host(&sink)], auth, configured: true })).await;
        let outcome = bench.outcome().await;
        assert_eq!((outcome.0, outcome.1.as_str()), (fate, status));
        let lines = sink.reads.lock().unwrap().concat();
        assert_eq!(lines[1], "AUTH PLAIN AGFsaWNlAHNlY3JldA==");
        assert_eq!(lines.iter().any(|line| line.starts_with("MAIL")), fate == Fate::Delivered);
    }
}

#[tokio::test]
async fn further_hosts_are_tried_until_one_takes_the_message() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dead = Host { name: "127.0.0.1".to_owned(), port: closed.port() };
    let busy = Sink::start(at("", reply("421 4.3.2 busy"))).await;
    let refusing = Sink::start(at("", reply("554 5.7.1 not you"))).await;
    let good = Sink::start(polite).await;
    let mut bench = Bench::new(DeliveryConfig::default()).await;
    bench.send(&route(vec![dead.clone(), host(&busy), host(&refusing), host(&good)])).await;
    assert_eq!(bench.outcome().await.0, Fate::Delivered);
    assert_eq!((busy.connections(), refusing.connections(), good.messages().len()), (1, 1, 1));
    // Only what every host refuses bounces.
    bench.send(&route(vec![dead, host(&refusing)])).await;
    assert_eq!(bench.outcome().await.0, Fate::Deferred);
    bench.send(&route(vec![host(&refusing)])).await;
    assert_eq!(bench.outcome().await, (Fate::Bounced, "5.7.1".to_owned(), "554 5.7.1 not you".to_owned()));
}

#[tokio::test]
async fn a_message_that_needs_smtputf8_bounces_where_it_is_not_offered() {
    let sink = Sink::start(at("EHLO", reply("250-sink\r\n250 8BITMIME"))).await;
    let mut bench = Bench::new(DeliveryConfig::default()).await;
    let hop = route(vec![host(&sink)]);
    let actor = bench.hop(&hop).await;
    for (recipient, fate) in [("jörg@to.example", Fate::Bounced), ("b@bücher.example", Fate::Delivered)] {
        actor.cast(DeliveryMessage::Job(bench.job(&hop, envelope("a@from.example", recipient)))).unwrap();
        let outcome = bench.outcome().await;
        assert_eq!((outcome.0, outcome.1 == "5.6.7"), (fate, fate == Fate::Bounced), "{recipient}: {outcome:?}");
    }
    assert_eq!(sink.messages()[0].recipients, ["RCPT TO:<b@xn--bcher-kva.example>"]);
}

#[tokio::test]
async fn eight_bits_where_they_are_not_offered_bounce_only_if_asked_to() {
    for (offer, strict, fate) in [
        ("250 PIPELINING", false, Fate::Delivered),
        ("250 PIPELINING", true, Fate::Bounced),
        ("250 8BITMIME", true, Fate::Delivered),
    ] {
        let sink = Sink::start(at("EHLO", reply(&format!("250-sink\r\n{offer}")))).await;
        let mut bench = Bench::new(DeliveryConfig { eight_bit_strict: strict, ..DeliveryConfig::default() }).await;
        let hop = route(vec![host(&sink)]);
        let actor = bench.hop(&hop).await;
        let mut job = bench.job(&hop, envelope("a@from.example", "b@to.example"));
        job.message = Some(Message::new(Bytes::from_static("Subject: x\r\n\r\nGrüße\r\n".as_bytes())));
        actor.cast(DeliveryMessage::Job(job)).unwrap();
        let outcome = bench.outcome().await;
        assert_eq!((outcome.0, outcome.1 == "5.6.3"), (fate, fate == Fate::Bounced), "{offer} {strict}: {outcome:?}");
        actor.cast(DeliveryMessage::Job(bench.job(&hop, envelope("a@from.example", "b@to.example")))).unwrap();
        assert_eq!(bench.outcome().await.0, Fate::Delivered, "seven bits need nothing");
    }
}

#[tokio::test]
async fn the_end_of_a_message_is_waited_for_longer_than_other_replies() {
    let slow = Say::Late(Duration::from_millis(1500), "250 2.0.0 taken\r\n".to_owned());
    let sink = Sink::start(at(".", slow)).await;
    let delivery = DeliveryConfig { reply_timeout_s: 1, transaction_timeout_s: 1, ..DeliveryConfig::default() };
    let mut bench = Bench::new(delivery).await;
    bench.send(&route(vec![host(&sink)])).await;
    assert_eq!(bench.outcome().await, (Fate::Delivered, "2.0.0".to_owned(), "250 2.0.0 taken".to_owned()));
}

#[tokio::test]
async fn strangers_cannot_send_mail_to_services_of_this_machine() {
    let sink = Sink::start(polite).await;
    // `half.test` has the address 127.0.0.1.
    for name in ["127.0.0.1", "::ffff:127.0.0.1", "half.test"] {
        let hosts = vec![Host { name: name.to_owned(), port: sink.address.port() }];
        let hop = |configured| Arc::new(NextHop { hosts: hosts.clone(), auth: None, configured });
        let mut bench = Bench::new(DeliveryConfig::default()).await;
        bench.send(&hop(false)).await;
        let refused = bench.outcome().await;
        assert_eq!((refused.0, refused.1.as_str()), (Fate::Bounced, "5.4.4"), "{name}");
        assert_eq!(sink.connections(), 0);
    }
    let stranger = Arc::new(NextHop { hosts: vec![host(&sink)], auth: None, configured: false });
    for (hop, local_addresses) in [(route(vec![host(&sink)]), false), (stranger, true)] {
        let mut bench = Bench::new(DeliveryConfig { local_addresses, ..DeliveryConfig::default() }).await;
        bench.send(&hop).await;
        assert_eq!(bench.outcome().await.0, Fate::Delivered);
    }
}
