//! Clients: sessions with STARTTLS and AUTH PLAIN that send messages one after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::io::AsyncWriteExt;

use super::login::{Login, Stream, answer, expect};
use super::{Server, Shape};

/// A shape of load against one server.
pub(super) struct Load<'a> {
    pub(super) shape: Shape,
    pub(super) server: &'a Server,
}

/// What the clients saw.
#[derive(Default)]
pub(super) struct Done {
    pub(super) refused: usize,
    pub(super) first_refusal: String,
    /// From MAIL to 250.
    pub(super) latencies: Vec<Duration>,
}

/// What one connection needs, owned so that it can be spawned.
struct Client {
    login: Login,
    message: Arc<Vec<u8>>,
    per_session: usize,
    left: Arc<AtomicUsize>,
}

impl Load<'_> {
    /// Sends `shape.messages` messages over `shape.connections` connections.
    pub(super) async fn run(&self) -> Result<Done> {
        let left = Arc::new(AtomicUsize::new(self.shape.messages));
        let message = Arc::new(message(self.shape.size));
        let clients: Vec<_> = (0..self.shape.connections)
            .map(|number| {
                let client = Client {
                    login: self.server.login(number),
                    message: message.clone(),
                    per_session: self.shape.per_session,
                    left: left.clone(),
                };
                tokio::spawn(client.run())
            })
            .collect();
        let mut all = Done::default();
        for client in clients {
            all.add(client.await??);
        }
        Ok(all)
    }
}

impl Done {
    fn add(&mut self, other: Self) {
        self.refused += other.refused;
        self.latencies.extend(other.latencies);
        if self.first_refusal.is_empty() {
            self.first_refusal = other.first_refusal;
        }
    }
}

impl Client {
    async fn run(self) -> Result<Done> {
        let mut done = Done::default();
        while self.take() {
            let mut stream = self.login.connect().await?;
            self.send(&mut stream, &mut done).await?;
            for _ in 1..self.per_session {
                if !self.take() {
                    break;
                }
                self.send(&mut stream, &mut done).await?;
            }
            expect(&mut stream, "QUIT\r\n", 221).await?;
        }
        Ok(done)
    }

    fn take(&self) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    async fn send(&self, stream: &mut Stream, done: &mut Done) -> Result<()> {
        let started = Instant::now();
        expect(stream, "MAIL FROM:<bench@bench.test>\r\n", 250).await?;
        expect(stream, "RCPT TO:<sink@example.com>\r\n", 250).await?;
        expect(stream, "DATA\r\n", 354).await?;
        stream.get_mut().write_all(&self.message).await?;
        stream.get_mut().flush().await?;
        let (code, text) = answer(stream).await?;
        done.latencies.push(started.elapsed());
        if code != 250 {
            done.refused += 1;
            done.first_refusal = text;
        }
        Ok(())
    }
}

/// A message of about `size` octets with its final dot.
fn message(size: usize) -> Vec<u8> {
    let mut text = String::from(
        "From: <bench@bench.test>\r\nTo: <sink@example.com>\r\nSubject: bench\r\nMIME-Version: 1.0\r\n\r\n",
    );
    while text.len() < size {
        text.push_str("The quick brown fox jumps over the lazy dog, and then it does so once more.\r\n");
    }
    text.push_str(".\r\n");
    text.into_bytes()
}
