//! Listener actors: accept, count, refuse.
//!
//! A node that must not take mail refuses TCP, so that clients take the next address at once: `shutdown` of the
//! listening socket does that and `listen` undoes it, on the same port and without privileges.

mod socket;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use ractor::{Actor, ActorProcessingErr, ActorRef, ActorRuntime};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::config::{ListenerConfig, ListenerMode};
use crate::connection::{self, Accepted, Patience, Shared, Stage};
use crate::smtp::Reply;
use crate::submission::Line;
use crate::tls::ServerTls;

use socket::Socket;

/// Out of file descriptors or memory: time for connections to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// For connections to finish a judgement and to say good-bye once their time is over. Covers both proposals of an
/// admission: its outcome must reach the client.
pub(crate) const FAREWELL_TIMEOUT: Duration = Duration::from_secs(12);

/// The running listeners of a node.
pub struct Listeners {
    sockets: Vec<Arc<Socket>>,
    shared: Arc<Shared>,
    drain_timeout: Duration,
}

impl Listeners {
    /// Binds every address; on an error nothing is left bound.
    pub async fn start(listeners: &[ListenerConfig], line: Arc<Line>, tls: ServerTls) -> io::Result<Self> {
        Self::start_with(listeners, line, tls, Patience::default()).await
    }

    async fn start_with(
        listeners: &[ListenerConfig],
        line: Arc<Line>,
        tls: ServerTls,
        patience: Patience,
    ) -> io::Result<Self> {
        let drain_timeout = Duration::from_secs(line.config.smtp.drain_timeout_s);
        let sockets = listeners.iter().map(|listener| Socket::bind(listener.address).map(Arc::new));
        let sockets = sockets.collect::<io::Result<Vec<_>>>()?;
        let shared = Arc::new(Shared::new(line, tls, patience));
        for (config, socket) in listeners.iter().zip(&sockets) {
            let state =
                State { config: Arc::new(config.clone()), socket: Arc::clone(socket), shared: Arc::clone(&shared) };
            ActorRuntime::spawn(None, Listener, state).await.map_err(io::Error::other)?;
        }
        Ok(Self { sockets, shared, drain_timeout })
    }

    /// In the order of the configuration, with the port that was bound.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.sockets.iter().map(|socket| socket.address()).collect()
    }

    /// Refuses TCP from now on, keeps open sessions (their next MAIL gets 421). `open` undoes it.
    pub fn close(&self) {
        self.refuse(Stage::Closed);
    }

    pub fn open(&self) {
        for socket in &self.sockets {
            if let Err(error) = socket.listen() {
                tracing::error!(address = %socket.address(), %error, "cannot listen");
            }
        }
        self.shared.set_stage(Stage::Open);
    }

    /// Closes, lets transactions finish for `drain_timeout_s`, then ends what is left.
    pub async fn shutdown(&self) {
        self.refuse(Stage::Draining);
        let none_left = || self.shared.counts().none_left();
        if timeout(self.drain_timeout, none_left()).await.is_ok() {
            return;
        }
        self.shared.set_stage(Stage::Over);
        if timeout(FAREWELL_TIMEOUT, none_left()).await.is_err() {
            tracing::warn!("some connections did not end in time");
        }
    }

    /// The stage comes first: whoever is accepted in between hears of it.
    fn refuse(&self, stage: Stage) {
        self.shared.set_stage(stage);
        for socket in &self.sockets {
            if let Err(error) = socket.refuse() {
                tracing::error!(address = %socket.address(), %error, "cannot stop listening");
            }
        }
    }
}

struct Listener;

/// The one message of a listener's life: it accepts within it.
#[derive(Debug)]
enum Message {
    Serve,
}

struct State {
    config: Arc<ListenerConfig>,
    socket: Arc<Socket>,
    shared: Arc<Shared>,
}

impl Actor for Listener {
    type Msg = Message;
    type State = State;
    type Arguments = State;

    async fn pre_start(&self, myself: ActorRef<Message>, state: State) -> Result<State, ActorProcessingErr> {
        myself.cast(Message::Serve)?;
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        Message::Serve: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        state.serve().await;
        myself.stop(None);
        Ok(())
    }
}

impl State {
    /// Until the node drains. A socket that was closed and opened again is registered anew, as the runtime never
    /// forgets that it was closed.
    async fn serve(&self) {
        let mut stage = self.shared.stage();
        loop {
            let now = *stage.borrow_and_update();
            match now {
                Stage::Draining | Stage::Over => return,
                Stage::Closed => {
                    if stage.changed().await.is_err() {
                        return;
                    }
                }
                Stage::Open => match self.socket.acceptor() {
                    Ok(acceptor) => tokio::select! {
                        biased;
                        _ = stage.changed() => {}
                        () = self.accept(&acceptor) => {}
                    },
                    Err(error) => {
                        tracing::error!(address = %self.socket.address(), %error, "cannot accept");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }

    async fn accept(&self, acceptor: &TcpListener) {
        loop {
            match acceptor.accept().await {
                Ok((stream, peer)) => self.admit(stream, peer),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(address = %self.socket.address(), %error, "cannot accept for now");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(&self, stream: TcpStream, peer: SocketAddr) {
        if !stream.local_addr().is_ok_and(|local| serves(&self.config, local.ip())) {
            return reset(&stream, peer);
        }
        let Some(seat) = self.shared.counts().enter_total() else {
            return self.turn_away(&stream, peer);
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "cannot set TCP_NODELAY");
        }
        let (listener, shared) = (Arc::clone(&self.config), Arc::clone(&self.shared));
        connection::spawn(Accepted { stream, peer, seat, listener, shared });
    }

    /// One try without waiting: there is room for a line in the buffer of a new socket.
    fn turn_away(&self, stream: &TcpStream, peer: SocketAddr) {
        if self.config.mode == ListenerMode::Submission
            && let Err(error) = connection::try_say(stream, &Reply::not_now())
        {
            tracing::debug!(%peer, %error, "cannot turn away");
        }
    }
}

/// Whether connections to this address of the machine are served.
fn serves(config: &ListenerConfig, local: IpAddr) -> bool {
    let local = local.to_canonical();
    let among = |networks: &[IpNet]| networks.iter().any(|network| network.contains(&local));
    (config.only.is_empty() || among(&config.only)) && !among(&config.exclude)
}

/// Ends a connection as if nobody listened there; one socket for all addresses cannot refuse some of them.
fn reset(stream: &TcpStream, peer: SocketAddr) {
    if let Err(error) = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%peer, %error, "cannot reset");
    }
}
