//! Calling other nodes.
//!
//! A *link* is one connection to one node for one channel; it connects when it is first needed and again whenever it broke.
//! Questions and answers are numbered, so that many are under way at once and a caller may give up on its own.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncWriteExt, BufWriter, ReadHalf};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::network::frame::{self, Frame};
use crate::network::message::{Channel, Hello, PROTOCOL, PROTOCOL_OLDEST, Request, Response, Unwelcome, Welcome};
use crate::network::socket;
use crate::network::tls::Credentials;
use crate::store::codec::{self, DecodeError};
use crate::store::machine::Replica;

/// Questions that wait for a connection or its turn on it.
const WAITING_MAX: usize = 256;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// After a failed attempt, so that a dead node is not knocked at without end.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

#[derive(thiserror::Error, Debug)]
pub(crate) enum CallError {
    /// The question surely was not heard.
    #[error("cannot reach it: {0}")]
    Unreachable(io::Error),
    #[error("refused: {0}")]
    Unwelcome(#[from] Unwelcome),
    /// The question may have been heard.
    #[error("no answer in time")]
    TimedOut,
    #[error("the connection broke before the answer came")]
    Broken,
    #[error(transparent)]
    Unreadable(#[from] DecodeError),
}

/// The way to all other nodes. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Peers {
    shared: Arc<Shared>,
}

struct Shared {
    credentials: Credentials,
    replica: Replica,
    /// Where raft's membership says that a node is, for as long as the state does not know it yet.
    addresses: Mutex<BTreeMap<u64, String>>,
    links: Mutex<BTreeMap<(u64, Channel), mpsc::Sender<Question>>>,
}

struct Question {
    body: Vec<u8>,
    answer: oneshot::Sender<Result<Vec<u8>, CallError>>,
}

type Answers = Arc<Mutex<BTreeMap<u64, oneshot::Sender<Result<Vec<u8>, CallError>>>>>;

pub(crate) type Stream = TlsStream<TcpStream>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peers {
    pub(crate) fn new(credentials: Credentials, replica: Replica) -> Self {
        let (addresses, links) = (Mutex::default(), Mutex::default());
        Self { shared: Arc::new(Shared { credentials, replica, addresses, links }) }
    }

    pub(crate) fn note_address(&self, node: u64, address: &str) {
        lock(&self.shared.addresses).insert(node, address.to_owned());
    }

    /// Asks and waits for the answer, at most `limit`.
    pub(crate) async fn call(
        &self,
        node: u64,
        channel: Channel,
        request: &Request,
        limit: Duration,
    ) -> Result<Response, CallError> {
        let (answer, answered) = oneshot::channel();
        let question = Question { body: codec::encode(request), answer };
        self.link(node, channel).try_send(question).map_err(|_| busy())?;
        let body =
            timeout(limit, answered).await.map_err(|_| CallError::TimedOut)?.map_err(|_| CallError::Broken)??;
        Ok(codec::decode("answer", &body)?)
    }

    /// Asks a node's service, in words that only services know; waits for its turn as well, at most `limit` in all.
    pub(crate) async fn ask_service(&self, node: u64, body: Vec<u8>, limit: Duration) -> Result<Vec<u8>, CallError> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            let sent = self.link(node, Channel::Service).send(Question { body, answer }).await;
            sent.map_err(|_| CallError::Broken)?;
            answered.await.map_err(|_| CallError::Broken)?
        };
        timeout(limit, asked).await.map_err(|_| CallError::TimedOut)?
    }

    /// A connection of its own, greeted, for what is no question.
    pub(crate) async fn connect(&self, node: u64, channel: Channel) -> Result<Stream, CallError> {
        self.shared.connect(node, channel).await
    }

    fn link(&self, node: u64, channel: Channel) -> mpsc::Sender<Question> {
        let mut links = lock(&self.shared.links);
        let link = links.entry((node, channel)).or_insert_with(|| {
            let (questions, waiting) = mpsc::channel(WAITING_MAX);
            tokio::spawn(serve_link(Arc::clone(&self.shared), node, channel, waiting));
            questions
        });
        link.clone()
    }

    /// Ends every connection. Questions from now on find nobody.
    pub(crate) fn close(&self) {
        lock(&self.shared.links).clear();
    }
}

fn busy() -> CallError {
    CallError::Unreachable(io::Error::new(io::ErrorKind::WouldBlock, "too many questions wait for it"))
}

