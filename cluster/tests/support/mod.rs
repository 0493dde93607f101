//! What the tests of the store share.

#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses a part")]

use std::path::Path;
use std::time::Duration;

use outgate_cluster::command::{DomainPatch, NewUser};
use outgate_cluster::state::settings::Patch;
use outgate_cluster::{Admit, Class, Cluster, Command, DomainName, Login, OpenOptions, Outcome, UserId, Wish};

pub(crate) fn options(directory: &Path) -> OpenOptions {
    OpenOptions { directory: directory.to_owned(), propose_timeout: Duration::from_secs(20) }
}

/// Users without limits in `example.com`.
pub(crate) async fn add_users(cluster: &Cluster, count: usize) -> Vec<UserId> {
    let name = DomainName::new("example.com").unwrap();
    cluster.propose(Command::DomainAdd { name: name.clone(), patch: DomainPatch::default() }).await.unwrap();
    let mut users = Vec::new();
    for number in 0..count {
        let login = Login::Mailbox { local: format!("user{number}"), domain: name.clone() };
        let settings =
            Patch(vec![("limits_enabled".to_owned(), Some(outgate_cluster::state::settings::Value::Bool(false)))]);
        let user = NewUser { login, owner: None, password_hash: Some("$argon2id$x".to_owned()), settings };
        match cluster.propose(Command::UserAdd { user }).await.unwrap().outcome {
            Outcome::UserAdded(id) => users.push(id),
            other => panic!("{other:?}"),
        }
    }
    users
}

pub(crate) fn admit(cluster: &Cluster, user: UserId, wish: Wish) -> Admit {
    let id = cluster.next_admission();
    Admit {
        id,
        settled_below: 0,
        user,
        identity: None,
        wish,
        class: Class::Clean,
        score: 0,
        recipients: vec![id.sequence],
        null_sender: false,
        to_contact: false,
        message: format!("m{}", id.sequence),
    }
}
