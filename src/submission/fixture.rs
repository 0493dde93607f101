//! A node without listeners, for the tests of submission and reception: real cluster, queue, quarantine and mail log
//! in a directory of their own, and a DNS server of a few names. Deliveries never start.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use outgate_cluster::command::{DomainPatch, NewUser};
use outgate_cluster::state::settings::{Level, Patch};
use outgate_cluster::{Actor, AdmissionId, Cluster, Command, DomainName, Login, OpenOptions, Outcome, Subject};
use tempfile::TempDir;

use super::{Client, Incoming, Line, Tls};
use crate::config::{Config, DnsConfig};
use crate::dns::Dns;
use crate::mail::{Body, Envelope, Message, MessageId, Notify, Recipient, ReversePath};
use crate::maillog::record::Submission;
use crate::maillog::{Event, Maillog, Query};
use crate::metrics::Metrics;
use crate::mirror::Disks;
use crate::quarantine::Quarantine;
use crate::queue::{Queue, QueueParts};
use crate::user::{Directory, Sessions};

pub(crate) const NETWORK: &str = "192.0.2.9/32";
pub(crate) const CONTACT: &str = "admin@example.com";

pub(crate) struct Fixture {
    pub(crate) line: Line,
    pub(crate) client: Client,
    pub(crate) directory: TempDir,
}

impl Fixture {
    /// `settings` are `KEY=VALUE` of the one User: a network without a password, owned by example.com.
    pub(crate) async fn new(settings: &[&str]) -> Self {
        Self::with_config(settings, Config::default()).await
    }

    pub(crate) async fn with_config(settings: &[&str], mut config: Config) -> Self {
        let directory = tempfile::tempdir().unwrap();
        config.dns = DnsConfig { servers: vec![dns_server()], timeout_s: 3 };
        if config.spool.free_min_bytes == Config::default().spool.free_min_bytes {
            config.spool.free_min_bytes = 0;
        }
        let options = OpenOptions::alone(directory.path().join("cluster"), Duration::from_secs(5));
        Cluster::init(&options).unwrap();
        let cluster = Cluster::open(options).await.unwrap();
        let line = line(Arc::new(config), cluster, &directory).await;
        add_user(&line.cluster, settings).await;
        let address: IpAddr = "192.0.2.9".parse().unwrap();
        let user = line.directory.network(address).await.unwrap().unwrap();
        let client = Client {
            address,
            local: "127.0.0.1:587".parse().unwrap(),
            helo: "client.example.com".to_owned(),
            tls: Some(Tls { version: "TLSv1.3".to_owned(), cipher: "TLS13_AES_256_GCM_SHA384".to_owned() }),
            user,
        };
        Self { line, client, directory }
    }

    pub(crate) fn incoming(&self, recipients: &[&str], text: &str) -> Incoming {
        let recipient =
            |address: &&str| Recipient { address: address.parse().unwrap(), notify: Notify::default(), original: None };
        Incoming {
            id: MessageId::generate(),
            client: self.client.clone(),
            envelope: Envelope {
                reverse_path: ReversePath::Address("alice@example.com".parse().unwrap()),
                recipients: recipients.iter().map(recipient).collect(),
                body: Body::SevenBit,
                smtputf8: false,
                ret: None,
                envid: None,
            },
            message: Message::new(Bytes::from(text.to_owned())),
        }
    }

    /// Submits to bob@example.net; the reply's line.
    pub(crate) async fn submit(&self, text: &str) -> String {
        super::submit(&self.line, self.incoming(&["bob@example.net"], text)).await.to_string()
    }

    pub(crate) async fn set(&self, settings: &[&str]) {
        let patch = outgate_cluster::command::UserPatch {
            settings: Patch::parse(settings, Level::User).unwrap(),
            ..Default::default()
        };
        propose(&self.line.cluster, Command::UserSet { login: login(), patch }).await;
    }

    pub(crate) async fn lock(&self) {
        let subject = Subject { login: login(), identity: None };
        let actor = Actor("test".to_owned());
        propose(&self.line.cluster, Command::Lock { subject, actor, reason: "test".to_owned() }).await;
    }

    /// The records of all ends of DATA, newest first.
    pub(crate) async fn records(&self) -> Vec<Submission> {
        let records = self.line.maillog.search(Query::default()).await.unwrap();
        let submission = |event| match event {
            Event::Submission(submission) => Some(*submission),
            Event::Attempt(_) | Event::Change { .. } => None,
        };
        records.into_iter().filter_map(|record| submission(record.event)).collect()
    }

    pub(crate) async fn queued(&self) -> usize {
        self.line.queue.list(None, 1_000).await.len()
    }

