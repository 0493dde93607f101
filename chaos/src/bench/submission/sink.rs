//! A next hop that takes everything, counts it, and keeps nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

pub(super) struct Sink {
    pub(super) address: SocketAddr,
    taken: Arc<AtomicUsize>,
    server: tokio::task::JoinHandle<()>,
}

impl Sink {
    pub(super) async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, taken) = (listener.local_addr()?, Arc::new(AtomicUsize::new(0)));
        let counter = taken.clone();
        let server = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, counter.clone()));
            }
        });
        Ok(Self { address, taken, server })
    }

    /// Returns once `count` messages have come.
    pub(super) async fn wait(&self, count: usize, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while self.taken.load(Ordering::Relaxed) < count {
            if Instant::now() > deadline {
                bail!("only {} of {count} messages were delivered", self.taken.load(Ordering::Relaxed));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(socket: TcpStream, taken: Arc<AtomicUsize>) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let mut stream = BufReader::with_capacity(64 << 10, socket);
    stream.get_mut().write_all(b"220 sink ESMTP\r\n").await?;
    let (mut line, mut replies) = (Vec::new(), Vec::new());
    loop {
        line.clear();
        if stream.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let verb = line.get(..4).unwrap_or_default().to_ascii_uppercase();
        match verb.as_slice() {
            b"EHLO" => replies.extend_from_slice(b"250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE\r\n"),
            b"DATA" => {
                replies.extend_from_slice(b"354 go on\r\n");
                stream.get_mut().write_all(&std::mem::take(&mut replies)).await?;
                swallow(&mut stream, &mut line).await?;
                taken.fetch_add(1, Ordering::Relaxed);
                replies.extend_from_slice(b"250 2.0.0 taken\r\n");
            }
            _ => replies.extend_from_slice(b"250 2.0.0 ok\r\n"),
        }
        if stream.buffer().is_empty() {
            stream.get_mut().write_all(&std::mem::take(&mut replies)).await?;
        }
        if verb == b"QUIT" {
            return Ok(());
        }
    }
}

async fn swallow(stream: &mut BufReader<TcpStream>, line: &mut Vec<u8>) -> std::io::Result<()> {
    loop {
        line.clear();
        if stream.read_until(b'\n', line).await? == 0 || line == b".\r\n" {
            return Ok(());
        }
    }
}
