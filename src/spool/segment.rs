//! Segment files: names, headers, records at a known place.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::record::{HEADER_LENGTH, Record};
use crate::mail::MessageId;

const MAGIC: &[u8; 8] = b"OGSPOOL1";
/// Magic and three copies of the salt, so that one flipped bit does not make a whole segment unreadable.
pub(super) const FILE_HEADER_LENGTH: usize = 32;

/// Where a record stands.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Location {
    pub(super) segment: u64,
    pub(super) offset: u64,
    pub(super) meta_length: u32,
    pub(super) body_length: u32,
}

impl Location {
    pub(super) fn record_length(&self) -> u64 {
        HEADER_LENGTH as u64 + u64::from(self.meta_length) + u64::from(self.body_length)
    }
}

pub(super) fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:016x}.segment"))
}

/// The segments of a directory in order.
pub(super) fn list(directory: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".segment"));
        numbers.extend(number.and_then(|number| u64::from_str_radix(number, 16).ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// A new, empty segment whose name and header are on disk.
pub(super) fn create(directory: &Path, number: u64) -> io::Result<(File, u64)> {
    let random = MessageId::generate().to_bytes();
    let salt = u64::from_le_bytes(std::array::from_fn(|at| random[at + 8]));
    let mut header = MAGIC.to_vec();
    (0..3).for_each(|_| header.extend_from_slice(&salt.to_le_bytes()));
    let path = path(directory, number);
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    let written =
        file.write_all(&header).and_then(|()| file.sync_all()).and_then(|()| File::open(directory)?.sync_all());
    if let Err(error) = written {
        std::fs::remove_file(&path)?;
        return Err(error);
    }
    Ok((file, salt))
}

/// Keeps a second name for a damaged segment, under which nothing deletes it.
pub(super) fn keep_aside(directory: &Path, number: u64) -> io::Result<PathBuf> {
    let aside = directory.join(format!("{number:016x}.segment.damaged"));
    match std::fs::hard_link(path(directory, number), &aside) {
        Ok(()) => File::open(directory)?.sync_all()?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    Ok(aside)
}

/// The salt of a segment, by the majority of its three copies.
pub(super) fn salt(header: &[u8]) -> Option<u64> {
    let copy = |at: usize| -> Option<u64> { Some(u64::from_le_bytes(header.get(at..at + 8)?.try_into().ok()?)) };
    let (first, second, third) = (copy(8)?, copy(16)?, copy(24)?);
    let salt = if first == second || first == third { Some(first) } else { (second == third).then_some(second) };
    // Zeros are what a file system leaves of a header that it lost.
    salt.filter(|&salt| salt != 0)
}

/// The body of the message at `location`; `InvalidData` or `UnexpectedEof` = it is damaged for good. Blocks.
pub(super) fn read_body(directory: &Path, location: Location, id: MessageId) -> io::Result<Bytes> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, format!("the record of message {id} is damaged"));
    let file = File::open(path(directory, location.segment))?;
    let mut header = [0; FILE_HEADER_LENGTH];
    file.read_exact_at(&mut header, 0)?;
    let salt = salt(&header).ok_or_else(damaged)?;
    let length = usize::try_from(location.record_length()).map_err(|_| damaged())?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, location.offset)?;
    let record = Record::parse(&bytes, salt).filter(|record| record.header.id == id).ok_or_else(damaged)?;
    let body_start = length - record.body.len();
    Ok(Bytes::from(bytes).slice(body_start..))
}

/// The bytes of a whole segment. Blocks.
pub(super) fn read(directory: &Path, number: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path(directory, number))?.read_to_end(&mut bytes)?;
    Ok(bytes)
}
