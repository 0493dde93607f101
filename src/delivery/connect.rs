//! From an address to a connection that is ready for MAIL: TCP, greeting, EHLO, STARTTLS, AUTH.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
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
#[derive(Clone, Copy, PartialEq, Eq)]
enum Encryption {
    IfOffered,
    Never,
}

enum Refusal {
    Failed(Failure),
    /// The handshake failed: worth a fresh connection without it.
    Handshake(Failure),
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

/// A connection ready for MAIL. Falls back to clear text where a handshake fails.
pub(super) async fn connect(target: &Target<'_>) -> Result<Connection, Failure> {
    match open(target, Encryption::IfOffered).await {
        Ok(connection) => Ok(connection),
        Err(Refusal::Failed(failure)) => Err(failure),
        Err(Refusal::Handshake(failure)) => {
            tracing::debug!(host = target.host.name, reply = failure.answer.reply, "goes on without TLS");
            open(target, Encryption::Never).await.map_err(|refusal| match refusal {
                Refusal::Failed(failure) | Refusal::Handshake(failure) => failure,
            })
        }
    }
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
        deadline,
        seat: Arc::clone(seat),
        buffer: Vec::new(),
    };
    let greeting = connection.reply().await.map_err(|broken| lost(&connection, &broken))?;
    if greeting.code != 220 {
        return Err(refused(&connection, &greeting).into());
    }
    greet(&mut connection, &shared.helo).await?;
    if connection.extensions.starttls && encryption == Encryption::IfOffered {
        connection = encrypt(shared, connection).await?;
        greet(&mut connection, &shared.helo).await?;
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

async fn encrypt(shared: &Shared, mut connection: Connection) -> Result<Connection, Refusal> {
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
    let handshake = TlsConnector::from(Arc::clone(&shared.tls)).connect(name, stream);
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
    if connection.tls.is_none() && !connection.address.ip().is_loopback() {
        return Err(failure(connection.failed("4.7.0", "the password is not sent without TLS")));
    }
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
