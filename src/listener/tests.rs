//! Listeners and connections over real sockets, on a node that has no parts beside them.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::time::{Instant, timeout};

use crate::config::{Config, SmtpConfig, TlsConfig};
use crate::maillog::{Event, Query, Record};
use crate::submission::fixture::{Fixture, block};

use crate::user::LoginError;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);
/// The address of the fixture's network User.
const USER: &str = "PROXY TCP4 192.0.2.9 127.0.0.1 40000 587\r\n";
const STRANGER: &str = "PROXY TCP4 192.0.2.77 127.0.0.1 40000 587\r\n";
/// May log in without TLS.
const NEIGHBOUR: &str = "PROXY TCP4 192.0.2.78 127.0.0.1 40000 587\r\n";

struct Site {
    listeners: Listeners,
    line: Arc<Line>,
    _directory: tempfile::TempDir,
}

async fn site(change: impl FnOnce(&mut SmtpConfig)) -> Site {
    site_with(change, Patience::default()).await
}

async fn site_with(change: impl FnOnce(&mut SmtpConfig), patience: Patience) -> Site {
    let mut config = Config::default();
    change(&mut config.smtp);
    let Fixture { line, directory, client } = Fixture::with_config(&[], config).await;
    drop(client);
    let line = Arc::new(line);
    let tls = ServerTls::load(&TlsConfig::default(), &[], directory.path(), "mx.test").unwrap();
    let listener = |mode, proxy: &[&str]| ListenerConfig {
        address: "127.0.0.1:0".parse().unwrap(),
        mode,
        clear_text_networks: vec!["192.0.2.78/32".parse().unwrap()],
        proxy_networks: proxy.iter().map(|network| network.parse().unwrap()).collect(),
        only: Vec::new(),
        exclude: Vec::new(),
    };
    let listeners = [listener(ListenerMode::Submission, &["127.0.0.0/8"]), listener(ListenerMode::Submissions, &[])];
    let listeners = Listeners::start_with(&listeners, Arc::clone(&line), tls, patience).await.unwrap();
    Site { listeners, line, _directory: directory }
}

struct Caller {
    stream: BufReader<TcpStream>,
}

impl Site {
    /// A connection that begins with `header`.
    async fn call(&self, header: &str) -> Caller {
        let mut caller = Caller { stream: BufReader::new(self.connect().await.unwrap()) };
        caller.send(header).await;
        caller
    }

    /// A place is free only once the server has noticed that a connection is gone.
    async fn call_until_welcome(&self, header: &str) -> Caller {
        let before = Instant::now();
        loop {
            let mut caller = self.call(header).await;
            if caller.hear().await.starts_with("220 ") {
                return caller;
            }
            assert!(before.elapsed() < PATIENCE, "the place never comes back");
        }
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        TcpStream::connect(self.listeners.addresses()[0]).await
    }
}

impl Caller {
    async fn send(&mut self, text: &str) {
        self.stream.get_mut().write_all(text.as_bytes()).await.unwrap();
    }

    /// The next line; empty at the end of the connection.
    async fn hear(&mut self) -> String {
        let mut line = String::new();
        match timeout(PATIENCE, self.stream.read_line(&mut line)).await.unwrap() {
            Ok(_) => line.trim_end().to_owned(),
            Err(_) => String::new(),
        }
    }

    async fn say(&mut self, text: &str) -> String {
        self.send(&format!("{text}\r\n")).await;
        self.hear().await
    }

    /// One octet after the other, as slowly as if each were the last; what the server says to it, if anything.
    async fn drip(&mut self, octets: &str) -> Option<String> {
        for octet in octets.as_bytes() {
            self.stream.get_mut().write_all(&[*octet]).await.unwrap();
            if let Ok(line) = timeout(Duration::from_millis(150), self.hear()).await {
                return Some(line);
            }
        }
        None
    }

    /// Up to the answer to `DATA`.
    async fn begin_message(&mut self) {
        self.begin_transaction().await;
        assert!(self.say("DATA").await.starts_with("354 "));
    }

