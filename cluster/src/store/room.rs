//! Room on the disk. A log that cannot be written is the end of a store, so a node lets in no commands of its own before the
//! disk is full, and leaves checkpoints and snapshots for later. What other nodes let in it goes on writing: where that
//! fills the disk, its store stops, and the others go on without it. The segment in use and the spare one are made ahead of
//! time, so what was let in when the room ended still fits.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Free bytes below which nothing new is let in.
pub const FREE_BYTES_MIN: u64 = 48 * 1024 * 1024;

/// What the disk under the store's directory has left. Cheap to clone.
#[derive(Clone)]
pub struct Room {
    directory: Arc<Path>,
    free_min: u64,
    is_short: Arc<AtomicBool>,
}

impl Room {
    pub fn new(directory: &Path, free_min: u64) -> Self {
        Self { directory: directory.into(), free_min, is_short: Arc::default() }
    }

    /// As it was when last looked at.
    pub fn is_there(&self) -> bool {
        !self.is_short.load(Ordering::Relaxed)
    }

    /// Whether a file of so many bytes leaves what must be free.
    pub fn has(&self, bytes: u64) -> bool {
        self.free() >= self.free_min.saturating_add(bytes)
    }

    /// A file system that does not answer is taken as roomy.
    fn free(&self) -> u64 {
        rustix::fs::statvfs(&*self.directory).map_or(u64::MAX, |disk| disk.f_bavail * disk.f_frsize)
    }

    /// Asks the file system; a change is told to the operator.
    pub fn look(&self) -> bool {
        let is_short = self.free() < self.free_min;
        if self.is_short.swap(is_short, Ordering::Relaxed) != is_short {
            let directory = self.directory.display();
            match is_short {
                true => tracing::error!(
                    "{directory}: less than {} bytes are free: this node lets nothing in",
                    self.free_min
                ),
                false => tracing::info!("{directory}: there is room again"),
            }
        }
        !is_short
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_is_what_leaves_less_than_the_minimum() {
        let directory = std::env::temp_dir();
        assert!(Room::new(&directory, 0).look());
        assert!(Room::new(&directory, 0).has(1) && !Room::new(&directory, 1).has(u64::MAX));
        let never = Room::new(&directory, u64::MAX);
        assert!(never.is_there());
        assert!(!never.look() && !never.is_there());
    }
}
