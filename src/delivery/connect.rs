//! From an address to a connection that is ready for MAIL: TCP, greeting, EHLO, STARTTLS, AUTH.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::connection::{Broken, Connection, Stream};
use super::seats::Seat;
use super::{Answer, Host, Shared};
use crate::smtp::client::{Extensions, ServerReply};

/// Why there is no connection. `permanent` = the hop itself said so.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) permanent: bool,
    pub(super) answer: Answer,
}

/// Whether STARTTLS is used where it is offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Encryption {
    IfOffered,
    Never,
    /// Else there is no connection: a password goes over it.
    Verified,
}

enum Refusal {
    Failed(Failure),
    /// The handshake failed: worth a fresh connection without it.
    Handshake(Failure),
}

impl Refusal {
    fn into_failure(self) -> Failure {
        match self {
            Self::Failed(failure) | Self::Handshake(failure) => failure,
        }
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Where to, and what it takes to get there.
pub(super) struct Target<'a> {
    pub(super) shared: &'a Shared,
    pub(super) host: &'a Host,
    pub(super) ip: IpAddr,
    pub(super) auth: Option<&'a (String, String)>,
    pub(super) deadline: Instant,
    pub(super) seat: Arc<Seat>,
}

/// A connection ready for MAIL. Falls back to clear text where a handshake fails and no password is at stake.
pub(super) async fn connect(target: &Target<'_>) -> Result<Connection, Failure> {
    establish(target, encryption(target.auth.is_some(), target.ip)).await
}

async fn establish(target: &Target<'_>, encryption: Encryption) -> Result<Connection, Failure> {
    match open(target, encryption).await {
        Ok(connection) => Ok(connection),
        Err(Refusal::Handshake(failure)) if encryption == Encryption::IfOffered => {
            tracing::debug!(host = target.host.name, reply = failure.answer.reply, "goes on without TLS");
            open(target, Encryption::Never).await.map_err(Refusal::into_failure)
        }
        Err(refusal) => Err(refusal.into_failure()),
    }
}

/// What goes to this machine itself is not overheard.
fn encryption(logs_in: bool, ip: IpAddr) -> Encryption {
    if logs_in && !ip.to_canonical().is_loopback() { Encryption::Verified } else { Encryption::IfOffered }
}

async fn open(target: &Target<'_>, encryption: Encryption) -> Result<Connection, Refusal> {
    let &Target { shared, host, ip, auth, deadline, ref seat } = target;
    let stream = dial(target).await?;
    let mut connection = Connection {
        stream: Stream::Plain(stream),
        host: host.name.clone(),
        address: SocketAddr::new(ip, host.port),
        tls: None,
        extensions: Extensions::default(),
        messages: 0,
        needs_reset: false,
        reply_timeout: Duration::from_secs(shared.config.delivery.reply_timeout_s),
        final_reply_timeout: Duration::from_secs(shared.config.delivery.final_reply_timeout_s),
        deadline,
        seat: Arc::clone(seat),
        buffer: Vec::new(),
    };
    let greeting = connection.reply().await.map_err(|broken| lost(&connection, &broken))?;
    if greeting.code != 220 {
        return Err(refused(&connection, &greeting).into());
    }
    greet(&mut connection, &shared.helo).await?;
    let tls = match encryption {
        Encryption::Never => None,
        Encryption::IfOffered => Some(Arc::clone(&shared.tls.opportunistic)),
        Encryption::Verified => Some(shared.tls.verifying()),
    };
    if let Some(tls) = tls.filter(|_| connection.extensions.starttls) {
        connection = encrypt(tls, connection).await?;
        greet(&mut connection, &shared.helo).await?;
    } else if encryption == Encryption::Verified {
        let answer = connection.failed("4.7.0", "the password is not sent without TLS");
        return Err(Failure { permanent: false, answer }.into());
    }
    if let Some((user, password)) = auth {
        log_in(&mut connection, user, password).await?;
    }
    Ok(connection)
}

async fn dial(target: &Target<'_>) -> Result<TcpStream, Failure> {
    let &Target { shared, host, ip, deadline, .. } = target;
    let delivery = &shared.config.delivery;
    let connect = async {
        let socket = if ip.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(source) = delivery.source.filter(|source| source.is_ipv4() == ip.is_ipv4()) {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        let stream = socket.connect(SocketAddr::new(ip, host.port)).await?;
        stream.set_nodelay(true)?;
        std::io::Result::Ok(stream)
    };
    let failed = |what: &str| {
        let mut answer = Answer::local(&host.name, "4.4.1", &format!("cannot connect to {ip}:{}: {what}", host.port));
        answer.address = Some(ip);
        Failure { permanent: false, answer }
    };
    let time_limit = deadline.min(Instant::now() + Duration::from_secs(delivery.connect_timeout_s));
    match timeout_at(time_limit, connect).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(failed(&error.to_string())),
        Err(_) => Err(failed("no answer in time")),
    }
}

/// EHLO, or HELO where a server does not know it.
async fn greet(connection: &mut Connection, helo: &str) -> Result<(), Failure> {
    let ehlo = connection.ask(&format!("EHLO {helo}\r\n")).await.map_err(|broken| lost(connection, &broken))?;
    if ehlo.is_positive() {
        connection.extensions = Extensions::parse(&ehlo);
        return Ok(());
    }
    if !ehlo.is_permanent() {
        return Err(refused(connection, &ehlo));
    }
    connection.extensions = Extensions::default();
    let reply = connection.ask(&format!("HELO {helo}\r\n")).await.map_err(|broken| lost(connection, &broken))?;
    if reply.is_positive() { Ok(()) } else { Err(refused(connection, &reply)) }
}

async fn encrypt(tls: Arc<ClientConfig>, mut connection: Connection) -> Result<Connection, Refusal> {
    let reply = connection.ask("STARTTLS\r\n").await.map_err(|broken| lost(&connection, &broken))?;
    if reply.code != 220 || !connection.is_in_step() {
        // Offered and refused, or something was slipped in behind the answer.
        return Err(Refusal::Handshake(Failure { permanent: false, answer: connection.answer(&reply) }));
    }
    let name = ServerName::try_from(connection.host.clone()).unwrap_or_else(|_| connection.address.ip().into());
    let Connection { stream: Stream::Plain(stream), .. } = connection else { return Ok(connection) };
    let failed = |what: &str| {
        let mut answer = Answer::local(&connection.host, "4.7.5", &format!("TLS handshake failed: {what}"));
        answer.address = Some(connection.address.ip());
        Refusal::Handshake(Failure { permanent: false, answer })
    };
    let time_limit = connection.deadline.min(Instant::now() + connection.reply_timeout);
    let handshake = TlsConnector::from(tls).connect(name, stream);
    let stream = match timeout_at(time_limit, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(failed(&error.to_string())),
        Err(_) => return Err(failed("no answer in time")),
    };
    let (_, session) = stream.get_ref();
    let version = session.protocol_version().and_then(|version| version.as_str()).unwrap_or("TLS");
    let cipher = session.negotiated_cipher_suite().map_or(String::new(), |suite| format!(" {:?}", suite.suite()));
    let tls = Some(Arc::from(format!("{version}{cipher}")));
    Ok(Connection { stream: Stream::Tls(Box::new(stream)), tls, ..connection })
}

/// AUTH PLAIN (RFC 4616). A refused login is our mistake and no reason to bounce mail.
async fn log_in(connection: &mut Connection, user: &str, password: &str) -> Result<(), Failure> {
    let failure = |answer: Answer| Failure { permanent: false, answer };
    if !connection.extensions.auth_plain {
        return Err(failure(connection.failed("4.7.0", "the server does not offer AUTH PLAIN")));
    }
    let secret = STANDARD.encode(format!("\0{user}\0{password}"));
    let reply =
        connection.ask(&format!("AUTH PLAIN {secret}\r\n")).await.map_err(|broken| lost(connection, &broken))?;
    if reply.is_positive() { Ok(()) } else { Err(failure(connection.answer(&reply))) }
}

fn lost(connection: &Connection, broken: &Broken) -> Failure {
    Failure { permanent: false, answer: connection.failed("4.4.2", &broken.to_string()) }
}

fn refused(connection: &Connection, reply: &ServerReply) -> Failure {
    Failure { permanent: reply.is_permanent(), answer: connection.answer(reply) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use rustls::RootCertStore;

    use super::*;
    use crate::config::DeliveryConfig;
    use crate::delivery::sink::{Say, Sink, polite, reply};
    use crate::delivery::tests::Bench;
    use crate::delivery::tls::Tls;

    #[test]
    fn a_password_goes_to_a_proven_host_or_to_this_machine() {
        let (far, near) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([127, 0, 0, 1]));
        assert_eq!(encryption(true, far), Encryption::Verified);
        assert_eq!(encryption(true, near), Encryption::IfOffered);
        assert_eq!(encryption(false, far), Encryption::IfOffered);
    }

    /// What comes of a login at `name`, whose sink offers `offers`; whether the sink saw AUTH, its connections.
    async fn log_in_at(name: &str, offers: &'static str, trusted: bool) -> (Result<(), String>, bool, usize) {
        let sink = Sink::start(move |line, number| match line.get(..4).unwrap_or(line) {
            "EHLO" => reply(offers),
            "STAR" => Say::StartTls,
            _ => polite(line, number),
        })
        .await;
        let mut roots = RootCertStore::empty();
        if trusted {
            roots.add(sink.certificate.cert.der().clone()).unwrap();
        }
        let mut bench = Bench::new(DeliveryConfig::default()).await;
        let shared = Arc::get_mut(&mut bench.shared).unwrap();
        shared.tls = Tls::with_roots(roots);
        let (host, auth) =
            (Host { name: name.to_owned(), port: sink.address.port() }, Some(("me".into(), "pw".into())));
        let deadline = Instant::now() + Duration::from_secs(20);
        let ip = sink.address.ip();
        let seat = Arc::new(shared.seats.take(ip).await);
        let target = Target { shared, host: &host, ip, auth: auth.as_ref(), deadline, seat };
        let result = establish(&target, Encryption::Verified).await;
        let saw_auth = sink.reads.lock().unwrap().concat().iter().any(|line| line.starts_with("AUTH"));
        let result = result.map(|connection| assert!(connection.tls.is_some()));
        let told = result.map_err(|failure| {
            assert!(!failure.permanent);
            failure.answer.status
        });
        (told, saw_auth, sink.connections())
    }

    #[tokio::test]
    async fn a_password_never_goes_to_a_host_that_proves_nothing() {
        let (tls, clear) = ("250-sink\r\n250-STARTTLS\r\n250 AUTH PLAIN", "250-sink\r\n250 AUTH PLAIN");
        assert_eq!(log_in_at("sink", tls, true).await, (Ok(()), true, 1));
        assert_eq!(log_in_at("sink", tls, false).await, (Err("4.7.5".to_owned()), false, 1));
        assert_eq!(log_in_at("other", tls, true).await, (Err("4.7.5".to_owned()), false, 1));
        assert_eq!(log_in_at("sink", clear, true).await, (Err("4.7.0".to_owned()), false, 1));
    }
}
