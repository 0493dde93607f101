#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use openraft::storage::RaftLogStorageExt;
use openraft::{CommittedLeaderId, EntryPayload};
use tempfile::TempDir;

use super::*;
use crate::command::{Actor, Command, Subject};
use crate::name::{Login, Timestamp};
use crate::store::codec;
use crate::store::entry::Stamped;

fn id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term, 1), index)
}

/// An entry of about `bytes` bytes.
fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let subject = Subject { login: "example.com".parse::<Login>().unwrap(), identity: None };
    let command = Command::Lock { subject, actor: Actor("test".to_owned()), reason: "x".repeat(bytes) };
    let encoded = codec::encode(&command);
    Entry { log_id: id(term, index), payload: EntryPayload::Normal(Stamped::new(Timestamp(index), command, encoded)) }
}

struct Fixture {
    home: TempDir,
    log: Option<(Log, JoinHandle<()>)>,
    failure: Failure,
}

impl Fixture {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let failure = Failure::default();
        let log = Some(Log::open(home.path(), failure.clone()).unwrap());
        Self { home, log, failure }
    }

    fn log(&mut self) -> &mut Log {
        &mut self.log.as_mut().unwrap().0
    }

    fn close(&mut self) {
        if let Some((log, thread)) = self.log.take() {
            drop(log);
            thread.join().unwrap();
        }
    }

    fn reopen(&mut self) -> Result<&mut Log, OpenError> {
        self.close();
        self.log = Some(Log::open(self.home.path(), self.failure.clone())?);
        Ok(self.log())
    }

    fn segments(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.home.path().join("log")).unwrap();
        let mut paths: Vec<PathBuf> =
            entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some()).collect();
        paths.sort();
        paths
    }

    /// Changes the bytes of a closed segment.
    fn edit(&mut self, segment: usize, edit: impl FnOnce(&mut Vec<u8>)) {
        self.close();
        let path = &self.segments()[segment];
        let mut bytes = fs::read(path).unwrap();
        edit(&mut bytes);
        fs::write(path, bytes).unwrap();
    }

    /// Where each record of a segment begins, and the end of the last.
    fn offsets(&self, segment: usize) -> Vec<usize> {
        let bytes = fs::read(&self.segments()[segment]).unwrap();
        let mut offsets = vec![0];
        while let Some(header) = record::header(&bytes[*offsets.last().unwrap()..]) {
            offsets.push(offsets.last().unwrap() + header.length);
        }
        offsets
    }
}

async fn all(log: &mut Log) -> Vec<Entry> {
    log.try_get_log_entries(0..).await.unwrap()
}

async fn feed(log: &mut Log, indexes: std::ops::Range<u64>, bytes: usize) {
    for index in indexes {
        log.blocking_append([entry(1, index, bytes)]).await.unwrap();
    }
}

#[tokio::test]
async fn entries_come_back_from_memory_and_from_disk() {
    let mut fixture = Fixture::new();
    feed(fixture.log(), 0..20, 100).await;
    let before = all(fixture.log()).await;
    assert_eq!(before.len(), 20);
    let log = fixture.reopen().unwrap();
    assert_eq!(all(log).await, before);
    assert_eq!(log.try_get_log_entries(5..=7).await.unwrap(), before[5..8]);
    feed(log, 20..22, 100).await;
    let log = fixture.reopen().unwrap();
    assert_eq!(log.extent().last, Some(id(1, 21)));
}

#[tokio::test]
async fn a_log_goes_on_over_many_segments_and_forgets_what_the_cache_cannot_hold() {
    let mut fixture = Fixture::new();
    feed(fixture.log(), 0..30, 1_000_000).await;
    // One that fills more than a usual segment by itself.
    fixture.log().blocking_append([entry(1, 30, 12_000_000)]).await.unwrap();
    feed(fixture.log(), 31..33, 10).await;
    let before = all(fixture.log()).await;
    assert_eq!(before.len(), 33);
    assert!(fixture.segments().len() >= 5);
    assert_eq!(all(fixture.reopen().unwrap()).await, before);
}

