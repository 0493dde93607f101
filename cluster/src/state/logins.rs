//! Commands about failed and good logins.

use std::net::IpAddr;

use super::sources::{Failures, source_of};
use super::{Key, State};
use crate::command::{Outcome, Refusal};
use crate::name::UserId;

const MINUTE: u64 = 60_000;

impl State {
    pub(super) fn auth_failed(&mut self, user: Option<UserId>, address: IpAddr) -> Outcome {
        let at = self.clock.seen;
        if let Some(id) = user
            && let Some(user) = self.users.get_mut(&id)
        {
            user.failures.add(at);
            self.touch(Key::Failures(id));
        }
        let source = source_of(address);
        let rules = &self.defaults.effective;
        let (failures_max, block_ms) = (rules.auth_failures_max, rules.auth_block_minutes * MINUTE);
        let (blocked_until, evicted) = self.sources.fail(source, at, failures_max, block_ms);
        self.touch(Key::Source(source));
        if let Some(evicted) = evicted {
            self.touch(Key::Source(evicted));
        }
        Outcome::AuthFailure { blocked_until }
    }

    pub(super) fn auth_succeeded(&mut self, id: UserId) -> Outcome {
        if let Some(user) = self.users.get_mut(&id)
            && user.failures.count > 0
        {
            user.failures = Failures::default();
            self.touch(Key::Failures(id));
        }
        Outcome::Done
    }

    pub(super) fn auth_unblock(&mut self, address: IpAddr) -> Result<Outcome, Refusal> {
        let source = source_of(address);
        if self.sources.blocked_until(source, self.clock.seen).is_none() {
            return Err(Refusal::NotBlocked { address });
        }
        self.sources.take(source);
        self.touch(Key::Source(source));
        Ok(Outcome::Done)
    }
}
