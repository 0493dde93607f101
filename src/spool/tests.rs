#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::time::Duration;

use super::*;

fn config(segment_max_bytes: u64) -> SpoolConfig {
    SpoolConfig { free_min_bytes: 0, segment_max_bytes }
}

fn ours(id: MessageId) -> (MessageId, Whose) {
    (id, Whose::Ours)
}

async fn open(directory: &Path) -> (Spool, Vec<Found>) {
    Spool::open(directory, &config(64 << 20), Histogram::new([1.0])).await.unwrap()
}

/// What a killed process would leave: the segments, with or without the index. Begins again where a segment is deleted
/// meanwhile.
fn copy(from: &Path, to: &Path, index: bool) {
    while let Err(error) = try_copy(from, to, index) {
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        std::fs::remove_dir_all(to).unwrap();
    }
}

fn try_copy(from: &Path, to: &Path, index: bool) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let (from, to) = {
            let entry = entry?;
            (entry.path(), to.join(entry.file_name()))
        };
        if !from.is_dir() {
            std::fs::copy(from, to)?;
        } else if index {
            try_copy(&from, &to, index)?;
        }
    }
    Ok(())
}

fn segment_of(directory: &Path) -> PathBuf {
    let numbers = segment::list(directory).unwrap();
    segment::path(directory, *numbers.last().unwrap())
}

/// Waits until every mark before is on disk.
async fn settle(spool: &Spool) {
    let (sender, receiver) = channel();
    spool.accept(ours(MessageId::generate()), Some(Box::new(move || sender.send(()).unwrap())));
    tokio::task::spawn_blocking(move || receiver.recv_timeout(Duration::from_secs(20)).unwrap()).await.unwrap();
}

fn body(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[tokio::test]
async fn a_file_cut_anywhere_keeps_what_was_whole() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = open(directory.path()).await;
    let ids: Vec<_> = (0..3).map(|_| MessageId::generate()).collect();
    let path = segment_of(directory.path());
    let length = || usize::try_from(std::fs::metadata(&path).unwrap().len()).unwrap();
    // The length of the file behind each step.
    let mut ends = Vec::new();
    spool.store(ours(ids[0]), b"m0".to_vec(), body("first"), false).await.unwrap();
    ends.push(length());
    spool.store(ours(ids[1]), b"m1".to_vec(), body("second"), true).await.unwrap();
    ends.push(length());
    spool.accept(ours(ids[0]), None);
    spool.store(ours(ids[2]), b"m2".to_vec(), body("third"), false).await.unwrap();
    ends.push(length());
    spool.progress(ours(ids[1]), b"half".to_vec(), None);
    settle(&spool).await;
    ends.push(length());
    spool.done(ours(ids[2]), None);
    settle(&spool).await;
    let whole = std::fs::read(&path).unwrap();
    for cut in 32..=whole.len() {
        let copied = tempfile::tempdir().unwrap();
        std::fs::write(copied.path().join(path.file_name().unwrap()), &whole[..cut]).unwrap();
        let recovered = recovery::recover(copied.path()).unwrap();
        let get = |number: usize| recovered.ledger.get(ids[number]);
        assert_eq!(get(0).is_some(), cut >= ends[0], "{cut}");
        assert_eq!(get(1).is_some(), cut >= ends[1], "{cut}");
        assert!(get(1).is_none_or(|live| live.accepted), "{cut}");
        assert!(cut < ends[2] || get(0).unwrap().accepted, "{cut}");
        assert!(cut < ends[2] || cut >= whole.len() - 74 || get(2).is_some_and(|live| !live.accepted), "{cut}");
        assert!(cut < ends[3] || get(1).unwrap().progress.as_deref() == Some(b"half"), "{cut}");
        assert!(cut < whole.len() || get(2).is_none(), "{cut}");
        // The torn end is gone for good: a second look finds the same and nothing to cut.
        let after = std::fs::metadata(segment_of(copied.path())).unwrap().len();
        assert!(after <= cut as u64 && after >= 32);
    }
}

#[tokio::test]
async fn index_and_segments_tell_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = open(directory.path()).await;
    let (big, small, gone) = (MessageId::generate(), MessageId::generate(), MessageId::generate());
    spool.store(ours(big), vec![7; 100_000], body("big"), true).await.unwrap();
    spool.store(ours(small), b"meta".to_vec(), body("small"), false).await.unwrap();
    spool.store(ours(gone), b"meta".to_vec(), body("gone"), true).await.unwrap();
    spool.done(ours(gone), None);
    spool.progress(ours(big), b"state".to_vec(), None);
    spool.shutdown().await;
    for with_index in [true, false] {
        let copied = tempfile::tempdir().unwrap();
        copy(directory.path(), copied.path(), with_index);
        let (again, found) = open(copied.path()).await;
        let told: Vec<_> =
            found.iter().map(|one| (one.id, one.accepted, one.meta.len(), one.progress.as_deref(), one.size)).collect();
        let mut expected = [(big, true, 100_000, Some(&b"state"[..]), 3), (small, false, 4, None, 5)];
        expected.sort_unstable();
        assert_eq!(told, expected);
        assert_eq!(&again.read(big).await.unwrap().unwrap().bytes()[..], b"big");
        assert!(again.read(gone).await.unwrap().is_none());
        again.shutdown().await;
    }
}

