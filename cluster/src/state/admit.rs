//! "May this message pass, and count it", in one step.
//!
//! The order: was it decided before? is the User there? locked? is it abuse? does it fit all
//! windows, the distinct recipients, the domain's total? Only then it is charged. A refusal costs
//! nothing but the strike of the message that caused it.
//!
//! * The User's limits hold for the User as a whole; identities are counted beside it and shown.
//! * The null reverse-path has a window of its own, counts nowhere else and never locks, but a
//!   locked User cannot use it either.
//! * Mail to the domain's contact passes a lock; windows count it like any other.
//! * A message whose strike locks is not accepted any more: its verdict is the lock.

use std::sync::Arc;

use super::admissions::{Horizon, Known, Remembered};
use super::conduct::{Abuse, Judged};
use super::meter::{Counter, Counts, Meter};
use super::recipients::Recipients;
use super::settings::Settings;
use super::user::{DomainId, Who};
use super::view::Advice;
use super::{Key, State};
use crate::command::{
    Admission, AdmissionVerdict, Admit, Charge, LimitUnit, LockCause, LockChange, LockState, Scope, Window, Wish,
};
use crate::name::{Timestamp, UserId};

const SECOND: u64 = 1_000;
pub(super) const WINDOWS: [Window; 5] = [Window::Minute, Window::Hour, Window::Day, Window::Week, Window::Month];

/// A message with everything that was looked up for it.
struct Case<'a> {
    admit: &'a Admit,
    user: UserId,
    domain: DomainId,
    /// Whose strikes and lock abuse touches.
    subject: Who,
    identity: Option<Who>,
    settings: &'a Settings,
    at: Timestamp,
}

impl State {
    pub(super) fn admit(&mut self, admit: &Admit) -> Admission {
        match self.recall(admit) {
            Known::Stale => refused(AdmissionVerdict::Stale),
            Known::New if self.is_out(admit.id.node) => refused(AdmissionVerdict::Stale),
            Known::Again(Remembered::Accepted) => {
                let charges = self.charges_of(admit.user, admit.null_sender);
                Admission { verdict: AdmissionVerdict::Accepted, charges, lock: None }
            }
            Known::Again(Remembered::Other(other)) => {
                let (verdict, lock) = *other;
                Admission { verdict, charges: self.charges_of(admit.user, admit.null_sender), lock }
            }
            Known::New => {
                let admission = self.decide(admit);
                self.remember(admit, &admission);
                admission
            }
        }
    }

    /// Moves the node's horizon and asks its memory.
    fn recall(&mut self, admit: &Admit) -> Known {
        let id = admit.id;
        self.move_horizon(id.node, Horizon { epoch: id.epoch, sequence: admit.settled_below });
        self.admissions.get(&id.node).map_or(Known::New, |node| node.look_up(id))
    }

    fn remember(&mut self, admit: &Admit, admission: &Admission) {
        let remembered = match (&admission.verdict, &admission.lock) {
            (AdmissionVerdict::Accepted, None) => Remembered::Accepted,
            (verdict, lock) => Remembered::Other(Box::new((verdict.clone(), lock.clone()))),
        };
        let id = admit.id;
        self.admissions.entry(id.node).or_default().outcomes.insert(id.sequence, remembered);
        self.touch(Key::admission_block(id.node, id.sequence));
    }

