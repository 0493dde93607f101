//! What the tests stand on: real nodes, a client that speaks line by line, next hops that keep what they get.

pub mod broken_disk;
pub mod client;
pub mod cluster;
#[path = "../../../cluster/tests/support/disk.rs"]
pub mod disk;
pub mod dns;
pub mod exim;
pub mod load;
pub mod net;
pub mod node;
pub mod peer;
pub mod postfix;
pub mod sink;

use std::time::{Duration, Instant};

/// Waits until `condition` gives a value; fails with `what` after ten seconds.
pub fn wait_for<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    wait_at_most(Duration::from_secs(10), what, condition)
}

pub fn wait_at_most<T>(patience: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {patience:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
