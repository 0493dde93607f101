//! The octets of a connection, with and without TLS.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rustls::{ProtocolVersion, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::smtp::Reply;
use crate::submission::Tls;

/// A client that does not take a reply for so long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// What a client still sends after our last word is taken for a moment, as closing at once could take back that word.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_OCTETS_MAX: usize = 256 * 1024;
/// Plain text that rustls may hold back; a reply is smaller.
const TLS_BUFFER_MAX: usize = 16 * 1024;

pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// A handshake failed.
    Gone,
}

impl Stream {
    /// Adds what is there to `input`, up to its room; 0 = the client is gone. Loses nothing if dropped.
    pub(super) async fn read(&mut self, input: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read_buf(input).await,
            Self::Tls(stream) => stream.read_buf(input).await,
            Self::Gone => Ok(0),
        }
    }

    pub(super) async fn write(&mut self, output: &[u8]) -> io::Result<()> {
        let write = async {
            match self {
                Self::Plain(stream) => stream.write_all(output).await,
                Self::Tls(stream) => {
                    stream.write_all(output).await?;
                    stream.flush().await
                }
                Self::Gone => Err(io::ErrorKind::NotConnected.into()),
            }
        };
        tokio::time::timeout(WRITE_TIMEOUT, write).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    pub(super) async fn start_tls(&mut self, config: Arc<ServerConfig>) -> io::Result<()> {
        let Self::Plain(stream) = std::mem::replace(self, Self::Gone) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let limit = |connection: &mut rustls::ServerConnection| connection.set_buffer_limit(Some(TLS_BUFFER_MAX));
        let stream = Box::pin(TlsAcceptor::from(config).accept_with(stream, limit)).await?;
        *self = Self::Tls(Box::new(stream));
        Ok(())
    }

    /// Version and cipher as Received names them (RFC 8314 section 4.3 gives an example).
    pub(super) fn tls(&self) -> Option<Tls> {
        let Self::Tls(stream) = self else { return None };
        let (_, connection) = stream.get_ref();
        let version = connection.protocol_version()?;
        // No other versions are offered.
        let version = if version == ProtocolVersion::TLSv1_2 { "TLSv1.2" } else { "TLSv1.3" }.to_owned();
        // rustls writes TLS13_AES_… where the registry has TLS_AES_….
        let cipher = format!("{:?}", connection.negotiated_cipher_suite()?.suite()).replace("TLS13_", "TLS_");
        Some(Tls { version, cipher })
    }

    /// Says a last word and closes.
    pub(super) async fn farewell(&mut self, reply: &Reply) {
        if self.write(reply.wire().as_bytes()).await.is_ok() {
            self.close().await;
        }
    }

    /// Closes so that what was written arrives.
    pub(super) async fn close(&mut self) {
        let linger = async {
            match self {
                Self::Plain(stream) => stream.shutdown().await?,
                Self::Tls(stream) => stream.shutdown().await?,
                Self::Gone => {}
            }
            let mut rest = BytesMut::with_capacity(4096);
            let mut octets = 0;
            while octets < LINGER_OCTETS_MAX {
                rest.clear();
                match self.read(&mut rest).await? {
                    0 => break,
                    more => octets += more,
                }
            }
            io::Result::Ok(())
        };
        match tokio::time::timeout(LINGER, linger).await {
            Ok(Ok(())) | Err(_) => {}
            Ok(Err(error)) => tracing::trace!(%error, "closing"),
        }
    }
}
