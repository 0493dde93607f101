//! A power cut loses nothing acknowledged.
//!
//! SIGKILL leaves the page cache as it is and so never shows a missing fsync. Here the node writes to an ext4 file system of
//! its own on a loop device, which is shut down under it without writing its journal or its cached pages; after unmounting
//! and mounting, only what was synced is there. Needs root and ext4; skipped with the reason where they are missing.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "tests; a skip must be seen")]
#![expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "deadlines")]

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use outgate_cluster::{Cluster, OpenError};
use support::disk::Disk;
use support::{acknowledged, assert_known, listen, options, spawn_child, wait_until};

const CREATION_ROUNDS: u32 = 8;
const LOAD_ROUNDS: u32 = 12;

/// Not a test of its own: the process whose disk goes away.
#[tokio::test(flavor = "multi_thread")]
async fn child_under_load() {
    if let Some(directory) = std::env::var_os(support::CHILD_DIRECTORY) {
        support::load_forever(Path::new(&directory)).await;
    }
}

/// Runs the child in `home`, cuts the power `delay` after its start or its first decisions, and returns what it said.
fn run_and_cut(disk: &Disk, home: &Path, started: bool, delay: Duration) -> Vec<String> {
    let mut child = spawn_child("child_under_load", home);
    let heard = listen(&mut child);
    if started {
        wait_until("the first acknowledgement", || heard.lines() > 10);
    }
    std::thread::sleep(delay);
    disk.cut().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(child.kill());
    child.wait().unwrap();
    heard.finish()
}

async fn assert_all_there(home: &Path, lines: &[String], round: u32) -> usize {
    let acknowledged = acknowledged(lines);
    match Cluster::open(options(home)).await {
        Ok(cluster) => {
            assert_known(&cluster, &acknowledged);
            cluster.shutdown().await;
        }
        Err(OpenError::NotInitialised(_)) => assert!(acknowledged.is_empty(), "round {round}"),
        Err(error) => panic!("round {round}: {error}"),
    }
    acknowledged.len()
}

#[test]
fn a_power_cut_loses_nothing_acknowledged() {
    let disk = match Disk::new() {
        Ok(disk) => disk,
        Err(reason) => return eprintln!("skipped: no power can be cut here: {reason}"),
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for round in 0..CREATION_ROUNDS {
        let home = disk.home(&format!("node{round}"));
        let lines = run_and_cut(&disk, &home, false, Duration::from_millis(u64::from(round) * 17));
        disk.restore();
        runtime.block_on(assert_all_there(&home, &lines, round));
    }
    let mut total = 0;
    for round in 0..LOAD_ROUNDS {
        let home = disk.home("node");
        let lines = run_and_cut(&disk, &home, true, Duration::from_millis(u64::from(round * 131 % 1_500)));
        assert!(lines.iter().any(|line| line.starts_with("FAILED writing the ")), "{:?}", lines.last());
        disk.restore();
        total += runtime.block_on(assert_all_there(&home, &lines, round));
    }
    assert!(total > 500, "only {total} acknowledged decisions were tested");
}
