//! Copies of what other nodes hold: `<id>.copy-<node>` beside what is held here. Nobody sees them before they are adopted.

use std::fs;
use std::io::{self, ErrorKind};

use super::store::{Store, day_of, entry_line, names};
use super::{Held, QuarantineError};
use crate::durable::{create_directory, remove_if_there, sync_directory, write_durably};
use crate::mail::{Message, MessageId};

impl Store {
    /// On disk when it returns.
    pub(super) fn keep_copy(&self, node: u64, held: &Held, message: &Message) -> Result<(), QuarantineError> {
        let day = self.day_path(day_of(held.id));
        create_directory(&day)?;
        let first = entry_line(held, None)?;
        Ok(write_durably(&day, &copy_name(node, held.id), &[&first, message.bytes()])?)
    }

    pub(super) fn drop_copy(&self, node: u64, id: MessageId) -> Result<(), QuarantineError> {
        Ok(remove_if_there(&self.day_path(day_of(id)).join(copy_name(node, id)))?)
    }

    /// What is kept for the node, oldest first.
    pub(super) fn copies_of(&self, node: u64) -> Result<Vec<MessageId>, QuarantineError> {
        let mut ids = Vec::new();
        for day in self.days()? {
            ids.extend(names(&self.day_path(day))?.filter_map(|name| parse(&name)).filter(|(of, _)| *of == node));
        }
        let mut ids: Vec<MessageId> = ids.into_iter().map(|(_, id)| id).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Makes the node's copy an entry of this quarantine; one that is gone is left alone.
    pub(super) fn adopt(&self, node: u64, id: MessageId) -> Result<(), QuarantineError> {
        let day = self.day_path(day_of(id));
        match fs::rename(day.join(copy_name(node, id)), self.path(id)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => Ok(other.and_then(|()| sync_directory(&day))?),
        }
    }

    /// Makes what is held here a copy of what the node holds.
    pub(super) fn hand_over(&self, id: MessageId, node: u64) -> Result<(), QuarantineError> {
        let day = self.day_path(day_of(id));
        match self.move_to(id, &day.join(copy_name(node, id))) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => Ok(other.and_then(|()| sync_directory(&day))?),
        }
    }

    /// Copies that are too old: their owner's are, too.
    pub(super) fn expire_copies(&self, day: u64, before_ms: u64) -> io::Result<()> {
        for name in names(&self.day_path(day))? {
            if parse(&name).is_some_and(|(_, id)| id.timestamp_ms() < before_ms) {
                remove_if_there(&self.day_path(day).join(name))?;
            }
        }
        Ok(())
    }

    /// Whether it is held here, or being released.
    pub(super) fn holds(&self, id: MessageId) -> bool {
        self.path(id).exists() || self.taken_path(id).exists()
    }

    /// What is held here, oldest first.
    pub(super) fn all(&self) -> Result<Vec<MessageId>, QuarantineError> {
        let mut ids = Vec::new();
        for day in self.days()? {
            ids.extend(self.ids(day)?);
        }
        Ok(ids)
    }
}

fn copy_name(node: u64, id: MessageId) -> String {
    format!("{id}.copy-{node}")
}

fn parse(name: &str) -> Option<(u64, MessageId)> {
    let (id, node) = name.split_once(".copy-")?;
    Some((node.parse().ok()?, id.parse().ok()?))
}
