//! What happens by itself when its time has come, before the next command is looked at.

use super::user::Who;
use super::{Key, State};
use crate::command::{LockCause, LockState};
use crate::name::{Timestamp, UserId};
use crate::state::IdentityId;

/// An identity without a lock record is forgotten after this long without mail.
const IDENTITY_MEMORY_MS: u64 = 32 * 24 * 3_600_000;

/// A change that waits for its time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Due {
    UserLock(UserId),
    IdentityLock(IdentityId),
    IdentityIdle(IdentityId),
    Import(u64),
}

impl State {
    /// When time alone will next change something: a [`crate::Command::Tick`] is worth its place in the log from then on.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.due.first().map(|(at, _)| *at)
    }

    /// In the order of their times; equal times in the order of [`Due`].
    pub(super) fn run_due(&mut self) {
        let now = self.clock.seen;
        while let Some((at, due)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, due));
            match due {
                Due::UserLock(user) => self.time_out(Who::User(user), at),
                Due::IdentityLock(identity) => {
                    if let Some(user) = self.identities.get(&identity).map(|identity| identity.record.user) {
                        self.time_out(Who::Identity(user, identity), at);
                    }
                }
                Due::IdentityIdle(identity) => self.forget_identity(identity),
                Due::Import(import) => self.drop_import(import),
            }
        }
        while let Some(address) = self.sources.pop_expired(now) {
            self.touch(Key::Source(address));
        }
    }

    fn time_out(&mut self, who: Who, at: Timestamp) {
        let Some((_, settings)) = self.user_settings(who.user()) else { return };
        let Some(lock) = self.lock_of(who).filter(|lock| matches!(lock.state, LockState::Locked { .. })) else {
            return;
        };
        let to = lock.after_timeout(settings.max_unlocks);
        let unlocks_used = lock.unlocks_used + u32::from(to == LockState::Unlocked);
        self.step(who, at, to, unlocks_used, LockCause::Timeout, Vec::new());
    }

    fn forget_identity(&mut self, id: IdentityId) {
        let Some(identity) = self.identities.get(&id).filter(|identity| identity.lock.is_none()) else { return };
        let idle_until = identity_idle(identity.record.last_seen);
        if idle_until > self.clock.seen {
            self.due.insert((idle_until, Due::IdentityIdle(id)));
            return;
        }
        if let Some(user) = self.users.get_mut(&identity.record.user) {
            user.identities.remove(&identity.record.name);
        }
        self.identities.remove(&id);
        self.touch(Key::Identity(id));
    }
}

/// When an identity that was last seen then is forgotten.
pub(super) fn identity_idle(last_seen: Timestamp) -> Timestamp {
    last_seen.plus_millis(IDENTITY_MEMORY_MS)
}
