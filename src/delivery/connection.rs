//! A connection to a next hop: bytes and replies, each with its time limit.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::client::TlsStream;

use super::Answer;
use super::seats::Seat;
use crate::smtp::client::{Extensions, ReplyError, ServerReply};

const READ_BYTES: usize = 4096;
const QUIT_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection that has greeted.
pub(super) struct Connection {
    pub(super) stream: Stream,
    pub(super) host: String,
    pub(super) address: SocketAddr,
    pub(super) tls: Option<Arc<str>>,
    pub(super) extensions: Extensions,
    /// Transactions that were begun on it.
    pub(super) messages: usize,
    /// The last transaction was left open.
    pub(super) needs_reset: bool,
    pub(super) reply_timeout: Duration,
    pub(super) final_reply_timeout: Duration,
    /// When the whole attempt must be over, however often the hop answers in time.
    pub(super) deadline: Instant,
    pub(super) seat: Arc<Seat>,
    pub(super) buffer: Vec<u8>,
}

#[derive(thiserror::Error, Debug)]
pub(super) enum Broken {
    #[error("connection lost: {0}")]
    Io(#[from] io::Error),
    #[error("connection closed by the server")]
    Closed,
    #[error("no reply in time")]
    Timeout,
    #[error(transparent)]
    Reply(#[from] ReplyError),
}

impl Connection {
    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        let time_limit = self.time_limit();
        let write = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        timeout_at(time_limit, write).await.map_err(|_| Broken::Timeout)?.map_err(Broken::Io)
    }

    pub(super) async fn reply(&mut self) -> Result<ServerReply, Broken> {
        self.reply_until(self.time_limit()).await
    }

    /// Behind the final dot, when the hop may have taken the message: waits longer, and beyond the deadline.
    pub(super) async fn final_reply(&mut self) -> Result<ServerReply, Broken> {
        self.reply_until(Instant::now() + self.final_reply_timeout).await
    }

    async fn reply_until(&mut self, time_limit: Instant) -> Result<ServerReply, Broken> {
        if let Some(reply) = ServerReply::take(&mut self.buffer)? {
            return Ok(reply);
        }
        let (stream, buffer) = (&mut self.stream, &mut self.buffer);
        let read = async {
            loop {
                buffer.reserve(READ_BYTES);
                if stream.read_buf(buffer).await? == 0 {
                    return Err(Broken::Closed);
                }
                if let Some(reply) = ServerReply::take(buffer)? {
                    return Ok(reply);
                }
            }
        };
        timeout_at(time_limit, read).await.map_err(|_| Broken::Timeout)?
    }

    /// When the next step must be done.
    pub(super) fn time_limit(&self) -> Instant {
        self.deadline.min(Instant::now() + self.reply_timeout)
    }

    pub(super) async fn ask(&mut self, line: &str) -> Result<ServerReply, Broken> {
        self.write(line.as_bytes()).await?;
        self.reply().await
    }

    /// Nothing came that nobody asked for.
    pub(super) fn is_in_step(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Says goodbye, for at most a second.
    pub(super) async fn quit(mut self) {
        let said = tokio::time::timeout(QUIT_TIMEOUT, self.ask("QUIT\r\n")).await;
        if !matches!(said, Ok(Ok(_))) {
            tracing::trace!(host = self.host, "the hop did not answer QUIT");
        }
    }

    /// What the hop said.
    pub(super) fn answer(&self, reply: &ServerReply) -> Answer {
        let class = reply.code / 100;
        let status = reply.enhanced().map_or_else(|| format!("{class}.0.0"), str::to_owned);
        Answer { reply: reply.text(), status, remote: true, ..self.failed("", "") }
    }

    /// What happened instead of an answer.
    pub(super) fn failed(&self, status: &str, what: &str) -> Answer {
        let mut answer = Answer::local(&self.host, status, what);
        answer.address = Some(self.address.ip());
        answer.tls.clone_from(&self.tls);
        answer
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
