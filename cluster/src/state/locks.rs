//! Commands that lock and unlock, and the way to the lock of a User or identity.

use super::conduct::{Abuse, Conduct};
use super::due::{Due, identity_idle};
use super::lock::{Lock, Step};
use super::meter::{Counter, Counts};
use super::settings::Settings;
use super::user::{Identity, IdentityRecord, Who};
use super::{IdentityId, Key, State};
use crate::command::{Actor, LockCause, LockChange, LockState, Outcome, Refusal, Scope, Subject};
use crate::name::{Timestamp, UserId};

/// Beyond it all further names of a User share one identity.
const IDENTITIES_PER_USER_MAX: usize = 50_000;
/// Longer names share it as well; no address is longer.
const IDENTITY_LENGTH_MAX: usize = 320;
const OVERFLOW_IDENTITY: &str = "*";
const MINUTE: u64 = 60_000;

impl State {
    pub(super) fn lock_by_hand(&mut self, subject: &Subject, actor: Actor, reason: String) -> Result<Outcome, Refusal> {
        let user = self.user_id(&subject.login)?;
        let who = match &subject.identity {
            Some(name) => self.identity_seen(user, name),
            None => Who::User(user),
        };
        let unlocks_used = self.lock_of(who).map_or(0, |lock| lock.unlocks_used);
        let cause = LockCause::Manual { actor, reason };
        let at = self.clock.seen;
        Ok(Outcome::Lock(self.step(who, at, LockState::LockedManually, unlocks_used, cause, Vec::new())))
    }

    pub(super) fn unlock_by_hand(&mut self, subject: &Subject, actor: Actor) -> Result<Outcome, Refusal> {
        self.set_by_hand(subject, actor, |_| LockState::Unlocked)
    }

    pub(super) fn reset_by_hand(&mut self, subject: &Subject, actor: Actor) -> Result<Outcome, Refusal> {
        self.set_by_hand(subject, actor, |lock| lock.state)
    }

    fn set_by_hand(&mut self, subject: &Subject, actor: Actor, to: fn(&Lock) -> LockState) -> Result<Outcome, Refusal> {
        let who = self.known_subject(subject)?;
        let Some(lock) = self.lock_of(who) else { return Ok(Outcome::Lock(None)) };
        let to = to(lock);
        if to == lock.state && lock.unlocks_used == 0 {
            return Ok(Outcome::Lock(None));
        }
        let cause = LockCause::Manual { actor, reason: String::new() };
        let at = self.clock.seen;
        Ok(Outcome::Lock(self.step(who, at, to, 0, cause, Vec::new())))
    }

    /// Counts recipients that were refused as invalid; locks where they are too many.
    pub(super) fn invalid_recipients(&mut self, user: UserId, identity: Option<&str>, count: u32) -> Outcome {
        let Some((_, settings)) = self.user_settings(user) else { return Outcome::Lock(None) };
        let identity = identity.map(|name| self.identity_seen(user, name));
        let who = identity.filter(|_| settings.lock_identities).unwrap_or(Who::User(user));
        let mut costs = Counts::default();
        costs[Counter::Invalid.index()] = count.into();
        let at = self.clock.seen;
        let Some(conduct) = self.conduct_mut(who) else { return Outcome::Lock(None) };
        conduct.meter.charge(at, &costs);
        let count = conduct.meter.counts(at)[Counter::Invalid.index()];
        self.touch_conduct(who);
        let limit = settings.invalid_recipient_limit;
        if limit == 0 || count < limit || self.is_locked(who) {
            return Outcome::Lock(None);
        }
        let cause = LockCause::InvalidRecipients { count: u32::try_from(count).unwrap_or(u32::MAX) };
        Outcome::Lock(self.lock_for(who, &settings, Abuse { cause, messages: Vec::new() }))
    }

    /// Locks for abuse, where that is on; the same abuse does not lock again later.
    pub(super) fn lock_for(&mut self, who: Who, settings: &Settings, abuse: Abuse) -> Option<LockChange> {
        if !settings.automatic_lock {
            return None;
        }
        let at = self.clock.seen;
        let to = LockState::Locked { until: at.plus_millis(settings.lock_timeout_minutes * MINUTE) };
        let unlocks_used = self.lock_of(who).map_or(0, |lock| lock.unlocks_used);
        if let Some(conduct) = self.conduct_mut(who) {
            conduct.forgive();
            self.touch_conduct(who);
        }
        self.step(who, at, to, unlocks_used, abuse.cause, abuse.messages)
    }

