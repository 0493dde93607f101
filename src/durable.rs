//! Directories and small files that are still there after a power cut.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// Makes a directory and what is missing above it, each on disk in its parent. One that exists is synced into its
/// parent as well: an earlier start may have been cut off between the two. Blocks.
pub(crate) fn create_directory(path: &Path) -> io::Result<()> {
    let parent = path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
    let Some(parent) = parent else { return Ok(()) };
    if !parent.is_dir() {
        create_directory(parent)?;
    }
    match std::fs::create_dir(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(error) => return Err(error),
    }
    File::open(parent)?.sync_all()
}

/// Writes `parts` to `directory/name`: whole and synced, or not at all.
pub(crate) fn write_durably(directory: &Path, name: &str, parts: &[&[u8]]) -> io::Result<()> {
    let half = directory.join(format!("{name}.tmp"));
    let write = || {
        let mut file = File::create(&half)?;
        parts.iter().try_for_each(|part| file.write_all(part))?;
        file.sync_all()?;
        std::fs::rename(&half, directory.join(name))?;
        sync_directory(directory)
    };
    write().inspect_err(|_| {
        if let Err(error) = remove_if_there(&half) {
            tracing::warn!(%error, path = %half.display(), "cannot remove a half-written file");
        }
    })
}

pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn what_is_missing_is_made_and_what_is_there_stays() {
        let base = tempfile::tempdir().unwrap();
        let deep = base.path().join("a/b/c");
        create_directory(&deep).unwrap();
        std::fs::write(deep.join("file"), b"x").unwrap();
        create_directory(&deep).unwrap();
        assert_eq!(std::fs::read(deep.join("file")).unwrap(), b"x");
        assert!(create_directory(&deep.join("file")).is_err());
        assert!(create_directory(&deep.join("file/below")).is_err());
        create_directory(Path::new("src")).unwrap();
        create_directory(Path::new("/")).unwrap();
    }
}
