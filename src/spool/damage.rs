//! The note that messages may be missing without a trace. It is kept until whoever has copies has said what they are: a start
//! behind the one that found the damage sees nothing of it.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::clock::now_ms;
use crate::durable::{remove_if_there, write_durably};
use crate::mail::MessageId;

const NAME: &str = "damaged";
/// Clocks may differ by this much from one start to the next.
const MARGIN: Duration = Duration::from_secs(60);

/// When the messages came that may be missing, in milliseconds since the epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Damage {
    pub(super) since_ms: u64,
    pub(super) until_ms: u64,
}

impl Damage {
    /// Anything up to now may be missing.
    pub(super) fn all() -> Self {
        Self { since_ms: 0, until_ms: now_ms() }
    }

    /// What came about the last write to a file or later.
    pub(super) fn behind(last_write: SystemTime) -> Self {
        let since = last_write.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { since_ms: u64::try_from(since.as_millis()).unwrap_or(0), until_ms: now_ms() }
    }

    pub(super) fn join(self, other: Option<Self>) -> Self {
        let other = other.unwrap_or(self);
        Self { since_ms: self.since_ms.min(other.since_ms), until_ms: self.until_ms.max(other.until_ms) }
    }

    pub(crate) fn covers(&self, id: MessageId) -> bool {
        let margin_ms = u64::try_from(MARGIN.as_millis()).unwrap_or(0);
        let range = self.since_ms.saturating_sub(margin_ms)..self.until_ms.saturating_add(margin_ms);
        range.contains(&id.timestamp_ms())
    }

    /// What an earlier life noted; a note that cannot be read says the worst.
    pub(super) fn read(directory: &Path) -> io::Result<Option<Self>> {
        let text = match std::fs::read_to_string(directory.join(NAME)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.unwrap_or_default(),
        };
        let numbers =
            text.trim().split_once(' ').and_then(|(since, until)| Some((since.parse().ok()?, until.parse().ok()?)));
        Ok(Some(numbers.map_or_else(Self::all, |(since_ms, until_ms)| Self { since_ms, until_ms })))
    }

    pub(super) fn write(self, directory: &Path) -> io::Result<()> {
        write_durably(directory, NAME, &[format!("{} {}\n", self.since_ms, self.until_ms).as_bytes()])
    }

    pub(super) fn forget(directory: &Path) -> io::Result<()> {
        remove_if_there(&directory.join(NAME))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn the_note_survives_and_one_that_cannot_be_read_says_the_worst() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Damage::read(directory.path()).unwrap(), None);
        let damage = Damage::behind(SystemTime::now());
        damage.write(directory.path()).unwrap();
        assert_eq!(Damage::read(directory.path()).unwrap(), Some(damage));
        let id = MessageId::generate();
        assert!(damage.covers(id) && Damage::all().covers(id));
        assert!(!Damage { since_ms: 0, until_ms: 1 }.covers(id), "it came later");
        let later = Damage { since_ms: damage.since_ms + 120_000, ..damage };
        assert!(!later.covers(id) && later.join(Some(damage)).covers(id), "it came before");
        std::fs::write(directory.path().join(NAME), "half").unwrap();
        assert_eq!(Damage::read(directory.path()).unwrap().unwrap().since_ms, 0);
        Damage::forget(directory.path()).unwrap();
        Damage::forget(directory.path()).unwrap();
        assert_eq!(Damage::read(directory.path()).unwrap(), None);
    }
}
