//! Finds Users, verifies passwords, and tells the replicated state of failures.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use outgate_cluster::state::{AuthGate, UserView};
use outgate_cluster::{Cluster, Command, Login, UserId};
use tokio::sync::Semaphore;

use crate::config::Config;
use crate::metrics::Metrics;

use super::actor::{Claim, Entered, Users};
use super::password::Pool;
use super::sessions::Sessions;
use super::slots::Slots;
use super::{Authenticated, LoginError, WAIT_MAX};

/// Logins of one source that are being verified, and those that may be on their way.
const SLOTS_PER_SOURCE: usize = 2;
const LOGINS_PER_SOURCE_MAX: usize = 1_000;
/// Failures on their way to the replicated state.
const PROPOSALS_MAX: usize = 64;
/// No delay of the gate holds a session for longer.
const DELAY_MAX: Duration = Duration::from_secs(30);

/// Finds users, verifies passwords, counts sessions. Cheap to clone.
#[derive(Clone)]
pub struct Directory {
    inner: Arc<Inner>,
}

struct Inner {
    config: Arc<Config>,
    cluster: Cluster,
    metrics: Arc<Metrics>,
    users: Users,
    pool: Pool,
    slots: Slots,
    proposals: Semaphore,
    /// Of the keyed hashes by which verified passwords are known; random for each process.
    key: [u8; 32],
}

/// Which way a login took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Cached,
    Verified,
}

