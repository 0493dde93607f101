//! Segment files: made full of zeros ahead of time, so that a sync during use writes data only and no file size.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::store::durable;

/// The usual size of a segment; one that must hold a larger record is larger.
pub(crate) const SEGMENT_BYTES: u64 = 8 * 1024 * 1024;

static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// An open segment file, named after its first record.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) path: PathBuf,
    pub(crate) first_lsn: u64,
    pub(crate) bytes: u64,
    file: File,
}

impl Segment {
    fn path(directory: &Path, first_lsn: u64) -> PathBuf {
        directory.join(format!("{first_lsn:020}.log"))
    }

    pub(crate) fn open(directory: &Path, first_lsn: u64) -> io::Result<Self> {
        let path = Self::path(directory, first_lsn);
        let file = File::options().read(true).write(true).open(&path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path, first_lsn, bytes, file })
    }

    /// Takes a spare file into use under its name.
    pub(crate) fn take(spare: &Path, directory: &Path, first_lsn: u64) -> io::Result<Self> {
        fs::rename(spare, Self::path(directory, first_lsn))?;
        durable::sync_directory(directory)?;
        Self::open(directory, first_lsn)
    }

    /// The first lsn of each segment in the directory, in order.
    pub(crate) fn list(directory: &Path) -> io::Result<Vec<u64>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(directory)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".log"));
            found.extend(number.and_then(|number| number.parse::<u64>().ok()));
        }
        found.sort_unstable();
        Ok(found)
    }

    pub(crate) fn read_all(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.bytes).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    pub(crate) fn read(&self, offset: u64, length: u32) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Zeros from `offset` to the end, durable.
    pub(crate) fn clear_from(&self, offset: u64) -> io::Result<()> {
        let mut at = offset;
        while at < self.bytes {
            let length = (self.bytes - at).min(ZEROS.len() as u64);
            self.file.write_all_at(&ZEROS[..usize::try_from(length).map_err(io::Error::other)?], at)?;
            at += length;
        }
        self.file.sync_all()
    }
}

/// Makes a spare file of at least `bytes`, in steps of [`SEGMENT_BYTES`], durable down to its name.
pub(crate) fn make_spare(path: &Path, bytes: u64) -> io::Result<()> {
    let bytes = bytes.next_multiple_of(SEGMENT_BYTES).max(SEGMENT_BYTES);
    let mut file = File::create(path)?;
    for _ in 0..bytes / ZEROS.len() as u64 {
        file.write_all(&ZEROS)?;
    }
    file.sync_all()?;
    path.parent().map_or(Ok(()), durable::sync_directory)
}