    fn decide(&mut self, admit: &Admit) -> Admission {
        let Some((domain, settings)) = self.sending(admit.user) else { return refused(AdmissionVerdict::NoUser) };
        let identity = admit.identity.as_deref().map(|name| self.identity_seen(admit.user, name));
        let subject = identity.filter(|_| settings.lock_identities).unwrap_or(Who::User(admit.user));
        let case =
            Case { admit, user: admit.user, domain, subject, identity, settings: &settings, at: self.clock.seen };
        let locked = self.locked(&case);
        if let Some((scope, state)) = locked.filter(|_| !admit.to_contact) {
            return refused(AdmissionVerdict::Locked { scope, state });
        }
        let lock = if admit.null_sender || locked.is_some() { None } else { self.strike(&case) };
        if admit.wish == Wish::Refuse {
            return Admission { verdict: AdmissionVerdict::Recorded, charges: self.charges(&case), lock };
        }
        if let Some(change) = lock.as_ref().filter(|_| !admit.to_contact) {
            let verdict = AdmissionVerdict::Locked { scope: change.scope, state: change.to };
            return Admission { verdict, charges: self.charges(&case), lock };
        }
        match self.first_limit(&case) {
            Some(verdict) => {
                let may_lock = locked.is_none() && lock.is_none();
                let lock = if may_lock { self.lock_on_limit(&case, &verdict) } else { lock };
                Admission { verdict, charges: self.charges(&case), lock }
            }
            None => {
                self.charge(&case);
                Admission { verdict: AdmissionVerdict::Accepted, charges: self.charges(&case), lock }
            }
        }
    }

    /// Domain and settings of a User that may send.
    fn sending(&mut self, id: UserId) -> Option<(DomainId, Arc<Settings>)> {
        let user = self.users.get_mut(&id)?;
        let domain = self.domains.get(&user.record.domain)?;
        if !user.record.enabled || !domain.record.enabled {
            return None;
        }
        if user.record.overrides.is_empty() {
            return Some((user.record.domain, Arc::clone(&domain.effective)));
        }
        let version = user.record.version.max(domain.record.version).max(self.defaults.record.version);
        if user.cached.as_ref().is_none_or(|(cached, _)| *cached != version) {
            user.cached = Some((version, Arc::new(user.record.overrides.over(&domain.effective))));
        }
        user.cached.as_ref().map(|(_, settings)| (user.record.domain, Arc::clone(settings)))
    }

    /// A locked User locks all its identities.
    fn locked(&self, case: &Case<'_>) -> Option<(Scope, LockState)> {
        let of = |who, scope| Some((scope, self.lock_state(who))).filter(|(_, state)| *state != LockState::Unlocked);
        of(Who::User(case.user), Scope::User).or_else(|| of(case.identity?, Scope::Identity))
    }

    fn strike(&mut self, case: &Case<'_>) -> Option<LockChange> {
        let judged = Judged { class: case.admit.class, score: case.admit.score, message: &case.admit.message };
        let abuse = self.conduct_mut(case.subject)?.judge(case.at, judged, case.settings);
        self.touch_conduct(case.subject);
        abuse.and_then(|abuse| self.lock_for(case.subject, case.settings, abuse))
    }

    fn lock_on_limit(&mut self, case: &Case<'_>, verdict: &AdmissionVerdict) -> Option<LockChange> {
        let AdmissionVerdict::Limit { scope: Scope::User, window, limit, .. } = verdict else { return None };
        if !case.settings.lock_on_limit {
            return None;
        }
        let cause = LockCause::Limit { window: *window, limit: *limit };
        let abuse = Abuse { cause, messages: vec![case.admit.message.clone()] };
        self.lock_for(case.subject, case.settings, abuse)
    }

    /// The first thing that the message does not fit, with the longest wait among the User's windows.
    fn first_limit(&self, case: &Case<'_>) -> Option<AdmissionVerdict> {
        let (recipients, settings) = (&case.admit.recipients, case.settings);
        if case.admit.null_sender {
            return self.null_limit(case);
        }
        let user = self.users.get(&case.user)?;
        let cost = cost(settings.limit_unit, recipients.len());
        if settings.limits_enabled
            && let Some(over) = exceeded(&user.conduct.meter, case.at, &user_limits(settings), cost)
        {
            return Some(limit_verdict(Scope::User, settings.limit_unit, over));
        }
        let distinct_max = settings.max_recipients_per_day;
        if distinct_max > 0 {
            let none = Recipients::default();
            let known = user.recipients.as_deref().unwrap_or(&none);
            let wait = known.wait_ms(case.at, distinct_max, known.count_new(recipients, case.at));
            if wait > 0 {
                return Some(AdmissionVerdict::DistinctRecipients {
                    limit: distinct_max,
                    retry_after_s: seconds(wait),
                });
            }
        }
        let domain = self.domains.get(&case.domain)?;
        let unit = domain.effective.limit_unit;
        let limits = domain_limits(&domain.effective);
        let over = exceeded(&domain.meter, case.at, &limits, self::cost(unit, recipients.len()))?;
        Some(limit_verdict(Scope::Domain, unit, over))
    }