    /// The one way in which a lock changes: history, timer and record follow.
    pub(super) fn step(
        &mut self,
        who: Who,
        at: Timestamp,
        to: LockState,
        unlocks_used: u32,
        cause: LockCause,
        messages: Vec<String>,
    ) -> Option<LockChange> {
        let (slot, scope, due, key) = match who {
            Who::User(id) => (&mut self.users.get_mut(&id)?.lock, Scope::User, Due::UserLock(id), Key::UserLock(id)),
            Who::Identity(_, id) => {
                let slot = &mut self.identities.get_mut(&id)?.lock;
                (slot, Scope::Identity, Due::IdentityLock(id), Key::IdentityLock(id))
            }
        };
        let change = slot.get_or_insert_default().step(Step { at, scope, to, unlocks_used, cause, messages });
        if let LockState::Locked { until } = change.from {
            self.due.remove(&(until, due));
        }
        if let LockState::Locked { until } = to {
            self.due.insert((until, due));
        }
        self.touch(key);
        Some(change)
    }

    pub(super) fn is_locked(&self, who: Who) -> bool {
        self.lock_state(Who::User(who.user())) != LockState::Unlocked || self.lock_state(who) != LockState::Unlocked
    }

    pub(super) fn lock_state(&self, who: Who) -> LockState {
        self.lock_of(who).map_or(LockState::Unlocked, |lock| lock.state)
    }

    pub(super) fn lock_of(&self, who: Who) -> Option<&Lock> {
        match who {
            Who::User(id) => self.users.get(&id)?.lock.as_deref(),
            Who::Identity(_, id) => self.identities.get(&id)?.lock.as_deref(),
        }
    }

    pub(super) fn conduct_mut(&mut self, who: Who) -> Option<&mut Conduct> {
        match who {
            Who::User(id) => self.users.get_mut(&id).map(|user| &mut user.conduct),
            Who::Identity(_, id) => self.identities.get_mut(&id).map(|identity| &mut identity.record.conduct),
        }
    }

    pub(super) fn touch_conduct(&mut self, who: Who) {
        self.touch(match who {
            Who::User(id) => Key::Conduct(id),
            Who::Identity(_, id) => Key::Identity(id),
        });
    }

    pub(super) fn user_id(&self, login: &crate::Login) -> Result<UserId, Refusal> {
        self.logins.get(login).copied().ok_or_else(|| Refusal::UnknownUser(login.clone()))
    }

    fn known_subject(&self, subject: &Subject) -> Result<Who, Refusal> {
        let user = self.user_id(&subject.login)?;
        let Some(name) = &subject.identity else { return Ok(Who::User(user)) };
        self.find_identity(user, name).ok_or_else(|| Refusal::UnknownIdentity(subject.login.clone(), name.clone()))
    }

    /// Under its own name, or under the shared one once there are too many.
    pub(super) fn find_identity(&self, user: UserId, name: &str) -> Option<Who> {
        let known = &self.users.get(&user)?.identities;
        let name = if name.len() > IDENTITY_LENGTH_MAX { OVERFLOW_IDENTITY } else { name };
        let shared = || known.get(OVERFLOW_IDENTITY).filter(|_| known.len() >= IDENTITIES_PER_USER_MAX);
        known.get(name).or_else(shared).map(|id| Who::Identity(user, *id))
    }

    /// Finds the identity or begins to keep it, and notes that it was seen.
    pub(super) fn identity_seen(&mut self, user: UserId, name: &str) -> Who {
        let at = self.clock.seen;
        let id = match self.find_identity(user, name) {
            Some(Who::Identity(_, id)) => id,
            Some(Who::User(_)) | None => self.identity_new(user, name),
        };
        if let Some(identity) = self.identities.get_mut(&id)
            && identity.record.last_seen < at
        {
            identity.record.last_seen = at;
            self.touch(Key::Identity(id));
        }
        Who::Identity(user, id)
    }

    fn identity_new(&mut self, user: UserId, name: &str) -> IdentityId {
        self.clock.last_identity += 1;
        let id = IdentityId(self.clock.last_identity);
        let last_seen = self.clock.seen;
        let full = self.users.get(&user).is_some_and(|user| user.identities.len() + 1 >= IDENTITIES_PER_USER_MAX);
        let name: Box<str> =
            if full || name.len() > IDENTITY_LENGTH_MAX { OVERFLOW_IDENTITY.into() } else { name.into() };
        if let Some(user) = self.users.get_mut(&user) {
            user.identities.insert(name.clone(), id);
        }
        let record = IdentityRecord { user, name, last_seen, conduct: Conduct::default() };
        self.identities.insert(id, Box::new(Identity { record, lock: None }));
        self.due.insert((identity_idle(last_seen), Due::IdentityIdle(id)));
        self.touch(Key::Clock);
        self.touch(Key::Identity(id));
        id
    }
}
