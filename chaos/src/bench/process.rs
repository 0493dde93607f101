//! Servers under test as child processes.

use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const START_PATIENCE: Duration = Duration::from_secs(120);
const END_PATIENCE: Duration = Duration::from_secs(20);

/// Waits until something accepts connections there.
pub(crate) fn wait_for_port(address: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + START_PATIENCE;
    while TcpStream::connect(address).is_err() {
        if Instant::now() > deadline {
            bail!("nothing listens on {address} after {START_PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// SIGTERM, and after some patience SIGKILL.
pub(crate) fn end(process: &mut Child) {
    let told = Command::new("kill").args(["-TERM", &process.id().to_string()]).status();
    let deadline = Instant::now() + END_PATIENCE;
    while told.is_ok() && Instant::now() < deadline {
        if process.try_wait().is_ok_and(|ended| ended.is_some()) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // A process that cannot be killed has ended already.
    if process.kill().is_ok() {
        process.wait().ok();
    }
}
