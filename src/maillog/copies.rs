//! Copies of other nodes' logs: their segments, byte for byte, under `of-<node>/`.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::segment::{Directory, SegmentName};
use super::{Maillog, Query, Record, search};

impl Maillog {
    /// How long the segments of this node's own log are, from the one that is named `since` on.
    pub(crate) async fn lengths(&self, since: u64) -> io::Result<BTreeMap<u64, u64>> {
        let directory = self.directory.clone();
        blocking(move || directory.lengths(SegmentName(since))).await
    }

    /// Bytes of an own segment, at most `count`.
    pub(crate) async fn read_at(&self, segment: u64, offset: u64, count: usize) -> io::Result<Vec<u8>> {
        let path = self.directory.path(SegmentName(segment));
        blocking(move || {
            let mut bytes = vec![0; count];
            let read = File::open(path)?.read_at(&mut bytes, offset)?;
            bytes.truncate(read);
            Ok(bytes)
        })
        .await
    }

    /// How long the segments are that are kept of `node`'s log.
    pub(crate) async fn copy_lengths(&self, node: u64) -> io::Result<BTreeMap<u64, u64>> {
        let directory = self.copy_of(node);
        blocking(move || if directory.exists() { directory.lengths(SegmentName(0)) } else { Ok(BTreeMap::new()) }).await
    }

    /// Keeps bytes of a segment of `node`; what was there from `offset` on is replaced. On disk when it returns.
    pub(crate) async fn keep_at(&self, node: u64, segment: u64, offset: u64, bytes: Vec<u8>) -> io::Result<()> {
        let (directory, before_ms) = (self.copy_of(node), self.kept_since_ms());
        blocking(move || {
            let path = directory.made()?.path(SegmentName(segment));
            let is_new = !path.exists();
            let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
            if file.metadata()?.len() < offset {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "what comes before is missing"));
            }
            file.set_len(offset)?;
            file.seek(SeekFrom::Start(offset))?;
            file.write_all(&bytes)?;
            file.sync_data()?;
            if is_new {
                directory.sync()?;
                directory.expire(before_ms)?;
            }
            Ok(())
        })
        .await
    }

    /// Searches what is kept of `node`'s log.
    pub(crate) async fn search_copy(&self, node: u64, query: Query) -> io::Result<Vec<Record>> {
        let directory = self.copy_of(node);
        blocking(move || if directory.exists() { search::run(&directory, &query) } else { Ok(Vec::new()) }).await
    }

    fn copy_of(&self, node: u64) -> Directory {
        self.directory.below(Path::new(&format!("of-{node}")))
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[tokio::test]
    async fn a_copy_grows_is_replaced_from_where_it_differs_and_has_no_gap() {
        let base = tempfile::tempdir().unwrap();
        let maillog = Maillog::open(base.path(), 1).unwrap();
        assert!(maillog.copy_lengths(7).await.unwrap().is_empty());
        let now = crate::clock::now_ms();
        maillog.keep_at(7, now, 0, b"first".to_vec()).await.unwrap();
        maillog.keep_at(7, now, 5, b" second".to_vec()).await.unwrap();
        assert!(maillog.keep_at(7, now, 99, b"far".to_vec()).await.is_err());
        maillog.keep_at(7, now, 5, b" third".to_vec()).await.unwrap();
        assert_eq!(maillog.copy_lengths(7).await.unwrap(), BTreeMap::from([(now, 11)]));
        let path = base.path().join(format!("of-7/{now:015}.log"));
        assert_eq!(std::fs::read(path).unwrap(), b"first third");
        assert!(maillog.lengths(0).await.unwrap().is_empty(), "it is not our own");
    }
}