    fn null_limit(&self, case: &Case<'_>) -> Option<AdmissionVerdict> {
        let limit = self.defaults.effective.null_sender_limit_per_hour;
        let meter = &self.users.get(&case.user)?.conduct.meter;
        let used = meter.counts(case.at)[Counter::NullSender.index()];
        if limit == 0 || used < limit {
            return None;
        }
        let wait = meter.wait_ms(case.at, Counter::NullSender, limit, 1);
        Some(limit_verdict(Scope::NullSender, LimitUnit::Messages, Over { window: Window::Hour, limit, wait }))
    }

    fn charge(&mut self, case: &Case<'_>) {
        let count = case.admit.recipients.len();
        if case.admit.null_sender {
            let mut costs = Counts::default();
            costs[Counter::NullSender.index()] = 1;
            self.charge_conduct(Who::User(case.user), case.at, &costs);
            return;
        }
        let costs = window_costs(cost(case.settings.limit_unit, count));
        self.charge_conduct(Who::User(case.user), case.at, &costs);
        if let Some(identity) = case.identity {
            self.charge_conduct(identity, case.at, &costs);
        }
        if let Some(domain) = self.domains.get_mut(&case.domain) {
            domain.meter.charge(case.at, &window_costs(cost(domain.effective.limit_unit, count)));
            self.touch(Key::DomainMeter(case.domain));
        }
        if case.settings.max_recipients_per_day > 0 {
            self.note_recipients(case.user, &case.admit.recipients);
        }
    }

    fn charge_conduct(&mut self, who: Who, at: Timestamp, costs: &Counts) {
        if let Some(conduct) = self.conduct_mut(who) {
            conduct.meter.charge(at, costs);
            self.touch_conduct(who);
        }
    }

    fn note_recipients(&mut self, id: UserId, hashes: &[u64]) {
        let (at, dirty) = (self.clock.seen, &mut self.dirty);
        let Some(user) = self.users.get_mut(&id) else { return };
        let known = user.recipients.get_or_insert_default();
        while let Some(hash) = known.pop_expired(at) {
            dirty.insert(Key::Recipient { user: id, hash });
        }
        for hash in hashes {
            if known.note(*hash, at) {
                dirty.insert(Key::Recipient { user: id, hash: *hash });
            }
        }
    }

    fn charges(&self, case: &Case<'_>) -> Vec<Charge> {
        self.charges_of(case.user, case.admit.null_sender)
    }

    /// The windows that count for a message of this User, as they are now.
    fn charges_of(&self, id: UserId, null_sender: bool) -> Vec<Charge> {
        if self.unheard {
            return Vec::new();
        }
        let Some((user, settings)) = self.user_settings(id) else { return Vec::new() };
        let (meter, at) = (&user.conduct.meter, self.clock.seen);
        if null_sender {
            let limit = self.defaults.effective.null_sender_limit_per_hour;
            let used = meter.counts(at)[Counter::NullSender.index()];
            let over = limit > 0 && used >= limit;
            let wait = if over { meter.wait_ms(at, Counter::NullSender, limit, 1) } else { 0 };
            return vec![Charge {
                scope: Scope::NullSender,
                window: Window::Hour,
                used,
                limit,
                next_free_s: seconds(wait),
            }];
        }
        let mut charges = Vec::with_capacity(2 * WINDOWS.len());
        push_charges(&mut charges, Scope::User, meter, at, &user_limits(&settings));
        if let Some(domain) = self.domains.get(&user.record.domain) {
            let limits = domain_limits(&domain.effective);
            if limits.iter().any(|limit| *limit > 0) {
                push_charges(&mut charges, Scope::Domain, &domain.meter, at, &limits);
            }
        }
        charges
    }
}

