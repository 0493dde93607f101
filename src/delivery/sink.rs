//! A next hop for tests: a small SMTP server that keeps what it gets and misbehaves on request.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

/// What the server does at a step.
#[derive(Clone, Debug)]
pub(crate) enum Say {
    Reply(String),
    ReplyAndClose(String),
    Close,
    /// The same as `Reply`, after a while.
    Late(Duration, String),
    /// Nothing, until the client gives up.
    Silence,
    /// 220, then TLS with a fresh self-signed certificate.
    StartTls,
}

/// Asked at each step: the verb line, `` for the greeting, `.` for the end of a message; the connection's number from 0.
pub(crate) type Behaviour = Arc<dyn Fn(&str, usize) -> Say + Send + Sync>;

#[derive(Clone, Debug)]
pub(crate) struct Captured {
    pub(crate) mail: String,
    pub(crate) recipients: Vec<String>,
    /// Dots still doubled, without the final dot.
    pub(crate) data: Vec<u8>,
    pub(crate) connection: usize,
    pub(crate) tls: bool,
}

#[derive(Clone)]
pub(crate) struct Sink {
    pub(crate) address: SocketAddr,
    pub(crate) taken: Arc<Mutex<Vec<Captured>>>,
    pub(crate) connections: Arc<AtomicUsize>,
    /// Verb lines that came in one read.
    pub(crate) reads: Arc<Mutex<Vec<Vec<String>>>>,
    /// For the name `sink`.
    pub(crate) certificate: Arc<Certificate>,
}

pub(crate) fn reply(text: &str) -> Say {
    Say::Reply(format!("{text}\r\n"))
}

/// Every extension except STARTTLS, everything is fine.
pub(crate) fn polite(line: &str, _connection: usize) -> Say {
    match line.get(..4).unwrap_or(line) {
        "" => reply("220 sink"),
        "EHLO" => reply("250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SIZE 100000000\r\n250-SMTPUTF8\r\n250 DSN"),
        "DATA" => reply("354 go on"),
        "QUIT" => Say::ReplyAndClose("221 bye\r\n".to_owned()),
        _ => reply("250 2.0.0 ok"),
    }
}

impl Sink {
    pub(crate) async fn start(behaviour: impl Fn(&str, usize) -> Say + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1", behaviour).await
    }

    pub(crate) async fn start_at(ip: &str, behaviour: impl Fn(&str, usize) -> Say + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let sink = Self {
            address: listener.local_addr().unwrap(),
            taken: Arc::default(),
            connections: Arc::default(),
            reads: Arc::default(),
            certificate: Arc::new(certificate()),
        };
        let (of_task, behaviour): (Self, Behaviour) = (sink.clone(), Arc::new(behaviour));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = of_task.connections.fetch_add(1, Ordering::SeqCst);
                let (sink, behaviour) = (of_task.clone(), Arc::clone(&behaviour));
                tokio::spawn(async move {
                    let session = Session { sink, behaviour, number, buffer: Vec::new(), tls: false };
                    if let Some((stream, session)) = session.run(stream, true).await {
                        let Ok(stream) = acceptor(&session.sink.certificate).accept(stream).await else { return };
                        session.run(stream, false).await;
                    }
                });
            }
        });
        sink
    }

    pub(crate) fn messages(&self) -> Vec<Captured> {
        self.taken.lock().unwrap().clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Waits until `count` messages are there.
    pub(crate) async fn wait(&self, count: usize) -> Vec<Captured> {
        until(|| self.messages().len() >= count).await;
        self.messages()
    }
}

/// Waits for a condition, with a deadline.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the condition holds in time");
}

type Certificate = rcgen::CertifiedKey<rcgen::KeyPair>;

fn certificate() -> Certificate {
    rcgen::generate_simple_self_signed(vec!["sink".to_owned()]).unwrap()
}

