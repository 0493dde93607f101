//! What the state tells to the outside.

use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use super::admissions::{Known, Remembered};
use super::admit::{WINDOWS, domain_limits, exceeded, limit_advice, push_charges, user_limits};
use super::lock::Lock;
use super::meter::{Counter, Meter};
use super::settings::{Effective, Level, Overrides, Settings};
use super::sources::source_of;
use super::user::{Domain, User, Who};
use super::view::{Advice, AuthGate, DkimKey, DomainView, IdentityView, LimitsView, LockView, UserView};
use super::{DomainId, State};
use crate::command::{Admission, AdmissionId, AdmissionVerdict, LimitUnit, LockState, Scope};
use crate::name::{DomainName, Login, Timestamp, UserId};

impl State {
    pub fn user(&self, login: &Login) -> Option<UserView> {
        self.user_by_id(*self.logins.get(login)?)
    }

    pub fn user_by_id(&self, id: UserId) -> Option<UserView> {
        let (user, settings) = self.user_settings(id)?;
        let domain = self.domains.get(&user.record.domain)?;
        Some(UserView {
            id,
            login: (*user.record.login).clone(),
            domain: domain.record.name.clone(),
            enabled: user.record.enabled,
            domain_enabled: domain.record.enabled,
            password_hash: user.record.password_hash.as_deref().map(str::to_owned),
            version: self.version_of(user, domain),
            settings,
        })
    }

    /// The network User whose range holds the address, by longest prefix; `None` with `ip_authentication` off.
    pub fn network(&self, address: IpAddr) -> Option<UserView> {
        if !self.defaults.effective.ip_authentication {
            return None;
        }
        self.user_by_id(self.networks.find(address)?)
    }

    /// Users in the order of their logins, after `after`, of one domain or of all.
    pub fn users(&self, domain: Option<&DomainName>, after: Option<&Login>, count: usize) -> Vec<UserView> {
        let logins = match domain {
            None => &self.logins,
            Some(name) => match self.domain_named(name) {
                Some((_, domain)) => &domain.members,
                None => return Vec::new(),
            },
        };
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let ids = logins.range::<Login, _>((start, Bound::Unbounded)).map(|(_, id)| *id);
        ids.filter_map(|id| self.user_by_id(id)).take(count).collect()
    }

    pub fn domain(&self, name: &DomainName) -> Option<DomainView> {
        self.domain_named(name).map(|(_, domain)| view_of(domain))
    }

    pub fn domains(&self) -> Vec<DomainView> {
        let domains = self.domain_names.values().filter_map(|id| self.domains.get(id));
        domains.map(|domain| view_of(domain)).collect()
    }

    /// Cluster defaults with the cluster-wide settings.
    pub fn defaults(&self) -> Settings {
        (*self.defaults.effective).clone()
    }

    /// The effective value of each setting with the level that it comes from: `cluster`, `domain` or `user`.
    pub fn settings_with_origin(&self, user: UserId) -> Vec<Effective> {
        let Some((user, settings)) = self.user_settings(user) else { return Vec::new() };
        let none = Overrides::default();
        let domain = self.domains.get(&user.record.domain).map_or(&none, |domain| &domain.record.overrides);
        Effective::list(&settings, Level::User, domain, &user.record.overrides)
    }

    /// As [`State::settings_with_origin`], for what a domain hands down to its Users and holds itself.
    pub fn domain_settings_with_origin(&self, name: &DomainName) -> Vec<Effective> {
        let Some((_, domain)) = self.domain_named(name) else { return Vec::new() };
        Effective::list(&domain.effective, Level::Domain, &domain.record.overrides, &Overrides::default())
    }

    /// The lock of a User or identity with its history, newest last.
    pub fn lock(&self, user: UserId, identity: Option<&str>) -> LockView {
        let lock = self.who(user, identity).and_then(|who| self.lock_of(who)).cloned().unwrap_or_default();
        LockView { state: lock.state, unlocks_used: lock.unlocks_used, reason: lock.reason(), history: lock.history }
    }

