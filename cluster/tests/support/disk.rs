//! A disk whose power can be cut.

use std::fs;
use std::path::PathBuf;
use std::process::{Command as Process, Output};
use std::time::{Duration, Instant};

const IMAGE_BYTES: u64 = 2 * 1024 * 1024 * 1024;
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
pub(crate) struct Disk {
    device: String,
    mount: PathBuf,
    _directory: tempfile::TempDir,
}

impl Disk {
    /// The reason where there can be none.
    pub(crate) fn new() -> Result<Self, String> {
        let directory = tempfile::tempdir().unwrap();
        let (image, mount) = (directory.path().join("image"), directory.path().join("mount"));
        fs::File::create(&image).unwrap().set_len(IMAGE_BYTES).unwrap();
        fs::create_dir(&mount).unwrap();
        let image = image.to_str().unwrap();
        run("mkfs.ext4", &["-q", "-F", image])?;
        let device = run("losetup", &["--find", "--show", image])?;
        let disk = Self { device, mount, _directory: directory };
        disk.mount()?;
        disk.cut()?;
        disk.restore();
        Ok(disk)
    }

    fn mount(&self) -> Result<(), String> {
        run("mount", &["-t", "ext4", &self.device, self.mount.to_str().unwrap()]).map(drop)
    }

    pub(crate) fn cut(&self) -> Result<(), String> {
        run("python3", &["-c", SHUT_DOWN, self.mount.to_str().unwrap()]).map(drop)
    }

    /// Everything that used it must have ended.
    pub(crate) fn restore(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while let Err(reason) = run("umount", &[self.mount.to_str().unwrap()]) {
            assert!(Instant::now() < deadline, "{reason}");
            std::thread::sleep(Duration::from_millis(20));
        }
        self.mount().unwrap();
    }

    pub(crate) fn home(&self, name: &str) -> PathBuf {
        self.mount.join(name)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(run("umount", &["-l", self.mount.to_str().unwrap_or_default()]));
        drop(run("losetup", &["-d", &self.device]));
    }
}