impl Directory {
    pub fn new(config: Arc<Config>, cluster: Cluster, metrics: Arc<Metrics>, sessions: Sessions) -> Self {
        let inner = Inner {
            config,
            cluster,
            metrics,
            users: Users::new(sessions),
            pool: Pool::new(),
            slots: Slots::new(SLOTS_PER_SOURCE, LOGINS_PER_SOURCE_MAX, WAIT_MAX),
            proposals: Semaphore::new(PROPOSALS_MAX),
            key: random_key(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Verifies a password for `login` (`local@domain`, `domain`, …) from this address; takes the time a refusal has to take.
    pub async fn authenticate(
        &self,
        client: IpAddr,
        login: &str,
        password: &[u8],
    ) -> Result<Authenticated, LoginError> {
        let result = self.inner.login(client, login, password).await;
        let kind = match &result {
            Ok((_, Way::Cached)) => "cached",
            Ok((_, Way::Verified)) => "ok",
            Err(LoginError::Blocked) => "blocked",
            Err(LoginError::Failed | LoginError::TooManySessions | LoginError::Unavailable) => "failed",
        };
        self.inner.metrics.logins.get_or_create(&kind.into()).inc();
        result.map(|(authenticated, _)| authenticated)
    }

    /// The network User of an address, if it needs no password.
    pub async fn network(&self, client: IpAddr) -> Result<Option<Authenticated>, LoginError> {
        let view = self.inner.cluster.read(|state| state.network(client.to_canonical()));
        let Some(view) = view.filter(|view| view.password_hash.is_none() && is_enabled(view)) else { return Ok(None) };
        match self.inner.enter(&view, Claim::Network).await? {
            Entered::In(place) => Ok(Some(Authenticated {
                view: Arc::new(view),
                authentication_user: None,
                place: Some(Arc::new(place)),
            })),
            Entered::Full | Entered::Unproven => Err(LoginError::TooManySessions),
        }
    }

    /// Whether the address is on the authentication block list now.
    pub fn is_blocked(&self, client: IpAddr) -> bool {
        matches!(self.inner.gate(client, None), AuthGate::Blocked { .. })
    }

    /// The User as it is now; `None` once removed or disabled, or once the password is another than the one it gave.
    pub fn current(&self, user: &Authenticated) -> Option<Arc<UserView>> {
        let view = self.inner.cluster.read(|state| state.user_by_id(user.view.id));
        let is_proven =
            |view: &UserView| user.authentication_user.is_none() || view.password_hash == user.view.password_hash;
        view.filter(|view| is_enabled(view) && is_proven(view)).map(Arc::new)
    }

    /// The largest message that the cluster's defaults allow, announced before a login.
    pub fn default_message_size_max(&self) -> u64 {
        self.inner.cluster.read(|state| state.defaults().max_message_size)
    }
}

impl Inner {
    async fn login(&self, client: IpAddr, login: &str, password: &[u8]) -> Result<(Authenticated, Way), LoginError> {
        let found = self.find(client, login);
        let user = found.as_ref().map(|view| view.id);
        let gate = self.gate(client, user);
        if matches!(gate, AuthGate::Blocked { .. }) {
            return Err(LoginError::Blocked);
        }
        let cached = match found.as_ref().filter(|view| is_enabled(view)) {
            Some(view) => self.enter(view, Claim::Known(self.proof(view, password))).await?,
            None => Entered::Unproven,
        };
        let (entered, way) = match cached {
            Entered::Unproven => (self.verify(client, found.as_ref(), password).await?, Way::Verified),
            Entered::In(_) | Entered::Full => (cached, Way::Cached),
        };
        let (Entered::In(place), Some(view)) = (entered, found) else { return Err(LoginError::TooManySessions) };
        if matches!(gate, AuthGate::Delay { .. }) {
            self.propose(Command::AuthSucceeded { user: view.id, address: client.to_canonical() }).await;
        }
        let authenticated = Authenticated {
            view: Arc::new(view),
            authentication_user: Some(login.to_owned()),
            place: Some(Arc::new(place)),
        };
        Ok((authenticated, way))
    }

    /// The slow way, in a slot of the client's address until the outcome is counted.
    async fn verify(&self, client: IpAddr, found: Option<&UserView>, password: &[u8]) -> Result<Entered, LoginError> {
        let _slot = self.slots.enter(client).await?;
        // Others of the same address may have failed while this one waited.
        match self.gate(client, found.map(|view| view.id)) {
            AuthGate::Open => {}
            AuthGate::Blocked { .. } => return Err(LoginError::Blocked),
            AuthGate::Delay { millis } => tokio::time::sleep(Duration::from_millis(millis).min(DELAY_MAX)).await,
        }
        // Or succeeded with the same password.
        if let Some(view) = found.filter(|view| is_enabled(view)) {
            let known = self.enter(view, Claim::Known(self.proof(view, password))).await?;
            if !matches!(known, Entered::Unproven) {
                return Ok(known);
            }
        }
        let hash = found.and_then(|view| view.password_hash.as_deref());
        let fits = self.pool.verify(hash, password).await?;
        match found.filter(|view| fits && is_enabled(view)) {
            Some(view) => self.enter(view, Claim::Verified(self.proof(view, password))).await,
            None => {
                self.count_failure(client, found.map(|view| view.id)).await;
                Err(LoginError::Failed)
            }
        }
    }

    /// The User of this name; a network User with a password takes any name that is no User's, as it has none of its own.
    fn find(&self, client: IpAddr, login: &str) -> Option<UserView> {
        let named = parse_login(login);
        self.cluster.read(|state| {
            named
                .and_then(|login| state.user(&login))
                .or_else(|| state.network(client.to_canonical()).filter(|network| network.password_hash.is_some()))
        })
    }

    async fn enter(&self, view: &UserView, claim: Claim) -> Result<Entered, LoginError> {
        let entered = self.users.enter(view.id, claim, view.settings.max_connections).await;
        entered.ok_or(LoginError::Unavailable)
    }

    /// The version makes a proof void once anything about the User changes.
    fn proof(&self, view: &UserView, password: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&view.id.0.to_be_bytes());
        hasher.update(&view.version.to_be_bytes());
        hasher.update(password);
        hasher.finalize()
    }

    fn gate(&self, client: IpAddr, user: Option<UserId>) -> AuthGate {
        if self.is_trusted(client) {
            return AuthGate::Open;
        }
        let now = self.cluster.now();
        self.cluster.read(|state| state.auth_gate(client.to_canonical(), user, now))
    }

    fn is_trusted(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        self.config.smtp.trusted_networks.iter().any(|network| network.contains(&client))
    }

    async fn count_failure(&self, client: IpAddr, user: Option<UserId>) {
        if !self.is_trusted(client) {
            self.propose(Command::AuthFailed { user, address: client.to_canonical() }).await;
        }
    }

    /// The client's answer does not depend on it: a node that cannot decide closes its listeners anyway.
    async fn propose(&self, command: Command) {
        let permit = tokio::time::timeout(WAIT_MAX, self.proposals.acquire()).await;
        let Ok(Ok(_permit)) = permit else {
            return tracing::warn!("the outcome of a login was not counted: too many wait");
        };
        if let Err(error) = self.cluster.propose(command).await {
            tracing::warn!(%error, "the outcome of a login was not counted");
        }
    }
}

fn is_enabled(view: &UserView) -> bool {
    view.enabled && view.domain_enabled
}

/// A mailbox or domain login, its domain in A-labels. An address range is proved by the source address, not by its name.
fn parse_login(text: &str) -> Option<Login> {
    let login = text.parse().or_else(|_| {
        let (local, domain) = text.rsplit_once('@').unwrap_or(("", text));
        let domain = idna::domain_to_ascii(domain).unwrap_or_default();
        format!("{local}@{domain}").parse()
    });
    login.ok().filter(|login| !matches!(login, Login::Network(_)))
}

#[expect(clippy::expect_used, reason = "a process without random numbers must not verify passwords")]
fn random_key() -> [u8; 32] {
    let mut key = [0; 32];
    aws_lc_rs::rand::fill(&mut key).expect("the system gives random numbers");
    key
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn logins_are_read_as_clients_write_them() {
        let login = |text: &str| parse_login(text).map(|login| login.to_string());
        assert_eq!(login("Alice@Example.com").as_deref(), Some("alice@example.com"));
        assert_eq!(login("@example.com").as_deref(), Some("example.com"));
        assert_eq!(login("example.com").as_deref(), Some("example.com"));
        assert_eq!(login("alice@bücher.example").as_deref(), Some("alice@xn--bcher-kva.example"));
        assert_eq!(login("bücher.example").as_deref(), Some("xn--bcher-kva.example"));
        assert_eq!(login("192.0.2.0/24"), None);
        assert_eq!(login(""), None);
    }
}
