//! From a connected socket to a session that may send: greeting, STARTTLS, AUTH PLAIN.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::bench::tls;

pub(crate) type Stream = BufReader<tokio_rustls::client::TlsStream<TcpStream>>;

/// Where and as whom to log in; owned so that a task can take it along.
#[derive(Clone)]
pub(crate) struct Login {
    pub(crate) address: SocketAddr,
    auth: String,
    tls: TlsConnector,
}

impl Login {
    pub(super) fn new(address: SocketAddr, login: &str, password: &str) -> Self {
        let auth = format!("AUTH PLAIN {}\r\n", BASE64_STANDARD.encode(format!("\0{login}\0{password}")));
        Self { address, auth, tls: tls::connector() }
    }

    pub(super) async fn connect(&self) -> Result<Stream> {
        self.over(TcpStream::connect(self.address).await?).await
    }

    pub(crate) async fn over(&self, socket: TcpStream) -> Result<Stream> {
        socket.set_nodelay(true)?;
        let mut clear = BufReader::with_capacity(1024, socket);
        expect(&mut clear, "", 220).await?;
        expect(&mut clear, "EHLO bench.test\r\n", 250).await?;
        expect(&mut clear, "STARTTLS\r\n", 220).await?;
        let secured = self.tls.connect(tls::server_name(), clear.into_inner()).await?;
        let mut stream = BufReader::with_capacity(1024, secured);
        expect(&mut stream, "EHLO bench.test\r\n", 250).await?;
        expect(&mut stream, &self.auth, 235).await?;
        Ok(stream)
    }
}

/// Says a line (nothing where it is empty) and wants this code.
pub(super) async fn expect<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut BufReader<S>,
    line: &str,
    code: u16,
) -> Result<()> {
    if !line.is_empty() {
        stream.get_mut().write_all(line.as_bytes()).await?;
        stream.get_mut().flush().await?;
    }
    let (got, text) = answer(stream).await?;
    if got != code {
        bail!("expected {code} to `{}`, got: {text}", line.trim_end());
    }
    Ok(())
}

/// The code and last line of the next reply.
pub(super) async fn answer<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> Result<(u16, String)> {
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            bail!("the server closed the connection");
        }
        if line.as_bytes().get(3) != Some(&b'-') {
            let code = line.get(..3).and_then(|code| code.parse().ok()).context("a reply without a code")?;
            return Ok((code, line.trim_end().to_owned()));
        }
    }
}
