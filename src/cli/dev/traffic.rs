//! A trickle of mail: a user of its own writes to bob every few seconds, as any client would, over STARTTLS and AUTH.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use super::folder::Folder;
use super::provision::{BOB, TRAFFIC};

const PAUSE: Duration = Duration::from_secs(5);
/// For a whole message with its connection.
const TIMEOUT: Duration = Duration::from_secs(30);
const LINE_OCTETS_MAX: u64 = 4_096;

/// Writes until it is aborted; a node that is down is tried again later.
pub(super) fn start(folder: &Folder, submission: Vec<SocketAddr>) -> JoinHandle<()> {
    let author = Author { ca: folder.ca(), password: folder.secrets.traffic.clone(), submission };
    tokio::spawn(async move {
        for number in 1_u64.. {
            tokio::time::sleep(PAUSE).await;
            match tokio::time::timeout(TIMEOUT, author.send(number)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!("a message was not sent: {error:#}"),
                Err(_) => tracing::debug!("a message was not sent in time"),
            }
        }
    })
}

struct Author {
    ca: PathBuf,
    password: String,
    submission: Vec<SocketAddr>,
}

impl Author {
    /// Each node in turn, and the others where one is down, as with a round-robin name.
    fn next_node(&self, number: u64) -> Vec<SocketAddr> {
        let mut addresses = self.submission.clone();
        let count = addresses.len().max(1);
        addresses.rotate_left(usize::try_from(number).unwrap_or(0) % count);
        addresses
    }

    async fn send(&self, number: u64) -> anyhow::Result<()> {
        let stream = TcpStream::connect(self.next_node(number).as_slice()).await?;
        let mut clear = BufReader::new(stream);
        expect(&mut clear, 220).await?;
        say(&mut clear, "EHLO localhost", 250).await?;
        say(&mut clear, "STARTTLS", 220).await?;
        let connector = TlsConnector::from(Arc::new(self.tls()?));
        let tls = connector.connect(ServerName::try_from("localhost")?, clear.into_inner()).await?;
        let mut tls = BufReader::new(tls);
        let login = STANDARD.encode(format!("\0{TRAFFIC}\0{}", self.password));
        say(&mut tls, "EHLO localhost", 250).await?;
        say(&mut tls, &format!("AUTH PLAIN {login}"), 235).await.context("login")?;
        say(&mut tls, &format!("MAIL FROM:<{TRAFFIC}>"), 250).await?;
        say(&mut tls, &format!("RCPT TO:<{BOB}>"), 250).await?;
        say(&mut tls, "DATA", 354).await?;
        say(&mut tls, &format!("{}\r\n.", letter(number)), 250).await?;
        say(&mut tls, "QUIT", 221).await
    }

    fn tls(&self) -> anyhow::Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.ca).context("the CA")?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        Ok(builder.with_root_certificates(roots).with_no_client_auth())
    }
}

fn letter(number: u64) -> String {
    let date = jiff::fmt::rfc2822::to_string(&jiff::Zoned::now()).unwrap_or_default();
    format!(
        "From: Traffic <{TRAFFIC}>\r\nTo: Bob <{BOB}>\r\nSubject: note {number}\r\nDate: {date}\r\n\
         Message-ID: <{number}.{date_id}@demo.test>\r\n\r\nDear Bob,\r\n\r\nthis is note {number}.\r\n\r\nTraffic",
        date_id = crate::mail::MessageId::generate(),
    )
}

async fn say(stream: &mut BufReader<impl AsyncRead + AsyncWrite + Unpin>, line: &str, code: u16) -> anyhow::Result<()> {
    stream.get_mut().write_all(format!("{line}\r\n").as_bytes()).await?;
    stream.get_mut().flush().await?;
    expect(stream, code).await
}

/// Reads one reply, which may have several lines.
async fn expect(stream: &mut BufReader<impl AsyncRead + Unpin>, code: u16) -> anyhow::Result<()> {
    loop {
        let mut line = String::new();
        stream.take(LINE_OCTETS_MAX).read_line(&mut line).await?;
        let (Some(given), Some(separator)) = (line.get(..3), line.get(3..4)) else { bail!("no reply but `{line}`") };
        ensure!(given.parse() == Ok(code), "{}", line.trim_end());
        if separator != "-" {
            return Ok(());
        }
    }
}