#[tokio::test]
async fn a_broken_or_foreign_index_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = open(directory.path()).await;
    let id = MessageId::generate();
    spool.store(ours(id), b"meta".to_vec(), body("body"), true).await.unwrap();
    spool.shutdown().await;
    for damage in ["garbage", "empty", "no conf"] {
        let copied = tempfile::tempdir().unwrap();
        copy(directory.path(), copied.path(), true);
        let db = copied.path().join("index/db");
        match damage {
            "garbage" => std::fs::write(&db, vec![0xA5; 100_000]).unwrap(),
            "empty" => std::fs::write(&db, b"").unwrap(),
            _ => std::fs::write(copied.path().join("index/conf"), b"x").unwrap(),
        }
        let (again, found) = open(copied.path()).await;
        assert_eq!(found.iter().map(|one| one.id).collect::<Vec<_>>(), [id], "{damage}");
        again.shutdown().await;
    }
    // An index whose position's segment is gone holds nothing that could be trusted.
    let copied = tempfile::tempdir().unwrap();
    copy(directory.path(), copied.path(), true);
    std::fs::remove_file(segment_of(copied.path())).unwrap();
    assert!(open(copied.path()).await.1.is_empty());
}

#[tokio::test]
async fn dead_segments_go_and_a_stuck_message_is_carried_along() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(directory.path(), &config(4096), Histogram::new([1.0])).await.unwrap();
    let stuck = MessageId::generate();
    spool.store(ours(stuck), b"stuck".to_vec(), body("stuck body"), true).await.unwrap();
    spool.progress(ours(stuck), b"state".to_vec(), None);
    let first = segment_of(directory.path());
    let large = Bytes::from(vec![b'x'; 1000]);
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while first.exists() {
        assert!(std::time::Instant::now() < deadline, "the first segment goes in time");
        let id = MessageId::generate();
        spool.store(ours(id), Vec::new(), large.clone(), true).await.unwrap();
        spool.done(ours(id), None);
    }
    assert_eq!(&spool.read(stuck).await.unwrap().unwrap().bytes()[..], b"stuck body");
    for with_index in [true, false] {
        let copied = tempfile::tempdir().unwrap();
        if with_index {
            settle(&spool).await;
        }
        copy(directory.path(), copied.path(), with_index);
        let (again, found) = open(copied.path()).await;
        let stuck_found = found.iter().find(|one| one.id == stuck).unwrap();
        assert_eq!((stuck_found.accepted, stuck_found.progress.as_deref()), (true, Some(&b"state"[..])));
        assert_eq!(&again.read(stuck).await.unwrap().unwrap().bytes()[..], b"stuck body");
    }
}

#[tokio::test]
async fn one_process_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let _first = open(directory.path()).await;
    assert!(Spool::open(directory.path(), &config(1), Histogram::new([1.0])).await.is_err());
}

#[tokio::test]
async fn room_is_what_the_configuration_asks_for() {
    let directory = tempfile::tempdir().unwrap();
    let config = SpoolConfig { free_min_bytes: u64::MAX, segment_max_bytes: 1 };
    let (spool, _) = Spool::open(directory.path(), &config, Histogram::new([1.0])).await.unwrap();
    assert!(!spool.has_room());
    assert!(open(tempfile::tempdir().unwrap().path()).await.0.has_room());
}

/// Sends and finishes messages in small segments until `enough`.
async fn churn(spool: &Spool, enough: impl Fn() -> bool) {
    let large = Bytes::from(vec![b'x'; 1000]);
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !enough() {
        assert!(std::time::Instant::now() < deadline, "enough in time");
        let id = MessageId::generate();
        spool.store(ours(id), Vec::new(), large.clone(), true).await.unwrap();
        spool.done(ours(id), None);
    }
}

#[tokio::test]
async fn what_cannot_be_read_for_a_moment_is_not_lost() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(directory.path(), &config(4096), Histogram::new([1.0])).await.unwrap();
    let stuck = MessageId::generate();
    spool.store(ours(stuck), b"stuck".to_vec(), body("stuck body"), true).await.unwrap();
    let (first, away) = (segment_of(directory.path()), directory.path().join("away"));
    std::fs::rename(&first, &away).unwrap();
    churn(&spool, || segment::list(directory.path()).unwrap().len() > 20).await;
    std::fs::rename(&away, &first).unwrap();
    assert_eq!(&spool.read(stuck).await.unwrap().unwrap().bytes()[..], b"stuck body");
    churn(&spool, || !first.exists()).await;
    assert_eq!(&spool.read(stuck).await.unwrap().unwrap().bytes()[..], b"stuck body");
}

