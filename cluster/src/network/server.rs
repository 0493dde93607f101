//! Being called by other nodes.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use openraft::raft::AppendEntriesResponse;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncWriteExt, BufWriter, ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::clock::Clock;
use crate::leadership::Leadership;
use crate::lease::Watch;
use crate::network::frame::{self, Frame};
use crate::network::message::{Channel, Hello, PROTOCOL, PROTOCOL_OLDEST, Pong, Request, Response, Unwelcome, Welcome};
use crate::network::service::Services;
use crate::network::tls::Credentials;
use crate::network::{join, snapshot, socket};
use crate::proposer::Proposer;
use crate::raft::Raft;
use crate::sequencer::{Parcel, ParcelError, Sequencer};
use crate::store::codec;
use crate::store::machine::Replica;
use crate::store::state_hash::StateHashes;

const CONNECTIONS_MAX: usize = 512;
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// Questions of one connection that are worked on at once.
const QUESTIONS_MAX: usize = 64;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Stream = TlsStream<TcpStream>;

/// What the answers come from.
pub(crate) struct Host {
    pub(crate) credentials: Credentials,
    pub(crate) epoch: u64,
    pub(crate) raft: Raft,
    pub(crate) replica: Replica,
    pub(crate) leadership: Leadership,
    pub(crate) sequencer: Sequencer,
    pub(crate) proposer: Proposer,
    pub(crate) watch: Watch,
    pub(crate) services: Services,
    pub(crate) state_hashes: StateHashes,
    /// One snapshot comes in at a time: they all are put together in the same place.
    pub(crate) receiving: Mutex<()>,
    pub(crate) receiver: snapshot::Receiver,
}

enum Question {
    OfCluster(Request),
    OfService(Vec<u8>),
}

impl Question {
    fn read(channel: Channel, body: Vec<u8>) -> io::Result<Self> {
        if channel == Channel::Service {
            return Ok(Self::OfService(body));
        }
        codec::decode("question", &body).map(Self::OfCluster).map_err(io::Error::other)
    }
}

/// The newest that this node and one that speaks `oldest` to `newest` both know.
fn common_protocol(newest: u16, oldest: u16) -> Option<u16> {
    let protocol = newest.min(PROTOCOL);
    (protocol >= oldest.max(PROTOCOL_OLDEST)).then_some(protocol)
}

/// Binds; `serve` begins to answer.
pub(crate) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"));
    TcpListener::bind(address).await.map_err(named)
}