    pub(crate) async fn held(&self) -> Vec<crate::quarantine::Held> {
        self.line.quarantine.list(None, None, 1_000).await.unwrap()
    }
}

pub(crate) fn login() -> Login {
    NETWORK.parse().unwrap()
}

pub(crate) async fn propose(cluster: &Cluster, command: Command) {
    let outcome = cluster.propose(command).await.unwrap().outcome;
    assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
}

/// Lets logins fail until the address is on the authentication block list.
pub(crate) async fn block(line: &Line, address: IpAddr) {
    for _ in 0..100 {
        propose(&line.cluster, Command::AuthFailed { user: None, address }).await;
        if line.directory.is_blocked(address) {
            return;
        }
    }
    panic!("{address} is never blocked");
}

async fn line(config: Arc<Config>, cluster: Cluster, directory: &TempDir) -> Line {
    let metrics = Arc::new(Metrics::default());
    let maillog = Maillog::open(&directory.path().join("log"), 32).unwrap();
    let dns = Dns::new(&config.dns).unwrap();
    let settled = cluster.clone();
    let sync_seconds = metrics.spool_sync_seconds.clone();
    let (disks, left) = Disks::alone(&directory.path().join("queue"), &config.spool, sync_seconds).await.unwrap();
    let parts = QueueParts {
        config: Arc::clone(&config),
        dns: dns.clone(),
        disks: disks.clone(),
        maillog: maillog.clone(),
        metrics: Arc::clone(&metrics),
        on_settled: Arc::new(move |tag| {
            settled.settle(AdmissionId { node: tag.node, epoch: tag.epoch, sequence: tag.sequence });
        }),
        find_route: Arc::new(|_| None),
        may_deliver: Arc::new(|| true),
    };
    let (queue, undecided) = Queue::open(parts, left).await.unwrap();
    assert!(undecided.is_empty());
    Line {
        hostname: "out.example.net".to_owned(),
        directory: Directory::new(Arc::clone(&config), cluster.clone(), Arc::clone(&metrics), Sessions::default()),
        quarantine: Quarantine::open(&directory.path().join("quarantine"), 14).unwrap(),
        config,
        cluster,
        dns,
        disks,
        queue,
        maillog,
        metrics,
    }
}

async fn add_user(cluster: &Cluster, settings: &[&str]) {
    let name = DomainName::new("example.com").unwrap();
    let patch = DomainPatch { contact: Some(CONTACT.to_owned()), ..DomainPatch::default() };
    propose(cluster, Command::DomainAdd { name: name.clone(), patch }).await;
    let settings = Patch::parse(settings, Level::User).unwrap();
    let user = NewUser { login: login(), owner: Some(name), password_hash: None, settings };
    propose(cluster, Command::UserAdd { user }).await;
}

/// Answers for ever, in a thread that ends with the process. `null.test` has a null MX, `nothing.test` does not exist,
/// `broken.test` fails, every other name has an MX and an address.
fn dns_server() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, peer)) = socket.recv_from(&mut query) {
            let sent = answer(&query[..length]).map(|answer| socket.send_to(&answer, peer));
            assert!(sent.is_none_or(|sent| sent.is_ok()));
        }
    });
    address
}

fn answer(query: &[u8]) -> Option<Vec<u8>> {
    const MX: u16 = 15;
    const A: u16 = 1;
    let mut at = 12;
    let mut name = String::new();
    while *query.get(at)? > 0 {
        let label = query.get(at + 1..at + 1 + usize::from(query[at]))?;
        name += &(String::from_utf8_lossy(label) + ".");
        at += 1 + label.len();
    }
    let kind = u16::from_be_bytes([*query.get(at + 1)?, *query.get(at + 2)?]);
    let data: Option<Vec<u8>> = match (name.as_str(), kind) {
        ("null.test.", MX) => Some(vec![0, 0, 0]),
        ("nothing.test." | "broken.test.", _) => None,
        (_, MX) => Some([&[0, 10, 2][..], b"mx", &[0xc0, 12]].concat()),
        (_, A) => Some(vec![127, 0, 0, 1]),
        _ => None,
    };
    let code = match name.as_str() {
        "nothing.test." => 3,
        "broken.test." => 2,
        _ => 0,
    };
    let count = u8::from(data.is_some());
    let mut reply = [&query[..2], &[0x81, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0], &query[12..at + 5]].concat();
    if let Some(data) = data {
        reply.extend([0xc0, 12]);
        reply.extend(kind.to_be_bytes());
        reply.extend([0, 1, 0, 0, 0, 60, 0, u8::try_from(data.len()).ok()?]);
        reply.extend(data);
    }
    Some(reply)
}
