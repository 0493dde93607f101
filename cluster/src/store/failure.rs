//! The one switch that says that this store has stopped for good.

use std::sync::Arc;

use tokio::sync::watch;

/// Shared by every part of the store that can fail; the first sentence stays. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Failure {
    sentence: Arc<watch::Sender<Option<String>>>,
}

impl Default for Failure {
    fn default() -> Self {
        Self { sentence: Arc::new(watch::Sender::new(None)) }
    }
}

impl Failure {
    /// Stops the store; a later call changes nothing.
    pub fn set(&self, sentence: impl Into<String>) {
        let sentence = sentence.into();
        self.sentence.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                tracing::error!("the store stops: {sentence}");
                *current = Some(sentence);
            }
            first
        });
    }

    pub fn get(&self) -> Option<String> {
        self.sentence.borrow().clone()
    }

    pub fn is_set(&self) -> bool {
        self.sentence.borrow().is_some()
    }

    /// Resolves when the store has stopped.
    pub async fn wait(&self) -> String {
        let mut receiver = self.sentence.subscribe();
        loop {
            if let Some(sentence) = receiver.borrow_and_update().clone() {
                return sentence;
            }
            if receiver.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_sentence_stays_and_wakes_the_waiting() {
        let failure = Failure::default();
        let waiting = tokio::spawn({
            let failure = failure.clone();
            async move { failure.wait().await }
        });
        failure.set("disk gone");
        failure.set("later");
        assert_eq!(waiting.await.ok().as_deref(), Some("disk gone"));
        assert_eq!(failure.get().as_deref(), Some("disk gone"));
    }
}