/// Until its task is ended, and every connection with it.
pub(crate) async fn serve(listener: TcpListener, host: Arc<Host>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((tcp, peer)) => {
                let host = Arc::clone(&host);
                connections.spawn(async move {
                    if let Err(error) = host.converse(tcp).await {
                        tracing::debug!(%peer, %error, "a connection of a node ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept nodes for now");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Host {
    async fn converse(self: Arc<Self>, tcp: TcpStream) -> io::Result<()> {
        socket::tune(&tcp)?;
        let (mut stream, hello, welcome) = timeout(GREETING_TIMEOUT, self.greet(tcp)).await??;
        if let Welcome::Refused(why) = welcome {
            tracing::warn!(node = hello.node, channel = ?hello.channel, %why, "a node was turned away");
            return stream.shutdown().await;
        }
        match hello.channel {
            Channel::Snapshot => {
                let _one = self.receiving.lock().await;
                snapshot::receive(&self.receiver, &mut stream).await
            }
            Channel::Join => join::answer(&self, &mut stream).await,
            Channel::Raft | Channel::Forward | Channel::Control | Channel::Service => {
                self.answer_all(stream, &hello).await
            }
        }
    }

    async fn greet(&self, tcp: TcpStream) -> io::Result<(Stream, Hello, Welcome)> {
        let mut stream = TlsAcceptor::from(Arc::clone(&self.credentials.server)).accept(tcp).await?;
        let frame = frame::read(&mut stream, frame::GREETING_BYTES_MAX).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let hello: Hello = codec::decode("greeting", &frame.body).map_err(io::Error::other)?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let welcome = match self.judge(&hello, shown) {
            Ok(protocol) => Welcome::Come(protocol),
            Err(why) => Welcome::Refused(why),
        };
        frame::write(&mut stream, 0, &codec::encode(&welcome)).await?;
        stream.flush().await?;
        Ok((stream, hello, welcome))
    }

    fn judge(&self, hello: &Hello, shown: Option<&CertificateDer<'_>>) -> Result<u16, Unwelcome> {
        let protocol = common_protocol(hello.protocol, hello.oldest).ok_or(Unwelcome::Protocol(PROTOCOL_OLDEST))?;
        if hello.channel == Channel::Join {
            return Ok(protocol);
        }
        if hello.cluster != self.credentials.cluster {
            return Err(Unwelcome::OtherCluster);
        }
        if !shown.is_some_and(|certificate| self.credentials.is_of(certificate, hello.node)) {
            return Err(Unwelcome::Certificate);
        }
        if self.is_nobody(hello) { Err(Unwelcome::NotMember) } else { Ok(protocol) }
    }

    /// A node that this one has not heard of yet is not one that was removed: its certificate says that it was let in. One
    /// that was removed is still heard by raft until the membership is without it: without its voice that could not change
    /// where there are two, or where it is the leader itself.
    fn is_nobody(&self, hello: &Hello) -> bool {
        let of_raft = matches!(hello.channel, Channel::Raft | Channel::Snapshot);
        self.replica.read(|state| state.was_removed(hello.node)) && !(of_raft && self.is_in_membership(hello.node))
    }

    fn is_in_membership(&self, node: u64) -> bool {
        self.raft.metrics().borrow().membership_config.membership().get_node(&node).is_some()
    }

    /// Answers as they are ready, until the other end goes or is removed.
    async fn answer_all(self: Arc<Self>, stream: Stream, hello: &Hello) -> io::Result<()> {
        let (mut reading, writing) = tokio::io::split(stream);
        let (answers, ready) = mpsc::channel(QUESTIONS_MAX);
        let writer = tokio::spawn(write_answers(writing, ready));
        let result = self.read_questions(&mut reading, hello, &answers).await;
        drop(answers);
        writer.abort();
        result
    }

    async fn read_questions(
        self: &Arc<Self>,
        reading: &mut ReadHalf<Stream>,
        hello: &Hello,
        answers: &mpsc::Sender<Frame>,
    ) -> io::Result<()> {
        let turns = Arc::new(Semaphore::new(QUESTIONS_MAX));
        while let Some(Frame { number, body }) = frame::read(reading, hello.channel.bytes_max()).await? {
            if self.is_nobody(hello) {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, Unwelcome::NotMember));
            }
            let question = Question::read(hello.channel, body)?;
            let turn = Arc::clone(&turns).acquire_owned().await.map_err(io::Error::other)?;
            let (host, answers, node) = (Arc::clone(self), answers.clone(), hello.node);
            tokio::spawn(async move {
                let body = match question {
                    Question::OfCluster(request) => codec::encode(&host.answer(node, request).await),
                    Question::OfService(body) => host.services.answer(node, body).await,
                };
                // Nobody reads the answer of a connection that has ended.
                drop(answers.send(Frame { number, body }).await);
                drop(turn);
            });
        }
        Ok(())
    }

    async fn answer(&self, asker: u64, request: Request) -> Response {
        match request {
            Request::Append(rpc) => match self.raft.append_entries(rpc).await {
                Ok(response) => {
                    if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
                        self.leadership.note_word();
                    }
                    Response::Append(response)
                }
                Err(error) => Response::Refused(error.to_string()),
            },
            Request::Vote(rpc) => match self.raft.vote(rpc).await {
                Ok(response) => Response::Vote(response),
                Err(error) => Response::Refused(error.to_string()),
            },
            Request::Forward { commands, encoded } => self.decide(commands, encoded.0).await,
            Request::ReadIndex => self.read_index().await,
            Request::Lease if self.watch.note(asker) => self.read_index().await,
            Request::Lease => Response::NotLeader,
            Request::Ping => Response::Pong(self.pong()),
            Request::Join(_) => Response::Refused("not on this connection".to_owned()),
        }
    }

    async fn read_index(&self) -> Response {
        match self.raft.get_read_log_id().await {
            Ok((read, _)) => Response::ReadIndex(read),
            Err(_) => Response::NotLeader,
        }
    }

    async fn decide(&self, commands: u32, encoded: Vec<u8>) -> Response {
        if !self.leadership.leads() {
            return Response::NotLeader;
        }
        let parcel = match Parcel::decode(commands, encoded) {
            Ok(parcel) => parcel,
            Err(error) => return Response::Refused(error.to_string()),
        };
        match self.sequencer.decide(parcel).await {
            Ok(decided) => Response::Forwarded(decided),
            Err(ParcelError::NotLeader) => Response::NotLeader,
            Err(ParcelError::Unknown | ParcelError::Stopped(_)) => Response::Unknown,
        }
    }

    fn pong(&self) -> Pong {
        Pong {
            wall_ms: Clock::wall_ms(),
            epoch: self.epoch,
            applied: self.replica.applied().map_or(0, |id| id.index),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state_hashes: self.state_hashes.all(),
        }
    }
}

async fn write_answers(writing: WriteHalf<Stream>, mut ready: mpsc::Receiver<Frame>) {
    let mut writing = BufWriter::new(writing);
    while let Some(Frame { number, body }) = ready.recv().await {
        let mut written = frame::write(&mut writing, number, &body).await;
        if written.is_ok() && ready.is_empty() {
            written = writing.flush().await;
        }
        if let Err(error) = written {
            return tracing::debug!(%error, "cannot answer a node");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_versions_work_together_and_distant_ones_do_not() {
        assert_eq!(common_protocol(PROTOCOL, PROTOCOL_OLDEST), Some(PROTOCOL));
        assert_eq!(common_protocol(PROTOCOL + 1, PROTOCOL), Some(PROTOCOL), "the next version speaks this one");
        assert_eq!(common_protocol(PROTOCOL + 2, PROTOCOL + 1), None, "that one has forgotten it");
        assert_eq!(common_protocol(PROTOCOL_OLDEST - 1, 0), None);
    }
}
