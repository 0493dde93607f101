//! Small files that are either the old or the new one after a power cut, and that tell when they are neither.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Makes names in `directory` (creations, renames, removals) durable.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Creates `directory` with its parents, durable up to the first that existed before.
pub fn create_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let parent = match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    create_directory(parent)?;
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    sync_directory(parent)
}

/// Puts `content` at `path`: write beside it, fsync, rename, fsync of the directory.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    path.parent().map_or(Ok(()), sync_directory)
}

/// `magic`, CRC-32 of what follows, `body`.
pub fn seal(magic: [u8; 8], body: &[u8]) -> Vec<u8> {
    let mut bytes = magic.to_vec();
    bytes.extend_from_slice(&crc32fast::hash(body).to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// The body of what [`seal`] made, or `None` where it is damaged or something else.
pub fn unseal(magic: [u8; 8], bytes: &[u8]) -> Option<&[u8]> {
    let (found, rest) = bytes.split_first_chunk::<8>()?;
    let (crc, body) = rest.split_first_chunk::<4>()?;
    (*found == magic && u32::from_le_bytes(*crc) == crc32fast::hash(body)).then_some(body)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_seal_breaks_with_any_bit() {
        let sealed = seal(*b"testtest", b"body");
        assert_eq!(unseal(*b"testtest", &sealed), Some(b"body".as_slice()));
        for bit in 0..sealed.len() * 8 {
            let mut broken = sealed.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(unseal(*b"testtest", &broken), None, "bit {bit}");
        }
        assert_eq!(unseal(*b"testtest", &sealed[..11]), None);
    }

    #[test]
    fn replace_leaves_the_new_content_and_nothing_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("a/b");
        create_directory(&deep).unwrap();
        create_directory(&deep).unwrap();
        replace(&deep.join("file"), b"old").unwrap();
        replace(&deep.join("file"), b"new").unwrap();
        assert_eq!(fs::read(deep.join("file")).unwrap(), b"new");
        assert_eq!(fs::read_dir(&deep).unwrap().count(), 1);
    }
}
