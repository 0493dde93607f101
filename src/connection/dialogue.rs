//! The loop of one connection: read, step, answer, write.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::smtp::{Reply, Session, Step};
use crate::submission::Client;
use crate::user::{Authenticated, LoginError};

use super::budget::{Exhausted, Held};
use super::pace::Pace;
use super::stream::Stream;
use super::{Ends, Opened, Seat, Shared, Stage};

/// Room for the verbs of an idle client, and for the content of a message.
const VERB_ROOM: usize = 512;
const CONTENT_ROOM: usize = 16 * 1024;
/// A larger buffer is given back once it is empty.
const KEPT_ROOM_MAX: usize = 1024;
/// Replies are gathered up to this size.
const OUTPUT_MAX: usize = 16 * 1024;

/// A connection behind its handshakes.
pub(super) struct Dialogue {
    pub(super) shared: Arc<Shared>,
    pub(super) session: Session,
    pub(super) ends: Ends,
    /// Known once the User is.
    pub(super) client: Option<Box<Client>>,
    pub(super) held: Held,
    pub(super) stage: watch::Receiver<Stage>,
    stream: Stream,
    input: BytesMut,
    output: String,
    /// Until when a client may stay without a login.
    stranger_until: Instant,
    /// Until when the line that we wait for must be there, however many pieces it comes in.
    line_until: Option<Instant>,
    seat: Seat,
    /// Of the content that is coming in.
    pub(super) pace: Option<Pace>,
}

/// Why a dialogue ends.
enum End {
    /// After a last word to the client.
    Word(Reply),
    /// The last word is among the output.
    Said,
    /// The client is gone.
    Gone,
}

impl Dialogue {
    pub(super) fn new(shared: Arc<Shared>, Opened { stream, session, ends }: Opened, seat: Seat) -> Self {
        let stranger_until = Instant::now() + shared.patience.login;
        Self {
            held: shared.budget.hold_nothing(),
            stage: shared.stage(),
            shared,
            session,
            ends,
            client: None,
            stream,
            input: BytesMut::new(),
            output: String::new(),
            stranger_until,
            line_until: None,
            seat,
            pace: None,
        }
    }

    pub(super) async fn run(mut self) {
        let Err(end) = self.converse().await;
        self.held.release();
        self.session.end();
        if let End::Word(reply) = &end {
            reply.write(&mut self.output);
        }
        match end {
            End::Word(_) | End::Said => {
                if self.flush().await.is_ok() {
                    self.stream.close().await;
                }
            }
            End::Gone => {}
        }
    }

    async fn converse(&mut self) -> Result<std::convert::Infallible, End> {
        self.greet().await?;
        loop {
            let step = self.session.receive(&mut self.input);
            if !matches!(step, Step::NeedMore) {
                self.line_until = None;
            }
            match step {
                Step::NeedMore => {
                    self.flush().await?;
                    self.read().await?;
                }
                Step::Reply(reply) => self.say(&reply).await?,
                Step::Close(reply) => return Err(End::Word(reply)),
                Step::StartTls => self.start_tls().await?,
                Step::Ask(question) => {
                    let reply = Box::pin(self.find_answer(question)).await;
                    if let Some(reply) = self.session.answer(reply) {
                        self.say(&reply).await?;
                    }
                }
            }
        }
    }

    async fn greet(&mut self) -> Result<(), End> {
        match self.shared.line.directory.network(self.ends.client).await {
            Ok(Some(user)) => {
                self.session.network_user();
                self.become_client(user);
            }
            Ok(None) => {}
            Err(error) => {
                self.shared.line.metrics.connections.get_or_create(&"refused".into()).inc();
                return Err(End::Word(match error {
                    LoginError::TooManySessions => Reply::too_many_from_user(),
                    LoginError::Failed | LoginError::Blocked | LoginError::Unavailable => Reply::not_now(),
                }));
            }
        }
        self.shared.line.metrics.connections.get_or_create(&"accepted".into()).inc();
        self.session.greeting().write(&mut self.output);
        Ok(())
    }

    /// From now on the session is this User's.
    pub(super) fn become_client(&mut self, user: Authenticated) {
        self.seat.becomes_known();
        self.session.set_size_max(user.view.settings.max_message_size);
        let Ends { client: address, local } = self.ends;
        let tls = self.stream.tls();
        self.client = Some(Box::new(Client { address, local, helo: String::new(), tls, user }));
    }