    /// An identity has no limits of its own: they show as unlimited, and its part of the User's distinct recipients as 0.
    pub fn limits(&self, user: UserId, identity: Option<&str>) -> LimitsView {
        let mut view = LimitsView { windows: Vec::new(), distinct_recipients: 0, invalid_recipients: 0 };
        let Some((record, settings)) = self.user_settings(user) else { return view };
        let at = self.clock.seen;
        let mut show = |scope, meter: &Meter, limits: &[u64; WINDOWS.len()]| {
            push_charges(&mut view.windows, scope, meter, at, limits);
        };
        match self.who(user, identity) {
            Some(Who::User(_)) => {
                show(Scope::User, &record.conduct.meter, &user_limits(&settings));
                view.invalid_recipients = record.conduct.meter.counts(at)[Counter::Invalid.index()];
                view.distinct_recipients = record.recipients.as_ref().map_or(0, |known| known.count(at));
            }
            Some(Who::Identity(_, id)) => {
                let Some(identity) = self.identities.get(&id) else { return view };
                show(Scope::Identity, &identity.record.conduct.meter, &[0; WINDOWS.len()]);
                view.invalid_recipients = identity.record.conduct.meter.counts(at)[Counter::Invalid.index()];
            }
            None => return view,
        }
        if let Some(domain) = self.domains.get(&record.record.domain) {
            push_charges(&mut view.windows, Scope::Domain, &domain.meter, at, &domain_limits(&domain.effective));
        }
        view
    }

    pub fn identities(&self, user: UserId) -> Vec<IdentityView> {
        let Some(user) = self.users.get(&user) else { return Vec::new() };
        let known = user.identities.values().filter_map(|id| self.identities.get(id));
        known
            .map(|identity| IdentityView {
                identity: identity.record.name.to_string(),
                lock: identity.lock.as_ref().map_or(LockState::Unlocked, |lock| lock.state),
                unlocks_used: identity.lock.as_ref().map_or(0, |lock| lock.unlocks_used),
                last_seen: identity.record.last_seen,
            })
            .collect()
    }

    /// What an Admit of `user` now would meet, from this replica: advice only. Takes one recipient for granted.
    pub fn advise(&self, user: UserId, identity: Option<&str>, at: Timestamp) -> Advice {
        let Some((record, settings)) = self.user_settings(user) else { return Advice::Pass };
        let at = at.max(self.clock.seen);
        let state_of =
            |lock: Option<&Lock>| lock.map_or(LockState::Unlocked, |lock| lock.state_at(at, settings.max_unlocks));
        let own = state_of(record.lock.as_deref());
        if own != LockState::Unlocked {
            return Advice::Locked { scope: Scope::User, state: own };
        }
        let theirs = identity.and_then(|name| self.find_identity(user, name)).map(|who| state_of(self.lock_of(who)));
        if let Some(state) = theirs.filter(|state| *state != LockState::Unlocked) {
            return Advice::Locked { scope: Scope::Identity, state };
        }
        if let Some(over) = exceeded(&record.conduct.meter, at, &user_limits(&settings), 1) {
            return limit_advice(Scope::User, settings.limit_unit, over);
        }
        let domain = self.domains.get(&record.record.domain);
        let over = domain.and_then(|domain| exceeded(&domain.meter, at, &domain_limits(&domain.effective), 1));
        let unit = domain.map_or(LimitUnit::Messages, |domain| domain.effective.limit_unit);
        over.map_or(Advice::Pass, |over| limit_advice(Scope::Domain, unit, over))
    }

    /// Whether one more recipient with this hash would still be within `max_recipients_per_day`.
    /// `new_in_transaction` = addresses accepted before it in this transaction that were new as well.
    pub fn recipient_fits(&self, user: UserId, hash: u64, new_in_transaction: u64, at: Timestamp) -> bool {
        let Some((user, settings)) = self.user_settings(user) else { return true };
        let limit = settings.max_recipients_per_day;
        let at = at.max(self.clock.seen);
        let known = user.recipients.as_deref();
        limit == 0
            || known.is_some_and(|known| known.contains(hash, at))
            || known.map_or(0, |known| known.count(at)) + new_in_transaction < limit
    }

