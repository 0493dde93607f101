//! Outgoing users: who is talking, may they log in, how many sessions have they.

use std::net::IpAddr;
use std::sync::Arc;

use outgate_cluster::Cluster;
use outgate_cluster::state::UserView;

use crate::config::Config;
use crate::metrics::Metrics;

/// Finds users, verifies passwords, counts sessions. Cheap to clone.
#[derive(Clone)]
pub struct Directory {}

/// A session's proof of who it is. Lives as long as the session: it holds the session's place among `max_connections`.
#[derive(Clone, Debug)]
pub struct Authenticated {
    /// As it was at login; [`Directory::current`] gives today's.
    pub view: Arc<UserView>,
    /// The name given to AUTH, an identity by `authentication_user`; `None` for a network without a password.
    pub authentication_user: Option<String>,
}

/// Why a login did not succeed.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum LoginError {
    /// Unknown, disabled or wrong: the client hears the same for all.
    #[error("credentials are not valid")]
    Failed,
    #[error("the address is on the authentication block list")]
    Blocked,
    #[error("the user has too many sessions")]
    TooManySessions,
    #[error("the store cannot answer")]
    Unavailable,
}

impl Directory {
    pub fn new(_config: Arc<Config>, _cluster: Cluster, _metrics: Arc<Metrics>) -> Self {
        todo!()
    }

    /// Verifies a password for `login` (`local@domain`, `domain`, …) from this address; takes the time a refusal has to take.
    pub async fn authenticate(
        &self,
        _client: IpAddr,
        _login: &str,
        _password: &[u8],
    ) -> Result<Authenticated, LoginError> {
        todo!()
    }

    /// The network User of an address, if it needs no password.
    pub fn network(&self, _client: IpAddr) -> Result<Option<Authenticated>, LoginError> {
        todo!()
    }

    /// Whether the address is on the authentication block list now.
    pub fn is_blocked(&self, _client: IpAddr) -> bool {
        todo!()
    }

    /// The User as it is now; `None` once removed or disabled.
    pub fn current(&self, _user: &Authenticated) -> Option<Arc<UserView>> {
        todo!()
    }
}