#[tokio::test]
async fn damage_is_kept_aside_and_never_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(directory.path(), &config(4096), Histogram::new([1.0])).await.unwrap();
    let stuck = MessageId::generate();
    spool.store(ours(stuck), b"stuck".to_vec(), body("stuck body"), true).await.unwrap();
    let first = segment_of(directory.path());
    let mut bytes = std::fs::read(&first).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&first, &bytes).unwrap();
    churn(&spool, || !first.exists()).await;
    assert_eq!(std::fs::read(first.with_extension("segment.damaged")).unwrap()[..bytes.len()], bytes);
    assert!(spool.read(stuck).await.unwrap().is_none());
    // It is for the next start to ask who has it.
    assert_eq!((spool.lost(), spool.damage()), (vec![stuck], None));
    spool.forget_damage();
    spool.shutdown().await;
    drop(spool);
    let again = reopen(directory.path()).await;
    assert!(again.damage().unwrap().covers(stuck));
    drop(again);
    let again = reopen(directory.path()).await;
    assert!(again.damage().is_some(), "nobody has said yet who has what");
    again.forget_damage();
    drop(again);
    assert!(reopen(directory.path()).await.damage().is_none());
}

/// Behind a life that has let go of the lock by now, or is about to.
async fn reopen(directory: &Path) -> Spool {
    for _ in 0..500 {
        if let Ok((spool, _)) = Spool::open(directory, &config(4096), Histogram::new([1.0])).await {
            return spool;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the spool stays locked");
}

#[tokio::test]
async fn a_torn_end_puts_only_what_came_last_in_doubt() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = open(directory.path()).await;
    for _ in 0..2 {
        spool.store(ours(MessageId::generate()), b"meta".to_vec(), body("body"), true).await.unwrap();
    }
    let whole = std::fs::read(segment_of(directory.path())).unwrap();
    let mut flipped = whole.clone();
    flipped[segment::FILE_HEADER_LENGTH + 3] ^= 1;
    let cases = [(whole.clone(), None), (whole[..whole.len() - 1].to_vec(), Some(false)), (flipped, Some(true))];
    for (bytes, all) in cases {
        let copied = tempfile::tempdir().unwrap();
        std::fs::write(segment::path(copied.path(), 1), bytes).unwrap();
        assert_eq!(reopen(copied.path()).await.damage().map(|damage| damage.since_ms == 0), all);
        assert_eq!(reopen(copied.path()).await.damage().map(|damage| damage.since_ms == 0), all, "it stays noted");
    }
}

#[tokio::test]
async fn a_segment_without_a_readable_header_is_kept_aside() {
    for header in ["zeros", "noise"] {
        let directory = tempfile::tempdir().unwrap();
        let (spool, _) = open(directory.path()).await;
        spool.store(ours(MessageId::generate()), b"meta".to_vec(), body("body"), true).await.unwrap();
        let (path, copied) = (segment_of(directory.path()), tempfile::tempdir().unwrap());
        let mut bytes = std::fs::read(&path).unwrap();
        let noise = |at: u8| if header == "zeros" { 0 } else { at };
        bytes[..32].iter_mut().zip(0..).for_each(|(byte, at)| *byte = noise(at));
        let damaged = copied.path().join(path.file_name().unwrap());
        std::fs::write(&damaged, &bytes).unwrap();
        let (again, found) = Spool::open(copied.path(), &config(4096), Histogram::new([1.0])).await.unwrap();
        assert!(found.is_empty());
        churn(&again, || !damaged.exists()).await;
        assert_eq!(std::fs::read(damaged.with_extension("segment.damaged")).unwrap(), bytes, "{header}");
    }
}

/// A small file system in memory, gone with the test.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", "size=64m", "tmpfs"]).arg(directory.path()).status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(directory))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        std::process::Command::new("umount").arg("-l").arg(self.0.path()).status().unwrap();
    }
}

#[tokio::test]
async fn a_stop_on_a_full_disk_waits_for_room_for_the_last_marks() {
    // Only root can mount a small disk.
    let Some(disk) = SmallDisk::mount() else { return };
    let (directory, ballast) = (disk.0.path().join("spool"), disk.0.path().join("ballast"));
    let (spool, _) = open(&directory).await;
    let (first, second) = (MessageId::generate(), MessageId::generate());
    spool.store(ours(first), b"meta".to_vec(), body("first"), true).await.unwrap();
    spool.store(ours(second), b"meta".to_vec(), body("second"), true).await.unwrap();
    let mut filling = File::create(&ballast).unwrap();
    while io::Write::write_all(&mut filling, &[0; 4096]).is_ok() {}
    drop(filling);
    spool.progress(ours(second), vec![1; 10_000], None);
    spool.done(ours(first), None);
    let refused = spool.store(ours(MessageId::generate()), vec![1; 10_000], Bytes::new(), true).await;
    assert!(matches!(refused, Err(SpoolError::Full(_))), "{refused:?}");
    let stopping = tokio::spawn(async move { spool.shutdown().await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    std::fs::remove_file(&ballast).unwrap();
    stopping.await.unwrap();
    let (again, found) = open(&directory).await;
    let found: Vec<_> = found.iter().map(|one| (one.id, one.progress.as_ref().map(|it| it.len()))).collect();
    assert_eq!(found, [(second, Some(10_000))]);
    again.shutdown().await;
}
