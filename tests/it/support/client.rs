//! A client that speaks SMTP line by line, over clear text or TLS.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

pub const GTUBE: &str = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X";

/// How long a client that has other servers to turn to waits for one that says nothing.
const IMPATIENCE: Duration = Duration::from_secs(8);

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

pub struct Client {
    stream: BufReader<Box<dyn Stream>>,
    socket: TcpStream,
}

/// A reply: its code and all of its lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub code: u16,
    pub text: String,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).unwrap())
    }

    /// From another address of the loopback network, so that the server sees another client.
    pub fn connect_from(source: IpAddr, address: SocketAddr) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(source, 0).into()).unwrap();
        socket.connect(&address.into()).unwrap();
        Self::over(socket.into())
    }

    fn over(socket: TcpStream) -> Self {
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        socket.set_nodelay(true).unwrap();
        let stream: Box<dyn Stream> = Box::new(socket.try_clone().unwrap());
        Self { stream: BufReader::new(stream), socket }
    }

    /// Greeting, EHLO, STARTTLS, EHLO, AUTH PLAIN.
    pub fn login(address: SocketAddr, login: &str, password: &str) -> Self {
        let mut client = Self::secured(address);
        assert_eq!(client.auth(login, password).code, 235);
        client
    }

    /// As a client that has other servers to turn to: `None` where this one refuses, breaks off or says nothing.
    pub fn try_login(address: SocketAddr, login: &str, password: &str) -> Option<Self> {
        let socket = TcpStream::connect_timeout(&address, IMPATIENCE).ok()?;
        let mut client = Self::over(socket);
        client.socket.set_read_timeout(Some(IMPATIENCE)).ok()?;
        client.try_answer().filter(|answer| answer.code == 220)?;
        client.try_say("EHLO client.test").filter(|answer| answer.code == 250)?;
        client.try_say("STARTTLS").filter(|answer| answer.code == 220)?;
        client.wrap();
        client.try_say("EHLO client.test").filter(|answer| answer.code == 250)?;
        client.try_say(&auth_plain(login, password)).filter(|answer| answer.code == 235)?;
        Some(client)
    }

    /// Greeting, EHLO, STARTTLS, EHLO.
    pub fn secured(address: SocketAddr) -> Self {
        let mut client = Self::connect(address);
        assert_eq!(client.answer().code, 220);
        assert_eq!(client.say("EHLO client.test").code, 250);
        client.starttls();
        assert_eq!(client.say("EHLO client.test").code, 250);
        client
    }

    pub fn starttls(&mut self) {
        assert_eq!(self.say("STARTTLS").code, 220);
        self.wrap();
    }

    /// Begins TLS at once, for port 465.
    pub fn wrap(&mut self) {
        let name = ServerName::try_from("localhost").unwrap();
        let connection = ClientConnection::new(tls_config(), name).unwrap();
        let stream: Box<dyn Stream> = Box::new(StreamOwned::new(connection, self.socket.try_clone().unwrap()));
        self.stream = BufReader::new(stream);
    }

    /// The certificate (DER) that port 465 shows to who asks for this name.
    pub fn peer_certificate(address: SocketAddr, name: &str) -> Vec<u8> {
        let mut socket = TcpStream::connect(address).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut connection = ClientConnection::new(tls_config(), name).unwrap();
        while connection.is_handshaking() {
            connection.complete_io(&mut socket).unwrap();
        }
        connection.peer_certificates().unwrap()[0].to_vec()
    }

    pub fn auth(&mut self, login: &str, password: &str) -> Answer {
        self.say(&auth_plain(login, password))
    }

    pub fn say(&mut self, line: &str) -> Answer {
        self.send(format!("{line}\r\n").as_bytes());
        self.answer()
    }

    /// `None` once the server has closed.
    pub fn try_say(&mut self, line: &str) -> Option<Answer> {
        self.try_send(format!("{line}\r\n").as_bytes())?;
        self.try_answer()
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
        self.stream.get_mut().flush().unwrap();
    }

    /// `None` once the server has closed.
    pub fn try_send(&mut self, bytes: &[u8]) -> Option<()> {
        self.stream.get_mut().write_all(bytes).ok()?;
        self.stream.get_mut().flush().ok()
    }

    pub fn answer(&mut self) -> Answer {
        self.try_answer().expect("the server closed the connection")
    }

    /// `None` once the server has closed.
    pub fn try_answer(&mut self) -> Option<Answer> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line).unwrap_or(0) == 0 {
                return None;
            }
            let more = line.as_bytes().get(3) == Some(&b'-');
            lines.push(line.trim_end().to_owned());
            if !more {
                let code = lines[0].get(..3)?.parse().ok()?;
                return Some(Answer { code, text: lines.join("\n") });
            }
        }
    }

    /// A whole transaction; the answer to MAIL, RCPT or DATA where that refuses, else to the end of DATA.
    pub fn mail(&mut self, from: &str, to: &str, message: &str) -> Answer {
        self.try_mail(from, to, message).expect("the server closed the connection")
    }

    /// `None` once the server has closed.
    pub fn try_mail(&mut self, from: &str, to: &str, message: &str) -> Option<Answer> {
        for line in [format!("MAIL FROM:<{from}>"), format!("RCPT TO:<{to}>"), "DATA".to_owned()] {
            let answer = self.try_say(&line)?;
            if answer.code >= 400 {
                if answer.code != 421 {
                    self.try_say("RSET")?;
                }
                return Some(answer);
            }
        }
        self.try_send(stuffed(message).as_bytes())?;
        self.try_answer()
    }
}

/// A small message with the headers that every message should have.
pub fn letter(from: &str, to: &str, subject: &str, body: &str) -> String {
    format!(
        "From: <{from}>\r\nTo: <{to}>\r\nSubject: {subject}\r\nDate: {}\r\nMessage-ID: <{}@client.test>\r\n\r\n{body}\r\n",
        date(),
        outgate::mail::MessageId::generate()
    )
}

pub fn date() -> String {
    jiff::fmt::rfc2822::to_string(&jiff::Zoned::now()).unwrap()
}

fn auth_plain(login: &str, password: &str) -> String {
    format!("AUTH PLAIN {}", BASE64_STANDARD.encode(format!("\0{login}\0{password}")))
}

fn stuffed(message: &str) -> String {
    let body = message
        .strip_prefix('.')
        .map_or_else(|| message.to_owned(), |rest| format!("..{rest}"))
        .replace("\r\n.", "\r\n..");
    let end = if body.ends_with("\r\n") { ".\r\n" } else { "\r\n.\r\n" };
    body + end
}

fn tls_config() -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate)).with_no_client_auth())
}

/// The tests know which server they talk to.
#[derive(Debug)]
pub struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