    async fn say(&mut self, reply: &Reply) -> Result<(), End> {
        reply.write(&mut self.output);
        if reply.closes() {
            return Err(End::Said);
        }
        if self.output.len() >= OUTPUT_MAX { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), End> {
        if self.output.is_empty() {
            return Ok(());
        }
        let written = self.stream.write(self.output.as_bytes()).await;
        self.output.clear();
        if self.output.capacity() > KEPT_ROOM_MAX {
            self.output = String::new();
        }
        written.map_err(|_| End::Gone)
    }

    async fn start_tls(&mut self) -> Result<(), End> {
        Reply::ready_for_tls().write(&mut self.output);
        self.flush().await?;
        let handshake = self.stream.start_tls(self.shared.tls.config_at(self.ends.local.ip().to_canonical()));
        match timeout(self.shared.patience.handshake, handshake).await {
            Ok(Ok(())) => {
                self.session.tls_started();
                if let Some(client) = &mut self.client {
                    client.tls = self.stream.tls();
                }
                Ok(())
            }
            Ok(Err(error)) => {
                tracing::debug!(client = %self.ends.client, %error, "TLS handshake failed");
                Err(End::Gone)
            }
            Err(_) => Err(End::Gone),
        }
    }

    /// Waits for more octets, as long as the session's state allows.
    async fn read(&mut self) -> Result<(), End> {
        let deadline = self.prepare_read().await?;
        loop {
            // Where octets are always there, the sleep below never has its turn.
            if Instant::now() >= deadline {
                return Err(End::Word(Reply::timeout()));
            }
            let stage = *self.stage.borrow_and_update();
            if stage == Stage::Over || (stage == Stage::Draining && self.session.is_idle()) {
                return Err(End::Word(Reply::not_now()));
            }
            tokio::select! {
                biased;
                read = self.stream.read(&mut self.input) => return match read {
                    Ok(0) | Err(_) => Err(End::Gone),
                    Ok(octets) => {
                        if let Some(pace) = &mut self.pace {
                            pace.take(octets);
                        }
                        Ok(())
                    }
                },
                changed = self.stage.changed() => if changed.is_err() {
                    return Err(End::Word(Reply::not_now()));
                },
                () = tokio::time::sleep_until(deadline) => return Err(End::Word(Reply::timeout())),
            }
        }
    }

    /// Makes room, and tells until when to wait.
    async fn prepare_read(&mut self) -> Result<Instant, End> {
        self.follow_content().await?;
        let smtp = &self.shared.line.config.smtp;
        let now = Instant::now();
        let (room, mut until) = if self.session.is_receiving() {
            (CONTENT_ROOM, now + Duration::from_secs(smtp.data_timeout_s))
        } else {
            let patience = Duration::from_secs(smtp.verb_timeout_s);
            (VERB_ROOM, *self.line_until.get_or_insert(now + patience))
        };
        if room == VERB_ROOM && self.input.is_empty() && self.input.capacity() > KEPT_ROOM_MAX {
            self.input = BytesMut::new();
        }
        self.input.reserve(room);
        if self.client.is_none() {
            until = until.min(self.stranger_until);
        }
        Ok(self.pace.as_ref().map_or(until, |pace| until.min(pace.until())))
    }

    /// Judges the pace of a content and pays for its memory, from its first octet to its last, also between two chunks.
    async fn follow_content(&mut self) -> Result<(), End> {
        let held = self.session.content_held();
        if held == 0 {
            self.held.release();
        }
        if held == 0 && !self.session.is_receiving() {
            self.pace = None;
            return Ok(());
        }
        let (now, patience) = (Instant::now(), &self.shared.patience);
        let pace = self.pace.get_or_insert_with(|| Pace::new(now, now + patience.content));
        let rate_min = self.shared.line.config.smtp.data_rate_min_bytes_per_s;
        if pace.is_too_slow(now, patience.pace_window, rate_min) {
            return Err(End::Word(Reply::too_slow()));
        }
        if self.held.grow_to(held as u64, patience.room).await == Err(Exhausted) {
            self.session.abandon_content();
            self.held.release();
        }
        Ok(())
    }
}