#[tokio::test]
async fn a_torn_tail_is_cut_off_at_every_length() {
    let mut fixture = Fixture::new();
    feed(fixture.log(), 0..3, 50).await;
    fixture.close();
    let offsets = fixture.offsets(0);
    let (start, end) = (offsets[offsets.len() - 2], offsets[offsets.len() - 1]);
    let whole = fs::read(&fixture.segments()[0]).unwrap();
    for cut in start..end {
        fixture.edit(0, |bytes| {
            bytes.copy_from_slice(&whole);
            bytes[cut..end].fill(0);
        });
        let log = fixture.reopen().unwrap();
        assert_eq!(log.extent().last, Some(id(1, 1)), "cut at {cut}");
        log.blocking_append([entry(2, 2, 5)]).await.unwrap();
        let log = fixture.reopen().unwrap();
        assert_eq!(log.extent().last, Some(id(2, 2)), "cut at {cut}");
    }
}

#[tokio::test]
async fn any_flipped_bit_in_the_middle_is_damage_and_in_the_last_record_a_torn_tail() {
    let mut fixture = Fixture::new();
    feed(fixture.log(), 0..4, 1).await;
    fixture.close();
    let offsets = fixture.offsets(0);
    let whole = fs::read(&fixture.segments()[0]).unwrap();
    let (last, end) = (offsets[offsets.len() - 2], offsets[offsets.len() - 1]);
    for bit in (0..end * 8).step_by(3) {
        fixture.edit(0, |bytes| {
            bytes.copy_from_slice(&whole);
            bytes[bit / 8] ^= 1 << (bit % 8);
        });
        match fixture.reopen() {
            Ok(log) => assert!(bit / 8 >= last && log.extent().last == Some(id(1, 2)), "bit {bit}"),
            Err(OpenError::Damaged(_, what)) => {
                assert!(bit / 8 < last && what.contains("cannot be read"), "bit {bit}: {what}")
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn records_of_one_unsynced_write_may_be_torn_in_the_middle() {
    let mut fixture = Fixture::new();
    feed(fixture.log(), 0..2, 10).await;
    // Three records in one write and one sync: a power cut may leave the last of them and not the first.
    fixture.log().blocking_append([entry(1, 2, 10), entry(1, 3, 10), entry(1, 4, 10)]).await.unwrap();
    fixture.close();
    let offsets = fixture.offsets(0);
    let torn = offsets[offsets.len() - 4];
    fixture.edit(0, |bytes| bytes[torn + 30] ^= 1);
    let log = fixture.reopen().unwrap();
    assert_eq!(log.extent().last, Some(id(1, 1)));
    feed(log, 2..4, 10).await;
    assert_eq!(fixture.reopen().unwrap().extent().last, Some(id(1, 3)));
}

#[tokio::test]
async fn a_missing_segment_is_damage() {
    let mut fixture = Fixture::new();
    feed(fixture.log(), 0..30, 1_000_000).await;
    fixture.close();
    let segments = fixture.segments();
    assert!(segments.len() >= 3);
    fs::remove_file(&segments[1]).unwrap();
    assert!(matches!(fixture.reopen(), Err(OpenError::Damaged(..))));
}

#[tokio::test]
async fn a_segment_that_was_only_named_is_taken_as_unused() {
    let mut fixture = Fixture::new();
    feed(fixture.log(), 0..3, 10).await;
    fixture.close();
    let next = fixture.home.path().join("log").join(format!("{:020}.log", 5));
    fs::write(&next, vec![0; 4096]).unwrap();
    let log = fixture.reopen().unwrap();
    assert_eq!(log.extent().last, Some(id(1, 2)));
    assert!(!next.exists());
}

#[tokio::test]
async fn truncated_entries_stay_away_and_their_successors_come_back() {
    let mut fixture = Fixture::new();
    feed(fixture.log(), 0..10, 20).await;
    fixture.log().truncate(id(1, 6)).await.unwrap();
    assert_eq!(fixture.log().extent().last, Some(id(1, 5)));
    assert_eq!(fixture.reopen().unwrap().extent().last, Some(id(1, 5)));
    fixture.log().blocking_append([entry(2, 6, 20)]).await.unwrap();
    let log = fixture.reopen().unwrap();
    assert_eq!(log.extent().last, Some(id(2, 6)));
    assert_eq!(all(log).await.len(), 7);
}

#[tokio::test]
async fn a_purge_holds_after_reopening_and_removes_whole_segments() {
    let mut fixture = Fixture::new();
    feed(fixture.log(), 0..40, 1_000_000).await;
    let segments = fixture.segments().len();
    fixture.log().purge(id(1, 20)).await.unwrap();
    let log = fixture.reopen().unwrap();
    let extent = log.extent();
    assert_eq!((extent.purged, extent.last, extent.entries), (Some(id(1, 20)), Some(id(1, 39)), 19));
    assert_eq!(all(log).await[0].log_id, id(1, 21));
    assert!(fixture.segments().len() < segments);
    let log = fixture.log();
    // A snapshot of a peer may reach beyond the end of the log.
    log.purge(id(3, 100)).await.unwrap();
    let log = fixture.reopen().unwrap();
    assert_eq!((log.extent().purged, log.extent().last), (Some(id(3, 100)), Some(id(3, 100))));
    log.blocking_append([entry(3, 101, 10)]).await.unwrap();
    let log = fixture.reopen().unwrap();
    assert_eq!((log.extent().last, log.extent().entries), (Some(id(3, 101)), 1));
}

#[tokio::test]
async fn a_purge_waits_on_the_disk_until_the_snapshot_is_there_and_nothing_overtakes_it() {
    let mut fixture = Fixture::new();
    feed(fixture.log(), 0..40, 1_000_000).await;
    let (segments, purges) = (fixture.segments().len(), fixture.log().purges());
    purges.defer();
    fixture.log().purge(id(1, 100)).await.unwrap();
    assert_eq!(fixture.log().extent().purged, Some(id(1, 100)));
    let mut log = fixture.log().clone();
    let append = tokio::spawn(async move { log.blocking_append([entry(1, 101, 10)]).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!append.is_finished() && fixture.segments().len() == segments);
    purges.allow();
    append.await.unwrap().unwrap();
    assert!(fixture.segments().len() < segments);
    assert_eq!(fixture.reopen().unwrap().extent().last, Some(id(1, 101)));
}

#[tokio::test]
async fn a_purge_for_a_snapshot_that_was_not_installed_never_comes() {
    let mut fixture = Fixture::new();
    feed(fixture.log(), 0..40, 1_000_000).await;
    fixture.log().purges().defer();
    fixture.log().purge(id(1, 100)).await.unwrap();
    fixture.failure.set("the snapshot was not installed");
    fixture.close();
    fixture.failure = Failure::default();
    assert_eq!(fixture.reopen().unwrap().extent().entries, 40);
}

#[tokio::test]
async fn a_log_without_its_first_segment_is_damage() {
    let mut fixture = Fixture::new();
    feed(fixture.log(), 0..30, 1_000_000).await;
    fixture.close();
    fs::remove_file(&fixture.segments()[0]).unwrap();
    assert!(matches!(fixture.reopen(), Err(OpenError::Damaged(_, what)) if what.contains("begins at")));
}

#[tokio::test]
async fn a_vote_is_kept() {
    let mut fixture = Fixture::new();
    fixture.log().save_vote(&Vote::new(7, 1)).await.unwrap();
    assert_eq!(fixture.reopen().unwrap().read_vote().await.unwrap(), Some(Vote::new(7, 1)));
}

#[tokio::test]
async fn nobody_leads_on_the_strength_of_an_earlier_life() {
    let mut fixture = Fixture::new();
    fixture.log().save_vote(&Vote::new_committed(7, 1)).await.unwrap();
    assert_eq!(fixture.reopen().unwrap().read_vote().await.unwrap(), Some(Vote::new(7, 1)));
}

#[tokio::test]
async fn after_an_error_of_the_disk_nothing_is_called_durable() {
    let mut fixture = Fixture::new();
    feed(fixture.log(), 0..2, 10).await;
    // The next segment cannot be made: its spare's name is taken by a directory.
    fs::remove_file(fixture.home.path().join("log/spare")).unwrap_or_default();
    fs::create_dir_all(fixture.home.path().join("log/spare/x")).unwrap();
    assert!(fixture.log().blocking_append([entry(1, 2, 9_000_000)]).await.is_err());
    assert!(fixture.failure.get().is_some_and(|sentence| sentence.contains("writing the log")));
    assert!(fixture.log().blocking_append([entry(1, 3, 10)]).await.is_err());
    assert!(fixture.log().save_vote(&Vote::new(9, 1)).await.is_err());
    fixture.failure = Failure::default();
    fs::remove_dir_all(fixture.home.path().join("log/spare")).unwrap();
    let log = fixture.reopen().unwrap();
    assert_eq!(log.extent().last, Some(id(1, 1)));
    assert_eq!(log.read_vote().await.unwrap(), None);
}