fn acceptor(made: &Certificate) -> tokio_rustls::TlsAcceptor {
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    Arc::new(config).into()
}

struct Session {
    sink: Sink,
    behaviour: Behaviour,
    number: usize,
    buffer: Vec<u8>,
    tls: bool,
}

impl Session {
    /// `Some` = the client wants TLS now.
    async fn run<S: AsyncRead + AsyncWrite + Unpin>(mut self, mut stream: S, greets: bool) -> Option<(S, Self)> {
        if greets && !self.say(&mut stream, "").await {
            return None;
        }
        let (mut mail, mut recipients) = (String::new(), Vec::new());
        loop {
            let line = self.line(&mut stream).await?;
            let said = (self.behaviour)(&line, self.number);
            match line.get(..4).unwrap_or("") {
                "MAIL" => (mail, recipients) = (line.clone(), Vec::new()),
                "RCPT" if matches!(&said, Say::Reply(text) if text.starts_with('2')) => recipients.push(line.clone()),
                _ => {}
            }
            if matches!(said, Say::StartTls) {
                stream.write_all(b"220 go on\r\n").await.ok()?;
                self.buffer.clear();
                self.tls = true;
                return Some((stream, self));
            }
            let goes_on = matches!(&said, Say::Reply(text) if text.starts_with("354"));
            if !self.do_say(&mut stream, said).await {
                return None;
            }
            if goes_on {
                let data = self.data(&mut stream).await?;
                let (mail, recipients) = (mail.clone(), std::mem::take(&mut recipients));
                let captured = Captured { mail, recipients, data, connection: self.number, tls: self.tls };
                self.sink.taken.lock().unwrap().push(captured);
                if !self.say(&mut stream, ".").await {
                    return None;
                }
            }
        }
    }

    async fn say<S: AsyncRead + AsyncWrite + Unpin>(&mut self, stream: &mut S, step: &str) -> bool {
        let said = (self.behaviour)(step, self.number);
        self.do_say(stream, said).await
    }

    async fn do_say<S: AsyncRead + AsyncWrite + Unpin>(&mut self, stream: &mut S, said: Say) -> bool {
        match said {
            Say::Reply(text) => stream.write_all(text.as_bytes()).await.is_ok(),
            Say::Late(pause, text) => {
                tokio::time::sleep(pause).await;
                stream.write_all(text.as_bytes()).await.is_ok()
            }
            Say::ReplyAndClose(text) => {
                stream.write_all(text.as_bytes()).await.ok();
                false
            }
            Say::Silence => stream.read(&mut [0]).await.is_ok_and(|_| false),
            Say::Close | Say::StartTls => false,
        }
    }

    async fn fill<S: AsyncRead + Unpin>(&mut self, stream: &mut S) -> Option<()> {
        let before = self.buffer.len();
        self.buffer.reserve(64 << 10);
        let count = stream.read_buf(&mut self.buffer).await.ok()?;
        let lines = String::from_utf8_lossy(&self.buffer[before..]).lines().map(str::to_owned).collect();
        self.sink.reads.lock().unwrap().push(lines);
        (count > 0).then_some(())
    }

    async fn line<S: AsyncRead + Unpin>(&mut self, stream: &mut S) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.buffer.drain(..end + 2).take(end).collect();
                return Some(String::from_utf8(line).unwrap());
            }
            self.fill(stream).await?;
        }
    }

    async fn data<S: AsyncRead + Unpin>(&mut self, stream: &mut S) -> Option<Vec<u8>> {
        loop {
            if self.buffer.starts_with(b".\r\n") {
                self.buffer.drain(..3);
                return Some(Vec::new());
            }
            if let Some(end) = self.buffer.windows(5).position(|end| end == b"\r\n.\r\n") {
                let mut data: Vec<u8> = self.buffer.drain(..end + 5).collect();
                data.truncate(end + 2);
                return Some(data);
            }
            self.fill(stream).await?;
        }
    }
}
