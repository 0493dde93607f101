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
mod pace;
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
use crate::metrics::Metrics;
use crate::smtp::{Reply, Rules, Session};
use crate::submission::Line;
use crate::tls::ServerTls;

use budget::Budget;
use dialogue::Dialogue;
use stream::Stream;

use counts::AddressSeat;
pub use counts::{Counts, Seat};

/// How long a connection waits; verbs and silence within a message are in the configuration.
#[derive(Clone, Debug)]
pub struct Patience {
    /// For a PROXY header, which is sent at once.
    pub proxy: Duration,
    /// For a client's handshake, which may need some round trips.
    pub handshake: Duration,
    /// For a login, from the first verb.
    pub login: Duration,
    /// For a message's whole content.
    pub content: Duration,
    /// Over which `data_rate_min_bytes_per_s` is judged.
    pub pace_window: Duration,
    /// For memory.
    pub room: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            proxy: Duration::from_secs(10),
            handshake: Duration::from_secs(30),
            login: Duration::from_secs(300),
            content: Duration::from_secs(3600),
            pace_window: Duration::from_secs(60),
            room: Duration::from_secs(5),
        }
    }
}

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
    patience: Patience,
    stage: watch::Sender<Stage>,
}

impl Shared {
    pub fn new(line: Arc<Line>, tls: ServerTls, patience: Patience) -> Self {
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
        Self { tls, rules: Arc::new(rules), counts, budget, patience, stage: watch::Sender::new(Stage::Open), line }
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
    let _open = OpenConnection::count(&metrics);
    match Box::pin(open(stream, peer, &listener, &shared)).await {
        Ok((opened, _address_seat)) => Box::pin(Dialogue::new(shared, opened, seat).run()).await,
        Err(refusal) => {
            metrics.connections.get_or_create(&refusal.name().into()).inc();
        }
    }
}

/// Counted among the open connections, however it ends.
struct OpenConnection<'a>(&'a Metrics);

impl<'a> OpenConnection<'a> {
    fn count(metrics: &'a Metrics) -> Self {
        metrics.connections_open.inc();
        Self(metrics)
    }
}

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.connections_open.dec();
    }
}

/// Why a connection got no dialogue.
#[derive(Clone, Copy)]
enum Refusal {
    /// Too many, gone, or no valid beginning.
    Refused,
    /// Its address is on the authentication block list.
    Blocked,
}

impl Refusal {
    const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Blocked => "blocked",
        }
    }
}

/// A connection behind all that precedes its first verb.
struct Opened {
    stream: Stream,
    session: Session,
    ends: Ends,
}

async fn open(
    mut stream: TcpStream,
    peer: SocketAddr,
    listener: &ListenerConfig,
    shared: &Arc<Shared>,
) -> Result<(Opened, Option<AddressSeat>), Refusal> {
    let refused = |_: std::io::Error| Refusal::Refused;
    let mut ends = Ends { client: peer.ip().to_canonical(), local: stream.local_addr().map_err(refused)? };
    if contains(&listener.proxy_networks, ends.client)
        && let Some(given) = proxied(&mut stream, peer, shared).await?
    {
        ends = Ends { client: given.client.to_canonical(), local: given.local };
    }
    let mut stream = Stream::Plain(stream);
    let seat = if shared.is_trusted(ends.client) { Some(None) } else { shared.counts.enter(ends.client).map(Some) };
    let implicit = listener.mode == ListenerMode::Submissions;
    if seat.is_some() && implicit {
        let handshake = stream.start_tls(shared.tls.config_at(ends.local.ip().to_canonical()));
        let done = tokio::time::timeout(shared.patience.handshake, handshake).await;
        done.map_err(|_| Refusal::Refused)?.map_err(refused)?;
    }
    let Some(seat) = seat else {
        if !implicit {
            stream.farewell(&Reply::too_many_from_address()).await;
        }
        return Err(Refusal::Refused);
    };
    if shared.line.directory.is_blocked(ends.client) {
        stream.farewell(&Reply::address_blocked()).await;
        return Err(Refusal::Blocked);
    }
    let clear_text = contains(&listener.clear_text_networks, ends.client);
    let size_max = shared.line.directory.default_message_size_max();
    let session = Session::new(Arc::clone(&shared.rules), implicit, clear_text, size_max);
    Ok((Opened { stream, session, ends }, seat))
}

/// What a load balancer says of its client.
async fn proxied(stream: &mut TcpStream, peer: SocketAddr, shared: &Shared) -> Result<Option<Ends>, Refusal> {
    let header = tokio::time::timeout(shared.patience.proxy, proxy::read(stream)).await;
    header.map_err(|_| Refusal::Refused)?.map_err(|error| {
        tracing::info!(%peer, %error, "connection without a valid PROXY header");
        Refusal::Refused
    })
}

fn contains(networks: &[IpNet], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_panics_is_not_counted_as_open() {
        let metrics = Metrics::default();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _open = OpenConnection::count(&metrics);
            assert_eq!(metrics.connections_open.get(), 2);
        }));
        assert!(panicked.is_err());
        assert_eq!(metrics.connections_open.get(), 0);
    }
}
