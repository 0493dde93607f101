//! The actor of one User: lets its sessions in, and knows which passwords were verified lately.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outgate_cluster::UserId;
use ractor::rpc::CallResult;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::time::Instant;

use super::WAIT_MAX;
use super::sessions::{Place, Sessions};

/// How long a verified password is remembered, and how many of one User are.
const PROOF_LIFE: Duration = Duration::from_secs(600);
const PROOFS_MAX: usize = 16;
/// How often a User's actor looks whether it is still needed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// How a session claims to be the User.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Claim {
    /// Its address suffices.
    Network,
    /// By a password whose keyed hash this is, if that was verified before.
    Known(blake3::Hash),
    /// By a password that was verified just now.
    Verified(blake3::Hash),
}

#[derive(Debug)]
pub(super) enum Entered {
    In(Place),
    /// The claim is not known: the password must be verified.
    Unproven,
    Full,
}

#[derive(Debug)]
pub(super) enum Message {
    Enter {
        claim: Claim,
        /// 0 = any number.
        sessions_max: u64,
        reply: RpcReplyPort<Entered>,
    },
    Sweep,
}

/// The actors of the Users that are active on this node. Cheap to clone.
#[derive(Clone)]
pub(super) struct Users {
    active: Arc<Mutex<HashMap<UserId, ActorRef<Message>>>>,
    sessions: Sessions,
    proof_life: Duration,
    sweep_interval: Duration,
    /// For an answer.
    patience: Duration,
}

impl Users {
    pub(super) fn new(sessions: Sessions) -> Self {
        Self::with_times(sessions, PROOF_LIFE, SWEEP_INTERVAL)
    }

    fn with_times(sessions: Sessions, proof_life: Duration, sweep_interval: Duration) -> Self {
        Self { active: Arc::default(), sessions, proof_life, sweep_interval, patience: WAIT_MAX }
    }

    /// Asks the User's actor, which is started if need be; `None` if it cannot answer.
    pub(super) async fn enter(&self, user: UserId, claim: Claim, sessions_max: u64) -> Option<Entered> {
        // An actor may stop as idle just when it is asked: the second try finds a new one.
        for _ in 0..2 {
            let actor = self.active(user)?;
            let ask = |reply| Message::Enter { claim, sessions_max, reply };
            match actor.call(ask, Some(self.patience)).await {
                Ok(CallResult::Success(entered)) => return Some(entered),
                // It lives: a new one in its place would not know what it knows.
                Ok(CallResult::Timeout) => return None,
                Ok(CallResult::SenderError) | Err(_) => self.forget(user, &actor),
            }
        }
        None
    }

    fn active(&self, user: UserId) -> Option<ActorRef<Message>> {
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(actor) = active.get(&user) {
            return Some(actor.clone());
        }
        let (actor, _) = ractor::ActorRuntime::spawn_instant(None, User { id: user, users: self.clone() }, ()).ok()?;
        active.insert(user, actor.clone());
        Some(actor)
    }

    fn forget(&self, user: UserId, actor: &ActorRef<Message>) {
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        if active.get(&user).is_some_and(|known| known.get_id() == actor.get_id()) {
            active.remove(&user);
        }
    }
}

struct User {
    id: UserId,
    users: Users,
}

struct State {
    proof_life: Duration,
    /// Oldest first, with the time at which each is forgotten.
    proofs: VecDeque<(blake3::Hash, Instant)>,
}

impl State {
    fn knows(&mut self, proof: blake3::Hash) -> bool {
        self.expire();
        self.proofs.iter().any(|&(known, _)| known == proof)
    }

    fn learn(&mut self, proof: blake3::Hash) {
        if self.knows(proof) {
            return;
        }
        if self.proofs.len() == PROOFS_MAX {
            self.proofs.pop_front();
        }
        self.proofs.push_back((proof, Instant::now() + self.proof_life));
    }

    fn expire(&mut self) {
        let now = Instant::now();
        while self.proofs.front().is_some_and(|&(_, until)| until <= now) {
            self.proofs.pop_front();
        }
    }

    /// False = the claim has to be verified first.
    fn believes(&mut self, claim: Claim) -> bool {
        match claim {
            Claim::Known(proof) => self.knows(proof),
            Claim::Verified(proof) => {
                self.learn(proof);
                true
            }
            Claim::Network => true,
        }
    }
}

impl User {
    fn enter(&self, claim: Claim, sessions_max: u64, state: &mut State) -> Entered {
        if !state.believes(claim) {
            return Entered::Unproven;
        }
        self.users.sessions.enter(self.id, sessions_max).map_or(Entered::Full, Entered::In)
    }
}

impl Actor for User {
    type Msg = Message;
    type State = State;
    type Arguments = ();