impl Shared {
    fn address(&self, node: u64) -> Option<String> {
        let known = self.replica.read(|state| state.node(node)).map(|node| node.address);
        known.or_else(|| lock(&self.addresses).get(&node).cloned())
    }

    async fn connect(&self, node: u64, channel: Channel) -> Result<Stream, CallError> {
        let unknown = || CallError::Unreachable(io::Error::new(io::ErrorKind::NotFound, "its address is not known"));
        let address = self.address(node).ok_or_else(unknown)?;
        let tcp = socket::connect(&address).await.map_err(CallError::Unreachable)?;
        let name = self.credentials.name_of(node).map_err(CallError::Unreachable)?;
        let connector = TlsConnector::from(Arc::clone(&self.credentials.client));
        let handshake = async {
            let mut stream = connector.connect(name, tcp).await?;
            let hello = Hello {
                protocol: PROTOCOL,
                oldest: PROTOCOL_OLDEST,
                cluster: self.credentials.cluster,
                node: self.credentials.node,
                channel,
            };
            let welcome = greet(&mut stream, &hello).await?;
            Ok::<_, io::Error>((stream, welcome))
        };
        let shaken = timeout(HANDSHAKE_TIMEOUT, handshake).await.map_err(|_| CallError::TimedOut)?;
        match shaken.map_err(CallError::Unreachable)? {
            (stream, Welcome::Come(_)) => Ok(stream),
            (_, Welcome::Refused(why)) => Err(why.into()),
        }
    }
}

/// Says who is calling and for what.
pub(crate) async fn greet(stream: &mut Stream, hello: &Hello) -> io::Result<Welcome> {
    frame::write(stream, 0, &codec::encode(hello)).await?;
    stream.flush().await?;
    let frame = frame::read(stream, frame::GREETING_BYTES_MAX).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    codec::decode("welcome", &frame.body).map_err(io::Error::other)
}

/// The life of a link: until nobody can ask any more.
async fn serve_link(shared: Arc<Shared>, node: u64, channel: Channel, mut questions: mpsc::Receiver<Question>) {
    let mut was_reached = true;
    while let Some(first) = questions.recv().await {
        match shared.connect(node, channel).await {
            Ok(stream) => {
                was_reached = true;
                converse(stream, channel, first, &mut questions).await;
            }
            Err(error) => {
                if std::mem::take(&mut was_reached) {
                    tracing::warn!(node, ?channel, %error, "cannot call a node");
                }
                // Nobody else needs to wait for what just failed.
                let failed = || CallError::Unreachable(io::ErrorKind::NotConnected.into());
                give(first.answer, Err(error));
                while let Ok(question) = questions.try_recv() {
                    give(question.answer, Err(failed()));
                }
                tokio::time::sleep(RECONNECT_PAUSE).await;
            }
        }
    }
}

/// Until the connection breaks or nobody can ask any more. Whoever still waits for an answer then hears that it broke.
async fn converse(stream: Stream, channel: Channel, first: Question, questions: &mut mpsc::Receiver<Question>) {
    let (reading, writing) = tokio::io::split(stream);
    let mut writing = BufWriter::new(writing);
    let answers = Answers::default();
    let mut reader = tokio::spawn(hear(reading, channel, Arc::clone(&answers)));
    let mut next = Some(first);
    let mut number = 0;
    while let Some(Question { body, answer }) = next.take() {
        number += 1;
        lock(&answers).insert(number, answer);
        let mut written = frame::write(&mut writing, number, &body).await;
        next = questions.try_recv().ok();
        if written.is_ok() && next.is_none() {
            written = writing.flush().await;
        }
        if written.is_err() {
            break;
        }
        if next.is_none() {
            next = tokio::select! {
                question = questions.recv() => question,
                _ = &mut reader => None,
            };
        }
    }
    reader.abort();
    lock(&answers).clear();
    if let Some(question) = next {
        give(question.answer, Err(CallError::Unreachable(io::ErrorKind::NotConnected.into())));
    }
}

async fn hear(mut reading: ReadHalf<Stream>, channel: Channel, answers: Answers) {
    while let Ok(Some(Frame { number, body })) = frame::read(&mut reading, channel.bytes_max()).await {
        let answer = lock(&answers).remove(&number);
        if let Some(answer) = answer {
            give(answer, Ok(body));
        }
    }
}

/// A caller that no longer waits has given up.
fn give(answer: oneshot::Sender<Result<Vec<u8>, CallError>>, result: Result<Vec<u8>, CallError>) {
    drop(answer.send(result));
}
