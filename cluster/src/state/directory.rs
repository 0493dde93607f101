//! Commands that make, change and remove domains and Users, and change the cluster's defaults.

use std::sync::Arc;

use super::settings::{Level, Overrides, Patch, SettingError, Settings};
use super::user::{Domain, DomainRecord, User, UserRecord};
use super::{DomainId, Key, State};
use crate::command::{DomainPatch, NewUser, Outcome, Refusal, UserPatch};
use crate::name::{DomainName, Login, UserId};

impl State {
    pub(super) fn domain_add(&mut self, name: DomainName, patch: DomainPatch) -> Result<Outcome, Refusal> {
        if self.domain_names.contains_key(&name) {
            return Err(Refusal::DomainExists(name));
        }
        check(&patch.settings, Level::Domain)?;
        self.clock.last_domain += 1;
        let id = DomainId(self.clock.last_domain);
        let record = DomainRecord {
            name: name.clone(),
            version: self.next_version(),
            enabled: true,
            contact: None,
            route: None,
            route_auth: None,
            overrides: Overrides::default(),
        };
        let mut domain = Domain::new(record, &self.defaults.effective);
        change_domain(&mut domain, patch, &self.defaults.effective);
        self.domains.insert(id, Box::new(domain));
        self.domain_names.insert(name, id);
        self.touch(Key::Domain(id));
        Ok(Outcome::Done)
    }

    pub(super) fn domain_set(&mut self, name: &DomainName, patch: DomainPatch) -> Result<Outcome, Refusal> {
        let id = self.domain_id(name)?;
        check(&patch.settings, Level::Domain)?;
        let version = self.next_version();
        if let Some(domain) = self.domains.get_mut(&id) {
            domain.record.version = version;
            change_domain(domain, patch, &self.defaults.effective);
        }
        self.touch(Key::Domain(id));
        Ok(Outcome::Done)
    }

    pub(super) fn domain_remove(&mut self, name: &DomainName) -> Result<Outcome, Refusal> {
        let id = self.domain_id(name)?;
        if self.domains.get(&id).is_some_and(|domain| !domain.members.is_empty()) {
            return Err(Refusal::DomainInUse(name.clone()));
        }
        self.dkim_drop(id, |_| true);
        self.domains.remove(&id);
        self.domain_names.remove(name);
        self.touch(Key::Domain(id));
        self.touch(Key::DomainMeter(id));
        Ok(Outcome::Done)
    }

    pub(super) fn defaults_set(&mut self, patch: Patch) -> Result<Outcome, Refusal> {
        check(&patch, Level::Cluster)?;
        self.defaults.record.version = self.next_version();
        self.defaults.record.overrides.change(patch);
        self.inherit_defaults();
        self.touch(Key::Defaults);
        Ok(Outcome::Done)
    }

    /// Works out anew what follows from the cluster's own values.
    pub(super) fn inherit_defaults(&mut self) {
        self.defaults.effective = Arc::new(self.defaults.record.overrides.over(&Settings::default()));
        for domain in self.domains.values_mut() {
            domain.inherit(&self.defaults.effective);
        }
    }

    pub(super) fn user_add(&mut self, new: NewUser) -> Result<UserId, Refusal> {
        let domain = self.user_fault(&new)?;
        self.clock.last_user += 1;
        let id = UserId(self.clock.last_user);
        let mut overrides = Overrides::default();
        overrides.change(new.settings);
        let record = UserRecord {
            login: Arc::new(new.login),
            domain,
            version: self.next_version(),
            enabled: true,
            password_hash: new.password_hash.filter(|hash| !hash.is_empty()).map(String::into_boxed_str),
            overrides,
        };
        self.enrol(id, record);
        self.touch(Key::User(id));
        Ok(id)
    }

    /// Puts a User where all look-ups find it.
    pub(super) fn enrol(&mut self, id: UserId, record: UserRecord) {
        let login = Arc::clone(&record.login);
        if let Login::Network(network) = *login {
            self.networks.insert(network, id);
        }
        if let Some(domain) = self.domains.get_mut(&record.domain) {
            domain.members.insert(Arc::clone(&login), id);
        }
        self.logins.insert(login, id);
        self.users.insert(id, Box::new(User::new(record)));
    }