    async fn pre_start(&self, myself: ActorRef<Message>, (): ()) -> Result<State, ActorProcessingErr> {
        myself.send_after(self.users.sweep_interval, || Message::Sweep);
        Ok(State { proof_life: self.users.proof_life, proofs: VecDeque::new() })
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Enter { claim, sessions_max, reply } => {
                // Where nobody waits for it any more, the place is dropped and so freed.
                if reply.send(self.enter(claim, sessions_max, state)).is_err() {
                    tracing::debug!("a login ended before its answer");
                }
            }
            Message::Sweep => {
                state.expire();
                if !self.users.sessions.has_any(self.id) && state.proofs.is_empty() {
                    self.users.forget(self.id, &myself);
                    myself.stop(None);
                } else {
                    myself.send_after(self.users.sweep_interval, || Message::Sweep);
                }
            }
        }
        Ok(())
    }

    async fn post_stop(&self, myself: ActorRef<Message>, _: &mut State) -> Result<(), ActorProcessingErr> {
        self.users.forget(self.id, &myself);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const USER: UserId = UserId(7);

    fn proof(text: &str) -> blake3::Hash {
        blake3::hash(text.as_bytes())
    }

    async fn place(users: &Users, claim: Claim, sessions_max: u64) -> Option<Place> {
        match users.enter(USER, claim, sessions_max).await.unwrap() {
            Entered::In(place) => Some(place),
            Entered::Unproven | Entered::Full => None,
        }
    }

    #[tokio::test]
    async fn sessions_are_counted_and_places_come_back() {
        let users = Users::new(Sessions::default());
        let held = place(&users, Claim::Network, 1).await.unwrap();
        assert!(matches!(users.enter(USER, Claim::Network, 1).await, Some(Entered::Full)));
        drop(held);
        assert!(place(&users, Claim::Network, 1).await.is_some());
    }

    #[tokio::test]
    async fn a_verified_password_is_known_for_a_while() {
        let life = Duration::from_secs(2);
        let users = Users::with_times(Sessions::default(), life, SWEEP_INTERVAL);
        let before = Instant::now();
        assert!(matches!(users.enter(USER, Claim::Known(proof("a")), 0).await, Some(Entered::Unproven)));
        let held = place(&users, Claim::Verified(proof("a")), 0).await.unwrap();
        assert!(place(&users, Claim::Known(proof("a")), 0).await.is_some());
        assert!(place(&users, Claim::Known(proof("b")), 0).await.is_none());
        while place(&users, Claim::Known(proof("a")), 0).await.is_some() {
            assert!(before.elapsed() < life * 5, "never forgotten");
            tokio::time::sleep(life / 20).await;
        }
        assert!(before.elapsed() >= life, "forgotten early");
        drop(held);
    }

    #[tokio::test]
    async fn the_oldest_of_many_passwords_is_forgotten() {
        let users = Users::new(Sessions::default());
        for number in 0..=PROOFS_MAX {
            place(&users, Claim::Verified(proof(&number.to_string())), 0).await.unwrap();
        }
        assert!(place(&users, Claim::Known(proof("0")), 0).await.is_none());
        assert!(place(&users, Claim::Known(proof("1")), 0).await.is_some());
    }

    /// Takes messages and never comes to an end.
    struct Stuck;

    impl Actor for Stuck {
        type Msg = Message;
        type State = ();
        type Arguments = ();

        async fn pre_start(&self, _: ActorRef<Message>, (): ()) -> Result<(), ActorProcessingErr> {
            Ok(())
        }

        async fn handle(&self, _: ActorRef<Message>, _held: Message, (): &mut ()) -> Result<(), ActorProcessingErr> {
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn an_actor_without_an_answer_is_not_waited_for_without_end() {
        let users = Users { patience: Duration::from_millis(20), ..Users::new(Sessions::default()) };
        let (stuck, _) = ractor::ActorRuntime::spawn_instant(None, Stuck, ()).unwrap();
        users.active.lock().unwrap().insert(USER, stuck);
        let entered = tokio::time::timeout(Duration::from_secs(10), users.enter(USER, Claim::Network, 0)).await;
        assert!(entered.unwrap().is_none());
    }

    #[tokio::test]
    async fn an_idle_actor_stops_and_a_busy_one_stays() {
        let sweep = Duration::from_millis(10);
        let users = Users::with_times(Sessions::default(), PROOF_LIFE, sweep);
        let held = place(&users, Claim::Network, 0).await.unwrap();
        tokio::time::sleep(sweep * 5).await;
        assert_eq!(users.active.lock().unwrap().len(), 1);
        drop(held);
        let before = Instant::now();
        while !users.active.lock().unwrap().is_empty() {
            assert!(before.elapsed() < Duration::from_secs(10), "never stops");
            tokio::time::sleep(sweep).await;
        }
        assert!(place(&users, Claim::Network, 1).await.is_some(), "a new actor takes over");
    }
}
