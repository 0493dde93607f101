//! A power cut loses nothing acknowledged.
//!
//! SIGKILL leaves the page cache as it is and so never shows a missing fsync. Here the node writes to an ext4 file system of
//! its own on a loop device, which is shut down under it without writing its journal or its cached pages; after unmounting
//! and mounting, only what was synced is there. Needs root and ext4; skipped with the reason where they are missing.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "tests; a skip must be seen")]
#![expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "deadlines")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Output};
use std::time::{Duration, Instant};

use outgate_cluster::{Cluster, OpenError};
use support::{acknowledged, assert_known, listen, options, spawn_child, wait_until};

const CREATION_ROUNDS: u32 = 8;
const LOAD_ROUNDS: u32 = 12;
const IMAGE_BYTES: u64 = 512 * 1024 * 1024;
/// `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH`.
const SHUT_DOWN: &str = "import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output: Output =
        Process::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// An ext4 file system whose power can be cut.
struct Disk {
    device: String,
    mount: PathBuf,
    _directory: tempfile::TempDir,
}

impl Disk {
    fn new() -> Result<Self, String> {
        let directory = tempfile::tempdir().unwrap();
        let (image, mount) = (directory.path().join("image"), directory.path().join("mount"));
        fs::File::create(&image).unwrap().set_len(IMAGE_BYTES).unwrap();
        fs::create_dir(&mount).unwrap();
        let image = image.to_str().unwrap();
        run("mkfs.ext4", &["-q", "-F", image])?;
        let device = run("losetup", &["--find", "--show", image])?;
        let disk = Self { device, mount, _directory: directory };
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&self) -> Result<(), String> {
        run("mount", &["-t", "ext4", &self.device, self.mount.to_str().unwrap()]).map(drop)
    }

    fn cut(&self) -> Result<(), String> {
        run("python3", &["-c", SHUT_DOWN, self.mount.to_str().unwrap()]).map(drop)
    }

    fn restore(&self) {
        wait_until("unmounting", || run("umount", &[self.mount.to_str().unwrap()]).is_ok());
        self.mount().unwrap();
    }

    fn home(&self, name: &str) -> PathBuf {
        self.mount.join(name)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(run("umount", &["-l", self.mount.to_str().unwrap_or_default()]));
        drop(run("losetup", &["-d", &self.device]));
    }
}

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
    let disk = match Disk::new().and_then(|disk| disk.cut().map(|()| disk)) {
        Ok(disk) => disk,
        Err(reason) => return eprintln!("skipped: no power can be cut here: {reason}"),
    };
    disk.restore();
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
