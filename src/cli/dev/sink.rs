//! A next hop that keeps what it gets: just enough SMTP (RFC 5321) to be delivered to, bounded on every side.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Newest messages that are kept.
const MESSAGES_MAX: usize = 1_000;
/// Octets of all of them.
const KEPT_OCTETS_MAX: usize = 256 << 20;
const MESSAGE_OCTETS_MAX: usize = 64 << 20;
const LINE_OCTETS_MAX: u64 = 1 << 20;
const RECIPIENTS_MAX: usize = 1_000;
const CONNECTIONS_MAX: usize = 200;
const LINE_TIMEOUT: Duration = Duration::from_secs(300);

/// One captured message.
#[derive(Debug)]
pub(super) struct Captured {
    /// Without angle brackets; empty for the null reverse-path.
    pub(super) sender: String,
    pub(super) recipients: Vec<String>,
    /// As it was before dot-stuffing.
    pub(super) data: Vec<u8>,
}

/// The running sink. Cheap to clone.
#[derive(Clone)]
pub(super) struct Sink {
    address: SocketAddr,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    messages: VecDeque<Arc<Captured>>,
    octets: usize,
}

impl Kept {
    fn keep(&mut self, message: Captured) {
        self.octets += message.data.len();
        self.messages.push_back(Arc::new(message));
        while self.messages.len() > MESSAGES_MAX || self.octets > KEPT_OCTETS_MAX {
            let Some(oldest) = self.messages.pop_front() else { break };
            self.octets -= oldest.data.len();
        }
    }
}

impl Sink {
    pub(super) async fn start(address: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let sink = Self { address: listener.local_addr()?, kept: Arc::default() };
        tokio::spawn(accept(listener, sink.clone()));
        Ok(sink)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Oldest first.
    pub(super) fn captured(&self) -> Vec<Arc<Captured>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).messages.iter().cloned().collect()
    }

    fn keep(&self, message: Captured) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).keep(message);
    }
}

async fn accept(listener: TcpListener, sink: Sink) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let sink = sink.clone();
        tokio::spawn(async move {
            if let Err(error) = converse(stream, &sink).await {
                tracing::debug!(%error, "a delivery to the sink broke off");
            }
            drop(place);
        });
    }
}

/// The envelope so far.
#[derive(Default)]
struct Transaction {
    sender: Option<String>,
    recipients: Vec<String>,
}

async fn converse(stream: TcpStream, sink: &Sink) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let mut transaction = Transaction::default();
    write.write_all(b"220 sink ESMTP\r\n").await?;
    while let Some(line) = line(&mut read).await? {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        let verb = text.split(' ').next().unwrap_or_default().to_ascii_uppercase();
        if verb == "DATA" && transaction.sender.is_some() && !transaction.recipients.is_empty() {
            write.write_all(b"354 go on\r\n").await?;
            let Some(data) = data(&mut read).await? else { return Ok(()) };
            let Transaction { sender, recipients } = std::mem::take(&mut transaction);
            sink.keep(Captured { sender: sender.unwrap_or_default(), recipients, data });
            write.write_all(b"250 2.0.0 kept\r\n").await?;
            continue;
        }
        write.write_all(answer(&verb, &text, &mut transaction)).await?;
        if verb == "QUIT" {
            break;
        }
    }
    Ok(())
}

fn answer(verb: &str, text: &str, transaction: &mut Transaction) -> &'static [u8] {
    match (verb, path(text)) {
        ("EHLO", _) => b"250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 ENHANCEDSTATUSCODES\r\n",
        ("HELO", _) => b"250 sink\r\n",
        ("MAIL", Some(sender)) => {
            *transaction = Transaction { sender: Some(sender), recipients: Vec::new() };
            b"250 2.1.0 ok\r\n"
        }
        ("RCPT", Some(recipient)) if transaction.sender.is_some() && transaction.recipients.len() < RECIPIENTS_MAX => {
            transaction.recipients.push(recipient);
            b"250 2.1.5 ok\r\n"
        }
        ("RCPT", Some(_)) if transaction.sender.is_some() => b"452 4.5.3 too many recipients\r\n",
        ("RSET", _) => {
            *transaction = Transaction::default();
            b"250 2.0.0 ok\r\n"
        }
        ("NOOP", _) => b"250 2.0.0 ok\r\n",
        ("QUIT", _) => b"221 2.0.0 bye\r\n",
        ("MAIL" | "RCPT" | "DATA", _) => b"503 5.5.1 not now\r\n",
        _ => b"500 5.5.1 not here\r\n",
    }
}

/// What stands in angle brackets.
fn path(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('<')?;
    Some(rest.split_once('>')?.0.to_owned())
}

/// A line with its end; `None` when the peer has gone.
async fn line(read: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let mut bounded = read.take(LINE_OCTETS_MAX);
    tokio::time::timeout(LINE_TIMEOUT, bounded.read_until(b'\n', &mut line)).await??;
    if line.is_empty() {
        return Ok(None);
    }
    if line.ends_with(b"\n") { Ok(Some(line)) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

async fn data(read: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Option<Vec<u8>>> {
    let mut data = Vec::new();
    while let Some(line) = line(read).await? {
        match line.strip_prefix(b".") {
            Some(b"\r\n") => return Ok(Some(data)),
            Some(rest) => data.extend_from_slice(rest),
            None => data.extend_from_slice(&line),
        }
        if data.len() > MESSAGE_OCTETS_MAX {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[tokio::test]
    async fn what_is_delivered_is_kept_as_it_was() {
        let sink = Sink::start(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let mut client = TcpStream::connect(sink.address()).await.unwrap();
        client
            .write_all(
                b"EHLO x\r\nDATA\r\nMAIL FROM:<a@b.test> SIZE=5\r\nRCPT TO:<c@d.test>\r\nRCPT TO:<e@f.test>\r\nDATA\r\nA: b\r\n\r\n..dot\r\n.\r\nMAIL FROM:<>\r\nRCPT TO:<c@d.test>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n",
            )
            .await
            .unwrap();
        let mut answers = String::new();
        client.read_to_string(&mut answers).await.unwrap();
        assert!(answers.contains("503 5.5.1") && answers.ends_with("221 2.0.0 bye\r\n"), "{answers}");
        let captured = sink.captured();
        assert_eq!((captured.len(), captured[0].sender.as_str()), (2, "a@b.test"));
        assert_eq!(captured[0].recipients, ["c@d.test", "e@f.test"]);
        assert_eq!(captured[0].data, b"A: b\r\n\r\n.dot\r\n");
        assert_eq!(captured[1].sender, "");
    }

    #[test]
    fn only_the_newest_are_kept() {
        let mut kept = Kept::default();
        for n in 0..MESSAGES_MAX + 5 {
            kept.keep(Captured { sender: n.to_string(), recipients: Vec::new(), data: vec![0; 3] });
        }
        assert_eq!((kept.messages.len(), kept.octets), (MESSAGES_MAX, 3 * MESSAGES_MAX));
        assert_eq!(kept.messages[0].sender, "5");
        kept.keep(Captured { sender: String::new(), recipients: Vec::new(), data: vec![0; KEPT_OCTETS_MAX] });
        assert_eq!((kept.messages.len(), kept.octets), (1, KEPT_OCTETS_MAX));
    }
}
