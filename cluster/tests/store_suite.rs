//! openraft's own test suite on our store.

#![expect(clippy::unwrap_used, reason = "tests")]

use openraft::testing::{StoreBuilder, Suite};
use outgate_cluster::raft::{StorageError, TypeConfig};
use outgate_cluster::store::identity::Home;
use outgate_cluster::store::log::Log;
use outgate_cluster::store::machine::Machine;
use outgate_cluster::store::{self, Failure, Limits};
use tempfile::TempDir;

struct FreshStore;

impl StoreBuilder<TypeConfig, Log, Machine, (Home, TempDir)> for FreshStore {
    async fn build(&self) -> Result<((Home, TempDir), Log, Machine), StorageError> {
        let directory = tempfile::tempdir().unwrap();
        Home::init(directory.path()).unwrap();
        let home = Home::open(directory.path()).unwrap();
        let opened = store::open(&home, &Limits::default(), &Failure::default()).unwrap();
        Ok(((home, directory), opened.log, opened.machine))
    }
}

#[test]
fn openrafts_suite_passes() {
    Suite::test_all(FreshStore).unwrap();
}
