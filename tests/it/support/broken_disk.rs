//! Disks that are full, and disks on which nothing can be synced.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::node::TestNode;
use super::wait_for;

/// A small file system in memory, gone with the test.
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    pub fn mount(megabytes: u32) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
            .arg(directory.path())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(directory));
        }
        println!("skipped: only root can mount a small disk");
        None
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A node's directory whose data is on this disk; the node's output is not.
    pub fn directory(&self) -> tempfile::TempDir {
        let (directory, data) = (tempfile::tempdir().unwrap(), self.path().join("data"));
        std::fs::create_dir(&data).unwrap();
        std::os::unix::fs::symlink(&data, directory.path().join("data")).unwrap();
        directory
    }

    /// Writes until there is no byte left.
    pub fn fill(&self) {
        assert!(!self.write(u64::MAX >> 20), "the disk should be full");
    }

    /// Writes until only so much is left.
    pub fn fill_but(&self, megabytes: u64) {
        let disk = rustix::fs::statvfs(self.path()).unwrap();
        assert!(self.write(((disk.f_bavail * disk.f_frsize) >> 20) - megabytes), "the disk is full");
    }

    fn write(&self, megabytes: u64) -> bool {
        let (ballast, count) = (format!("of={}", self.path().join("ballast").display()), format!("count={megabytes}"));
        let written = Command::new("dd").args(["if=/dev/zero", "bs=1M", &count, &ballast]).output().unwrap();
        written.status.success()
    }

    /// Makes room again.
    pub fn empty(&self) {
        std::fs::remove_file(self.path().join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(self.path()).status().unwrap();
    }
}

/// From now on each sync by the node's thread of this name fails with this error. `None`, said aloud, where nobody may trace.
pub fn fail_syncs(node: &TestNode, thread: &str, error: &str) -> Option<Child> {
    let tasks = format!("/proc/{}/task", node.pid());
    let names = |task: &Path| std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim_end() == thread);
    let mut tasks = std::fs::read_dir(tasks).unwrap().flatten().map(|task| task.path());
    let task = tasks.find(|task| names(task)).unwrap_or_else(|| panic!("no thread is called {thread}"));
    let attached = Command::new("strace")
        .args([
            "-q",
            "-e",
            "trace=fdatasync",
            "-e",
            &format!("inject=fdatasync:error={error}"),
            "-o",
            "/dev/null",
            "-p",
        ])
        .arg(task.file_name().unwrap())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut strace) = attached else {
        println!("skipped: there is no strace");
        return None;
    };
    let tracer = format!("TracerPid:\t{}", strace.id());
    let status = task.join("status");
    let traced = || std::fs::read_to_string(&status).is_ok_and(|text| text.lines().any(|line| line == tracer));
    let is_traced = wait_for("strace", || {
        let ended = strace.try_wait().unwrap().is_some();
        // The first sync that fails may have ended thread and strace already.
        (ended || traced()).then(|| !ended || !task.exists())
    });
    if !is_traced {
        println!("skipped: strace may not trace here");
    }
    is_traced.then_some(strace)
}