/// A window that the message does not fit.
pub(super) struct Over {
    pub(super) window: Window,
    pub(super) limit: u64,
    pub(super) wait: u64,
}

/// The exceeded window with the longest wait.
pub(super) fn exceeded(meter: &Meter, at: Timestamp, limits: &[u64; 5], cost: u64) -> Option<Over> {
    if limits.iter().all(|limit| *limit == 0) {
        return None;
    }
    let counts = meter.counts(at);
    let over = WINDOWS
        .into_iter()
        .zip(limits)
        .filter(|(window, limit)| **limit > 0 && counts[Counter::of(*window).index()].saturating_add(cost) > **limit);
    over.map(|(window, limit)| Over {
        window,
        limit: *limit,
        wait: meter.wait_ms(at, Counter::of(window), *limit, cost),
    })
    .max_by_key(|over| over.wait)
}

/// Adds a meter's windows to what is shown of it.
pub(super) fn push_charges(charges: &mut Vec<Charge>, scope: Scope, meter: &Meter, at: Timestamp, limits: &[u64; 5]) {
    let counts = meter.counts(at);
    charges.extend(WINDOWS.into_iter().zip(limits).map(|(window, limit)| {
        let used = counts[Counter::of(window).index()];
        let full = *limit > 0 && used >= *limit;
        let wait = if full { meter.wait_ms(at, Counter::of(window), *limit, 1) } else { 0 };
        Charge { scope, window, used, limit: *limit, next_free_s: seconds(wait) }
    }));
}

fn limit_verdict(scope: Scope, unit: LimitUnit, over: Over) -> AdmissionVerdict {
    let Over { window, limit, wait } = over;
    AdmissionVerdict::Limit { scope, window, unit, limit, retry_after_s: seconds(wait) }
}

pub(super) fn limit_advice(scope: Scope, unit: LimitUnit, over: Over) -> Advice {
    let Over { window, limit, wait } = over;
    Advice::Limit { scope, window, unit, limit, retry_after_s: seconds(wait) }
}

/// The User's limits as they hold: all unlimited with `limits_enabled` off.
pub(super) fn user_limits(settings: &Settings) -> [u64; 5] {
    if !settings.limits_enabled {
        return [0; 5];
    }
    [
        settings.limit_per_minute,
        settings.limit_per_hour,
        settings.limit_per_day,
        settings.limit_per_week,
        settings.limit_per_month,
    ]
}

pub(super) fn domain_limits(settings: &Settings) -> [u64; 5] {
    [
        settings.domain_limit_per_minute,
        settings.domain_limit_per_hour,
        settings.domain_limit_per_day,
        settings.domain_limit_per_week,
        settings.domain_limit_per_month,
    ]
}

/// What a message with this many recipients costs.
fn cost(unit: LimitUnit, recipients: usize) -> u64 {
    match unit {
        LimitUnit::Messages => 1,
        LimitUnit::Recipients => u64::try_from(recipients).unwrap_or(u64::MAX).max(1),
    }
}

fn window_costs(cost: u64) -> Counts {
    let mut costs = Counts::default();
    for window in WINDOWS {
        costs[Counter::of(window).index()] = cost;
    }
    costs
}

fn seconds(millis: u64) -> u64 {
    millis.div_ceil(SECOND)
}

fn refused(verdict: AdmissionVerdict) -> Admission {
    Admission { verdict, charges: Vec::new(), lock: None }
}