    /// Up to the answer to RCPT.
    async fn begin_transaction(&mut self) {
        assert!(self.hear().await.starts_with("220 "));
        self.send("HELO client.test\r\nMAIL FROM:<alice@example.com>\r\nRCPT TO:<bob@example.net>\r\n").await;
        for _ in 0..3 {
            let line = self.hear().await;
            assert!(line.starts_with("250 "), "{line}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_header_of_a_load_balancer_names_the_user() {
    let site = site(|_| {}).await;
    let mut user = site.call(USER).await;
    user.begin_message().await;
    assert!(user.say("Subject: x\r\n\r\nhello\r\n.").await.starts_with("250 2.0.0 accepted as "));
    let mut stranger = site.call(STRANGER).await;
    assert!(stranger.hear().await.starts_with("220 "));
    stranger.say("HELO client.test").await;
    assert!(stranger.say("MAIL FROM:<alice@example.com>").await.starts_with("530 5.7.0 must issue"));
    assert_eq!(site.call("EHLO client.test\r\n").await.hear().await, "", "no header, no service");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_ends_a_session_and_a_message() {
    let site = site(|smtp| (smtp.verb_timeout_s, smtp.data_timeout_s) = (1, 1)).await;
    let mut caller = site.call(STRANGER).await;
    caller.hear().await;
    assert_eq!(caller.hear().await, "421 4.4.2 timeout, closing");
    assert_eq!(caller.hear().await, "");
    let mut sender = site.call(USER).await;
    sender.begin_message().await;
    sender.send("Subject: x\r\n").await;
    assert_eq!(sender.hear().await, "421 4.4.2 timeout, closing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_in_many_pieces_has_no_more_time_than_a_whole_one() {
    let site = site(|smtp| smtp.verb_timeout_s = 1).await;
    let mut caller = site.call(STRANGER).await;
    caller.hear().await;
    assert_eq!(caller.drip("NOO").await, None);
    assert_eq!(caller.say("P").await, "250 2.0.0 ok");
    assert_eq!(caller.drip("NOOP").await, None);
    assert_eq!(caller.say("").await, "250 2.0.0 ok", "each line has its own time");
    let timeout = Some("421 4.4.2 timeout, closing".to_owned());
    assert_eq!(caller.drip(&"N".repeat(20)).await, timeout);
    let mut neighbour = site.call(NEIGHBOUR).await;
    neighbour.hear().await;
    neighbour.say("HELO client.test").await;
    assert!(neighbour.say("AUTH LOGIN").await.starts_with("334 "));
    assert_eq!(neighbour.drip(&"A".repeat(20)).await, timeout, "a continuation of AUTH is a line too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_counted_by_address_and_in_total() {
    let site = site(|smtp| (smtp.connections_per_address_max, smtp.connections_max) = (1, 2)).await;
    let mut first = site.call(STRANGER).await;
    assert!(first.hear().await.starts_with("220 "));
    let mut second = site.call(STRANGER).await;
    assert_eq!(second.hear().await, "421 4.7.0 too many connections from your address");
    assert_eq!(second.hear().await, "");
    drop(second);
    let _other = site.call_until_welcome(USER).await;
    let mut third = BufReader::new(site.connect().await.unwrap());
    let mut line = String::new();
    timeout(PATIENCE, third.read_line(&mut line)).await.unwrap().unwrap();
    assert!(line.starts_with("421 4.3.2 "), "{line}");
    assert_eq!(first.say("QUIT").await, "221 2.0.0 bye");
    drop(first);
    site.call_until_welcome(STRANGER).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_node_refuses_tcp_and_the_next_mail() {
    let site = site(|_| {}).await;
    let mut caller = site.call(USER).await;
    caller.hear().await;
    caller.say("HELO client.test").await;
    site.listeners.close();
    assert_eq!(site.connect().await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(caller.say("NOOP").await, "250 2.0.0 ok", "open sessions stay");
    assert!(caller.say("MAIL FROM:<alice@example.com>").await.starts_with("421 4.3.2 "));
    site.listeners.open();
    let mut again = site.call(USER).await;
    again.begin_message().await;
    assert!(again.say("Subject: x\r\n\r\nhello\r\n.").await.starts_with("250 "));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_ends_idle_sessions_and_waits_for_messages() {
    let site = site(|_| {}).await;
    let mut idle = site.call(STRANGER).await;
    idle.hear().await;
    let mut busy = site.call(USER).await;
    busy.begin_message().await;
    let finish = async {
        assert!(idle.hear().await.starts_with("421 4.3.2 "));
        let refused = site.connect().await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let reply = busy.say("Subject: x\r\n\r\nhello\r\n.").await;
        assert!(reply.starts_with("250 2.0.0 "), "{reply}");
        assert!(busy.hear().await.starts_with("421 4.3.2 "));
    };
    let ((), ()) = tokio::join!(site.listeners.shutdown(), finish);
    site.line.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_has_an_end_even_if_a_client_has_none() {
    let site = site(|smtp| smtp.drain_timeout_s = 1).await;
    let mut busy = site.call(USER).await;
    busy.begin_message().await;
    let before = Instant::now();
    site.listeners.shutdown().await;
    assert!(before.elapsed() < Duration::from_secs(1) + FAREWELL_TIMEOUT);
    assert!(busy.hear().await.starts_with("421 4.3.2 "));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_far_too_large_ends_the_connection() {
    let site = site(|_| {}).await;
    let mut sender = site.call(USER).await;
    sender.hear().await;
    sender.say("HELO client.test").await;
    assert_eq!(
        sender.say("MAIL FROM:<alice@example.com> SIZE=99999999999").await,
        "552 5.3.4 message exceeds 52428800 octets"
    );
    sender.send("MAIL FROM:<alice@example.com>\r\nRCPT TO:<bob@example.net>\r\nBDAT 999999999999\r\n").await;
    sender.hear().await;
    sender.hear().await;
    assert!(sender.hear().await.starts_with("552 5.3.4 "));
    assert_eq!(sender.hear().await, "");
    let records = site.line.maillog.search(Query::default()).await.unwrap();
    let [Record { event: Event::Submission(record), .. }] = &records[..] else { panic!("{records:?}") };
    assert_eq!(record.size, 999_999_999_999);
}

/// Short waits, so that a test sees them end.
fn hasty() -> Patience {
    let short = Duration::from_millis(500);
    Patience { proxy: short, handshake: short, room: short, ..Patience::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_and_proxy_headers_have_an_end() {
    let site = site_with(|_| {}, hasty()).await;
    let mut silent = site.call("PROXY TCP4 ").await;
    assert_eq!(silent.hear().await, "", "the header never ends");
    let stream = TcpStream::connect(site.listeners.addresses()[1]).await.unwrap();
    assert_eq!(Caller { stream: BufReader::new(stream) }.hear().await, "", "TLS from the first byte never begins");
    let mut starting = site.call(STRANGER).await;
    starting.hear().await;
    assert!(starting.say("STARTTLS").await.starts_with("220 "));
    assert_eq!(starting.hear().await, "", "TLS never begins");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_must_keep_its_pace() {
    let patience = Patience { pace_window: Duration::from_millis(500), ..Patience::default() };
    let site = site_with(|smtp| smtp.data_rate_min_bytes_per_s = 1_000, patience).await;
    let mut sender = site.call(USER).await;
    sender.begin_message().await;
    // What came early does not count later.
    sender.send(&"0123456789\r\n".repeat(10_000)).await;
    let before = Instant::now();
    loop {
        assert!(before.elapsed() < PATIENCE, "it may go on without end");
        if sender.stream.get_mut().write_all(b"x").await.is_err() {
            break;
        }
        if let Ok(line) = timeout(Duration::from_millis(50), sender.hear()).await {
            assert_eq!(line, "421 4.4.2 message comes too slowly, closing");
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_must_end_some_day() {
    let site = site_with(|_| {}, Patience { content: Duration::from_secs(1), ..Patience::default() }).await;
    let mut sender = site.call(USER).await;
    sender.begin_transaction().await;
    assert_eq!(sender.say("BDAT 3\r\na").await, "250 2.0.0 3 octets received");
    assert_eq!(sender.say("NOOP").await, "250 2.0.0 ok");
    assert_eq!(sender.hear().await, "421 4.4.2 timeout, closing", "a pause between chunks is part of it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_that_is_taken_puts_messages_off_until_it_is_free() {
    let site = site_with(|smtp| smtp.message_memory_max_bytes = 256 << 10, hasty()).await;
    let mut first = site.call(USER).await;
    first.begin_transaction().await;
    let chunk = "x".repeat(100 << 10);
    assert!(first.say(&format!("BDAT {}\r\n{chunk}", (100 << 10) + 2)).await.starts_with("250 "));
    let mut second = site.call(USER).await;
    second.begin_transaction().await;
    assert_eq!(second.say("DATA").await, "451 4.3.0 temporary failure, try later");
    assert_eq!(first.say("RSET").await, "250 2.0.0 ok");
    assert!(second.say("DATA").await.starts_with("354 "), "a transaction that is over holds nothing");
    first.send("MAIL FROM:<alice@example.com>\r\nRCPT TO:<bob@example.net>\r\nDATA\r\n").await;
    for code in ["250 ", "250 ", "354 "] {
        assert!(first.hear().await.starts_with(code));
    }
    first.send(&"0123456789\r\n".repeat(10_000)).await;
    assert_eq!(first.say(".").await, "451 4.3.0 temporary failure, try later", "no room to grow");
    assert!(second.say("Subject: x\r\n\r\nhello\r\n.").await.starts_with("250 2.0.0 accepted"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_log_in_may_not_stay() {
    let site = site_with(|_| {}, Patience { login: Duration::from_secs(1), ..Patience::default() }).await;
    let (mut user, mut stranger) = (site.call(USER).await, site.call(STRANGER).await);
    user.hear().await;
    stranger.hear().await;
    assert_eq!(stranger.say("NOOP").await, "250 2.0.0 ok");
    assert_eq!(stranger.hear().await, "421 4.4.2 timeout, closing");
    assert_eq!(user.say("NOOP").await, "250 2.0.0 ok", "a User may");
    let mut flood = site.call(STRANGER).await;
    flood.hear().await;
    let before = Instant::now();
    while flood.stream.get_mut().write_all(&[b'x'; 4096]).await.is_ok() {
        assert!(before.elapsed() < PATIENCE, "a line without end keeps the session");
    }
}

/// Waits until so many connections that began in this way were counted.
async fn counted(site: &Site, kind: &'static str, count: u64) {
    let before = Instant::now();
    while site.line.metrics.connections.get_or_create(&kind.into()).get() != count {
        assert!(before.elapsed() < PATIENCE, "{}", site.line.metrics.encode());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_counted_by_how_they_began() {
    let site = site(|_| {}).await;
    let address = "192.0.2.77".parse().unwrap();
    block(&site.line, address).await;
    assert_eq!(site.call(STRANGER).await.hear().await, "421 4.7.0 too many failed logins from your address, try later");
    counted(&site, "blocked", 1).await;
    drop(site.call("EHLO client.test\r\n").await);
    counted(&site, "refused", 1).await;
    assert!(site.call(USER).await.hear().await.starts_with("220 "));
    counted(&site, "accepted", 1).await;
    let result = site.line.directory.authenticate(address, "x@example.com", b"x").await;
    assert_eq!(result.err(), Some(LoginError::Blocked));
    assert_eq!(site.line.metrics.logins.get_or_create(&"blocked".into()).get(), 1);
}