    /// Whether this address may try to log in, and after which delay.
    pub fn auth_gate(&self, address: IpAddr, user: Option<UserId>, at: Timestamp) -> AuthGate {
        let at = at.max(self.clock.seen);
        let source = source_of(address);
        if let Some(until) = self.sources.blocked_until(source, at) {
            return AuthGate::Blocked { until };
        }
        let user = user.and_then(|user| self.users.get(&user)).map_or(0, |user| user.failures.delay_ms(at));
        match user.max(self.sources.delay_ms(source, at)) {
            0 => AuthGate::Open,
            millis => AuthGate::Delay { millis },
        }
    }

    /// The addresses on the authentication block list, with the time until which they stay. IPv6 by the first of their /64.
    pub fn auth_blocks(&self) -> Vec<(IpAddr, Timestamp)> {
        self.sources.blocks().collect()
    }

    /// All keys of a domain, or of all domains, with the private part.
    pub fn dkim_keys(&self, domain: Option<&DomainName>) -> Vec<DkimKey> {
        let wanted = match domain.map(|name| self.domain_named(name)) {
            None => None,
            Some(None) => return Vec::new(),
            Some(Some((id, _))) => Some(id),
        };
        let mine = self.dkim.iter().filter(|((domain, _, _), _)| wanted.is_none_or(|wanted| *domain == wanted));
        let view = |((domain, selector, algorithm), key): (&(DomainId, String, _), &super::Dkim)| {
            Some(DkimKey {
                domain: self.domains.get(domain)?.record.name.clone(),
                selector: selector.clone(),
                algorithm: *algorithm,
                private_key: key.private_key.clone(),
                created: key.created,
            })
        };
        mine.filter_map(view).collect()
    }

    /// What became of an admission that the node has not declared settled: asked when a node recovers its spool.
    /// Charges are not kept.
    pub fn admission(&self, id: AdmissionId) -> Option<Admission> {
        let Known::Again(remembered) = self.admissions.get(&id.node)?.look_up(id) else { return None };
        let (verdict, lock) = match remembered {
            Remembered::Accepted => (AdmissionVerdict::Accepted, None),
            Remembered::Other(other) => *other,
        };
        Some(Admission { verdict, charges: Vec::new(), lock })
    }

    /// Whether a node has taken part under this epoch or a later one.
    pub(crate) fn knows_epoch(&self, node: u64, epoch: u64) -> bool {
        self.admissions.get(&node).is_some_and(|memory| memory.horizon.epoch >= epoch)
    }

    /// A User with the settings that hold for it.
    pub(super) fn user_settings(&self, id: UserId) -> Option<(&User, Arc<Settings>)> {
        let user = self.users.get(&id)?;
        let domain = self.domains.get(&user.record.domain)?;
        if user.record.overrides.is_empty() {
            return Some((user, Arc::clone(&domain.effective)));
        }
        let version = self.version_of(user, domain);
        let settings = match &user.cached {
            Some((cached, settings)) if *cached == version => Arc::clone(settings),
            Some(_) | None => Arc::new(user.record.overrides.over(&domain.effective)),
        };
        Some((user, settings))
    }

    pub(super) fn version_of(&self, user: &User, domain: &Domain) -> u64 {
        user.record.version.max(domain.record.version).max(self.defaults.record.version)
    }

    fn who(&self, user: UserId, identity: Option<&str>) -> Option<Who> {
        identity.map_or(Some(Who::User(user)), |name| self.find_identity(user, name))
    }

    fn domain_named(&self, name: &DomainName) -> Option<(DomainId, &Domain)> {
        let id = self.domain_names.get(name)?;
        self.domains.get(id).map(|domain| (*id, &**domain))
    }
}

fn view_of(domain: &Domain) -> DomainView {
    DomainView {
        name: domain.record.name.clone(),
        enabled: domain.record.enabled,
        contact: domain.record.contact.clone(),
        route: domain.record.route.clone(),
        route_auth: domain.record.route_auth.clone(),
        users: u64::try_from(domain.members.len()).unwrap_or(u64::MAX),
    }
}
