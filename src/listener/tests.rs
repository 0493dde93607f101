//! Listeners and connections over real sockets, on a node that has no parts beside them.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::time::{Instant, timeout};

use crate::config::{Config, SmtpConfig, TlsConfig};
use crate::submission::fixture::Fixture;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);
/// The address of the fixture's network User.
const USER: &str = "PROXY TCP4 192.0.2.9 127.0.0.1 40000 587\r\n";
const STRANGER: &str = "PROXY TCP4 192.0.2.77 127.0.0.1 40000 587\r\n";

struct Site {
    listeners: Listeners,
    line: Arc<Line>,
    _directory: tempfile::TempDir,
}

async fn site(change: impl FnOnce(&mut SmtpConfig)) -> Site {
    let mut config = Config::default();
    change(&mut config.smtp);
    let Fixture { line, directory, client } = Fixture::with_config(&[], config).await;
    drop(client);
    let line = Arc::new(line);
    let tls = ServerTls::load(&TlsConfig::default(), directory.path(), "mx.test").unwrap();
    let listener = ListenerConfig {
        address: "127.0.0.1:0".parse().unwrap(),
        mode: ListenerMode::Submission,
        clear_text_networks: Vec::new(),
        proxy_networks: vec!["127.0.0.0/8".parse().unwrap()],
    };
    let listeners = Listeners::start(&[listener], Arc::clone(&line), tls).await.unwrap();
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

    /// Up to the answer to `DATA`.
    async fn begin_message(&mut self) {
        assert!(self.hear().await.starts_with("220 "));
        self.send("HELO client.test\r\nMAIL FROM:<alice@example.com>\r\nRCPT TO:<bob@example.net>\r\nDATA\r\n").await;
        for code in ["250 ", "250 ", "250 ", "354 "] {
            let line = self.hear().await;
            assert!(line.starts_with(code), "{line}");
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
}
