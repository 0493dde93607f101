//! Segment files: `<milliseconds of the first record, 15 digits>.log`, one record a line.
//!
//! A line is the CRC-32 of the JSON text in eight hex digits, a space, the JSON text, a line feed. A line whose
//! checksum is wrong was torn by a crash, or damaged: it is passed over alone.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use super::Record;
use crate::durable::create_directory;

/// A scan holds one segment in memory at a time.
pub(super) const SEGMENT_LENGTH_MAX: u64 = 16 << 20;
/// Records reach the writer a little after the time they carry; a segment may hold records this much older than its name.
pub(super) const LATENESS_MAX_MS: u64 = 60_000;
const CHECKSUM_DIGITS: usize = 8;

/// Where the segments lie.
#[derive(Clone, Debug)]
pub(super) struct Directory(PathBuf);

/// A segment by the time of its first record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct SegmentName(pub(super) u64);

impl Directory {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        create_directory(path)?;
        Ok(Self(path.to_owned()))
    }

    /// Of a directory in this one, which need not exist.
    pub(super) fn below(&self, name: &Path) -> Self {
        Self(self.0.join(name))
    }

    pub(super) fn exists(&self) -> bool {
        self.0.is_dir()
    }

    pub(super) fn made(&self) -> io::Result<&Self> {
        if !self.exists() {
            create_directory(&self.0)?;
        }
        Ok(self)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }

    /// The lengths of the segments from `since` on, by their names.
    pub(super) fn lengths(&self, since: SegmentName) -> io::Result<BTreeMap<u64, u64>> {
        let names = self.segments()?.into_iter().filter(|name| *name >= since);
        names.map(|name| Ok((name.0, fs::metadata(self.path(name))?.len()))).collect()
    }

    /// Oldest first; other files are left alone.
    pub(super) fn segments(&self) -> io::Result<Vec<SegmentName>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            names.extend(SegmentName::parse(&entry?.file_name()));
        }
        names.sort_unstable();
        Ok(names)
    }

    /// A new segment, durable in the directory; never an existing one.
    pub(super) fn create(&self, name: SegmentName) -> io::Result<File> {
        let file = OpenOptions::new().append(true).create_new(true).open(self.path(name))?;
        File::open(&self.0)?.sync_all()?;
        Ok(file)
    }

    pub(super) fn read(&self, name: SegmentName) -> io::Result<Vec<u8>> {
        fs::read(self.path(name))
    }

    /// Removes segments whose records are all older than `before_ms`. A segment's newest record is older than its successor's name.
    pub(super) fn expire(&self, before_ms: u64) -> io::Result<()> {
        let segments = self.segments()?;
        for (segment, next) in segments.iter().zip(segments.iter().skip(1)) {
            if next.0 < before_ms {
                fs::remove_file(self.path(*segment))?;
            }
        }
        Ok(())
    }

    pub(super) fn path(&self, name: SegmentName) -> PathBuf {
        self.0.join(format!("{:015}.log", name.0))
    }
}

impl SegmentName {
    fn parse(name: &OsStr) -> Option<Self> {
        name.to_str()?.strip_suffix(".log")?.parse().ok().map(Self)
    }
}

/// Appends the record's line to `lines`.
pub(super) fn encode(record: &Record, lines: &mut Vec<u8>) -> io::Result<()> {
    let start = lines.len();
    lines.extend_from_slice(b"00000000 ");
    let json = lines.len();
    serde_json::to_writer(&mut *lines, record)?;
    let checksum = format!("{:08x}", crc32fast::hash(&lines[json..]));
    lines[start..start + CHECKSUM_DIGITS].copy_from_slice(checksum.as_bytes());
    lines.push(b'\n');
    Ok(())
}

/// The JSON text of a line (without its line feed), or `None` where it is torn or damaged.
pub(super) fn checked(line: &[u8]) -> Option<&[u8]> {
    let (checksum, rest) = line.split_at_checked(CHECKSUM_DIGITS)?;
    let json = rest.strip_prefix(b" ")?;
    let expected = u32::from_str_radix(std::str::from_utf8(checksum).ok()?, 16).ok()?;
    (crc32fast::hash(json) == expected).then_some(json)
}
