//! Each node asks every other twice a second how many sessions each User has there, so that `max_connections` holds for
//! the whole cluster.

use std::sync::Weak;
use std::time::Duration;

use outgate_cluster::UserId;
use tokio::task::JoinSet;

use super::Mirrors;
use super::letter::{Answer, Question};
use crate::user::Sessions;

const INTERVAL: Duration = Duration::from_millis(500);
const ANSWER_TIMEOUT: Duration = Duration::from_millis(400);

/// For as long as anybody uses the disks.
pub(super) async fn run(mirrors: Weak<Mirrors>) {
    while let Some(mirrors) = mirrors.upgrade() {
        let mut asked = JoinSet::new();
        for node in mirrors.others() {
            let mirrors = mirrors.clone();
            asked.spawn(async move {
                match mirrors.sessions_at(node).await {
                    Ok(counts) => mirrors.sessions.hear(node, counts),
                    Err(why) => tracing::debug!(node, why, "the sessions of a node are not known for a moment"),
                }
            });
        }
        drop(mirrors);
        asked.join_all().await;
        tokio::time::sleep(INTERVAL).await;
    }
}

/// What this node answers.
pub(super) fn answer(sessions: &Sessions) -> Answer {
    Answer::Sessions(sessions.here().into_iter().map(|(user, count)| (user.0, count)).collect())
}

impl Mirrors {
    async fn sessions_at(&self, node: u64) -> Result<Vec<(UserId, u64)>, String> {
        let answer = self.ask(node, &Question::Sessions, ANSWER_TIMEOUT).await?;
        let Answer::Sessions(counts) = answer else { return Err(answer.refusal()) };
        Ok(counts.into_iter().map(|(user, count)| (UserId(user), count)).collect())
    }
}