    /// The domain of a new User, or why it cannot be taken.
    pub(super) fn user_fault(&self, new: &NewUser) -> Result<DomainId, Refusal> {
        if let Some(holder) = self.logins.get(&new.login) {
            return Err(self.taken(&new.login, *holder));
        }
        let has_password = new.password_hash.as_ref().is_some_and(|hash| !hash.is_empty());
        let domain = match (new.login.domain(), &new.owner) {
            (Some(domain), Some(owner)) if domain != owner => {
                return Err(Refusal::OwnerDiffers(new.login.clone(), owner.clone()));
            }
            (Some(_), _) if !has_password => return Err(Refusal::PasswordMissing),
            (Some(domain), _) | (None, Some(domain)) => domain,
            (None, None) => return Err(Refusal::OwnerMissing),
        };
        check(&new.settings, Level::User)?;
        self.domain_id(domain)
    }

    fn taken(&self, login: &Login, holder: UserId) -> Refusal {
        let owner = self.users.get(&holder).and_then(|user| self.domains.get(&user.record.domain));
        match (login, owner) {
            (Login::Network(_), Some(owner)) => Refusal::NetworkTaken(login.clone(), owner.record.name.clone()),
            (Login::Network(_) | Login::Mailbox { .. } | Login::Domain(_), _) => Refusal::UserExists(login.clone()),
        }
    }

    pub(super) fn user_set(&mut self, login: &Login, patch: UserPatch) -> Result<Outcome, Refusal> {
        let id = self.user_id(login)?;
        check(&patch.settings, Level::User)?;
        let removes_password = patch.password_hash.as_ref().is_some_and(String::is_empty);
        if removes_password && login.domain().is_some() {
            return Err(Refusal::PasswordMissing);
        }
        let version = self.next_version();
        if let Some(user) = self.users.get_mut(&id) {
            let record = &mut user.record;
            record.version = version;
            record.enabled = patch.enabled.unwrap_or(record.enabled);
            if let Some(hash) = patch.password_hash {
                record.password_hash = Some(hash).filter(|hash| !hash.is_empty()).map(String::into_boxed_str);
            }
            record.overrides.change(patch.settings);
            user.cached = None;
        }
        self.touch(Key::User(id));
        Ok(Outcome::Done)
    }

    pub(super) fn user_remove(&mut self, login: &Login) -> Result<Outcome, Refusal> {
        let id = self.user_id(login)?;
        let Some(user) = self.users.remove(&id) else { return Err(Refusal::UnknownUser(login.clone())) };
        self.logins.remove(login);
        if let Login::Network(network) = login {
            self.networks.remove(*network);
        }
        if let Some(domain) = self.domains.get_mut(&user.record.domain) {
            domain.members.remove(login);
        }
        for identity in user.identities.into_values() {
            self.identities.remove(&identity);
            self.touch(Key::Identity(identity));
            self.touch(Key::IdentityLock(identity));
        }
        for hash in user.recipients.iter().flat_map(|known| known.hashes()) {
            self.dirty.insert(Key::Recipient { user: id, hash });
        }
        self.dirty.extend([Key::User(id), Key::Conduct(id), Key::Failures(id), Key::UserLock(id)]);
        // Timers of what is gone find nothing when they fire.
        Ok(Outcome::Done)
    }

    pub(super) fn domain_id(&self, name: &DomainName) -> Result<DomainId, Refusal> {
        self.domain_names.get(name).copied().ok_or_else(|| Refusal::UnknownDomain(name.clone()))
    }
}

fn change_domain(domain: &mut Domain, patch: DomainPatch, defaults: &Arc<Settings>) {
    let record = &mut domain.record;
    record.enabled = patch.enabled.unwrap_or(record.enabled);
    change_text(&mut record.contact, patch.contact);
    change_text(&mut record.route, patch.route);
    change_text(&mut record.route_auth, patch.route_auth);
    record.overrides.change(patch.settings);
    domain.inherit(defaults);
}

/// An empty text removes.
fn change_text(text: &mut Option<String>, patch: Option<String>) {
    if let Some(new) = patch {
        *text = Some(new).filter(|new| !new.is_empty());
    }
}

fn check(patch: &Patch, level: Level) -> Result<(), Refusal> {
    patch.check(level).map_err(|error| match error {
        SettingError::Unknown(key) | SettingError::NoValue(key) => Refusal::BadSetting(key),
        SettingError::ClusterOnly(key) | SettingError::DomainOnly(key) | SettingError::Value { key, .. } => {
            Refusal::BadSetting(key.to_owned())
        }
    })
}
