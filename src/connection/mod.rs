//! A client's connection: one actor, one socket, one `Session`.
//!
//! The actor's whole life is one dialogue: read, let the session say what that means, find the answers it asks for
//! (User, sender, recipient, message), write. Replies are gathered and written when the session needs more octets, so
//! a pipelined batch costs one write.
//!
//! Invariants:
//! * Only this module writes to a client.
//! * Every wait on the client has a time limit, every buffer a size limit, and the contents of all messages together
//!   stay within one budget of memory.
//! * An idle connection keeps no large buffer.
//! * A message whose judgement has begun is never cut off: shutdown waits for it.
//!
//! Never here: the replicated state, the queue's inside, judgement of content.

mod answer;
mod budget;
mod counts;
mod dialogue;
mod proxy;
mod stream;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use ractor::{Actor, ActorProcessingErr, ActorRef, ActorRuntime};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::config::{ListenerConfig, ListenerMode};
use crate::smtp::{Reply, Rules, Session};
use crate::submission::Line;
use crate::tls::ServerTls;

use budget::Budget;
use dialogue::Dialogue;
use stream::Stream;

pub use counts::{Counts, Seat};

/// A PROXY header is sent at once; a client's handshake may need some round trips.
const PROXY_TIMEOUT: Duration = Duration::from_secs(10);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// How far the node is from its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    Open,
    /// No new connections; the next MAIL of an open session is refused.
    Closed,
    /// Idle sessions are ended, transactions may finish.
    Draining,
    /// Whatever waits for its client is ended.
    Over,
}

/// What all connections of a node share.
pub struct Shared {
    line: Arc<Line>,
    tls: ServerTls,
    rules: Arc<Rules>,
    counts: Counts,
    budget: Budget,
    stage: watch::Sender<Stage>,
}

impl Shared {
    pub fn new(line: Arc<Line>, tls: ServerTls) -> Self {
        let smtp = &line.config.smtp;
        let rules = Rules {
            hostname: line.hostname.clone(),
            recipients_max: smtp.recipients_max,
            errors_max: smtp.errors_max,
            verbs_max: smtp.verbs_max,
            messages_max: smtp.messages_per_session_max,
        };
        let counts = Counts::new(smtp.connections_max, smtp.connections_per_address_max);
        let budget = Budget::new(smtp.message_memory_max_bytes);
        Self { tls, rules: Arc::new(rules), counts, budget, stage: watch::Sender::new(Stage::Open), line }
    }

    pub fn stage(&self) -> watch::Receiver<Stage> {
        self.stage.subscribe()
    }

    /// Nothing leads back from [`Stage::Over`], and from [`Stage::Draining`] only there.
    pub fn set_stage(&self, next: Stage) {
        self.stage.send_if_modified(|stage| {
            let allowed = match *stage {
                Stage::Open | Stage::Closed => true,
                Stage::Draining => next == Stage::Over,
                Stage::Over => false,
            };
            let changes = allowed && *stage != next;
            if changes {
                *stage = next;
            }
            changes
        });
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    fn is_trusted(&self, client: IpAddr) -> bool {
        contains(&self.line.config.smtp.trusted_networks, client)
    }
}

/// A connection that the listener accepted.
pub struct Accepted {
    pub stream: TcpStream,
    pub peer: SocketAddr,
    pub seat: Seat,
    pub listener: Arc<ListenerConfig>,
    pub shared: Arc<Shared>,
}

/// Starts the actor of an accepted connection.
pub fn spawn(accepted: Accepted) {
    if let Err(error) = ActorRuntime::spawn_instant(None, Connection, accepted) {
        tracing::error!(%error, "cannot start a connection");
    }
}

/// Says one word to a connection that gets no actor, if its socket takes it at once.
pub fn try_say(stream: &TcpStream, reply: &Reply) -> std::io::Result<()> {
    // Not by the runtime: it does not know yet that a socket this new can be written.
    socket2::SockRef::from(stream).send(reply.wire().as_bytes()).map(drop)
}

struct Connection;

/// The one message of a connection's life: the socket's loop runs within it, so nothing else can pile up.
#[derive(Debug)]
enum Message {
    Serve,
}

impl Actor for Connection {
    type Msg = Message;
    type State = Option<Accepted>;
    type Arguments = Accepted;

    async fn pre_start(
        &self,
        myself: ActorRef<Message>,
        accepted: Accepted,
    ) -> Result<Option<Accepted>, ActorProcessingErr> {
        myself.cast(Message::Serve)?;
        Ok(Some(accepted))
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        Message::Serve: Message,
        state: &mut Option<Accepted>,
    ) -> Result<(), ActorProcessingErr> {
        if let Some(accepted) = state.take() {
            serve(accepted).await;
        }
        myself.stop(None);
        Ok(())
    }
}

/// Both ends of the client's connection, as the client or the load balancer's header names them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ends {
    client: IpAddr,
    local: SocketAddr,
}

async fn serve(accepted: Accepted) {
    let Accepted { stream, peer, seat, listener, shared } = accepted;
    let metrics = Arc::clone(&shared.line.metrics);
    metrics.connections_open.inc();
    match Box::pin(open(stream, peer, &listener, &shared)).await {
        Some((dialogue, _address_seat)) => Box::pin(dialogue.run()).await,
        None => {
            metrics.connections.get_or_create(&"refused".into()).inc();
        }
    }
    metrics.connections_open.dec();
    drop(seat);
}

/// All that precedes the first verb; `None` where the connection came to nothing.
async fn open(
    mut stream: TcpStream,
    peer: SocketAddr,
    listener: &ListenerConfig,
    shared: &Arc<Shared>,
) -> Option<(Dialogue, Option<Seat>)> {
    let mut ends = Ends { client: peer.ip().to_canonical(), local: stream.local_addr().ok()? };
    if contains(&listener.proxy_networks, ends.client) {
        match tokio::time::timeout(PROXY_TIMEOUT, proxy::read(&mut stream)).await.ok()? {
            Ok(Some(given)) => ends = Ends { client: given.client.to_canonical(), local: given.local },
            Ok(None) => {}
            Err(error) => {
                tracing::info!(%peer, %error, "connection without a valid PROXY header");
                return None;
            }
        }
    }
    let mut stream = Stream::Plain(stream);
    let seat = if shared.is_trusted(ends.client) { Some(None) } else { shared.counts.enter(ends.client).map(Some) };
    let implicit = listener.mode == ListenerMode::Submissions;
    if seat.is_some() && implicit {
        let handshake = stream.start_tls(shared.tls.config.load_full());
        tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await.ok()?.ok()?;
    }
    let Some(seat) = seat else {
        if !implicit {
            stream.farewell(&Reply::too_many_from_address()).await;
        }
        return None;
    };
    if shared.line.directory.is_blocked(ends.client) {
        stream.farewell(&Reply::address_blocked()).await;
        return None;
    }
    let clear_text = contains(&listener.clear_text_networks, ends.client);
    let size_max = shared.line.directory.default_message_size_max();
    let session = Session::new(Arc::clone(&shared.rules), implicit, clear_text, size_max);
    Some((Dialogue::new(Arc::clone(shared), stream, session, ends), seat))
}

fn contains(networks: &[IpNet], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&address))
}
