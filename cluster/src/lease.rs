//! The right to act for the mail that a node owns, held on time.
//!
//! Each node asks the leader for its lease twice a second and holds it for [`LEASE`] from the moment *before* it asked. The
//! leader notes the moment *after* the question came, and declares a node down ([`Command::NodeDown`]) only when it has
//! heard nothing for longer than that. So whoever takes over from a node that was declared down knows that it has stopped,
//! whatever the network did to it, as long as clocks do not differ in their speed by more than [`DRIFT_MAX`] in a lease.
//!
//! Invariants:
//! * A lease is granted only by a leader whose majority confirmed it after the question, and counts only once the node has
//!   applied all that was decided before that: a node that was declared down sees it before it may act.
//! * A new leader knows nothing of leases granted before: it waits a whole one from its own beginning.
//! * From the moment at which the leader makes up its mind to declare a node down, it grants it nothing until that is
//!   decided; and nobody else decides it: a leader that was cut off knows nothing of leases that its successor grants.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Clock;
use crate::handle::Inner;
use crate::network::message::Request;
use crate::state::State;

/// Long enough for a process to be restarted without its mail changing hands.
const LEASE: Duration = Duration::from_secs(5);
const DRIFT_MAX: Duration = Duration::from_secs(1);
const INTERVAL: Duration = Duration::from_millis(500);
/// A node without a lease takes no mail.
const INTERVAL_WITHOUT: Duration = Duration::from_millis(100);

/// This node's own lease. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Lease {
    clock: Clock,
    /// By the uncorrected clock; 0 = it never had one.
    until_ms: Arc<AtomicU64>,
}

impl Lease {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, until_ms: Arc::default() }
    }

    pub(crate) fn holds(&self) -> bool {
        self.clock.raw_ms() < self.until_ms.load(Ordering::Acquire)
    }

    fn extend(&self, asked_ms: u64) {
        self.until_ms.fetch_max(asked_ms.saturating_add(millis(LEASE)), Ordering::AcqRel);
    }
}

/// Asks for this node's lease again and again, until its task is ended.
pub(crate) async fn run(inner: Arc<Inner>) {
    loop {
        let asked_ms = inner.clock.raw_ms();
        if inner.read_after(&Request::Lease).await.is_ok() && inner.replica.read(|state| state.ownership(inner.node)).up
        {
            inner.lease.extend(asked_ms);
        }
        tokio::time::sleep(if inner.lease.holds() { INTERVAL } else { INTERVAL_WITHOUT }).await;
    }
}

/// The leader's side: when each node last asked. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Watch {
    clock: Clock,
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    term: u64,
    nodes: BTreeMap<u64, Heard>,
}

struct Heard {
    at_ms: u64,
    /// Under which the node owns mail; what was made up about an earlier one is over.
    owner_epoch: u64,
    condemned: bool,
}

impl Watch {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, table: Arc::default() }
    }

    /// A node asks. False = it may not have a lease: it is about to be declared down.
    pub(crate) fn note(&self, node: u64) -> bool {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        match table.nodes.get_mut(&node) {
            Some(heard) => {
                heard.at_ms = self.clock.raw_ms();
                !heard.condemned
            }
            // Noted with the next look at all owners, as if it had asked then.
            None => true,
        }
    }

    /// Those nodes that own mail and were not heard for longer than a lease, to be declared down by the leader of this term.
    pub(crate) fn condemn(&self, term: u64, owners: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let now_ms = self.clock.raw_ms();
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.term != term {
            *table = Table { term, nodes: BTreeMap::new() };
        }
        table.nodes.retain(|node, _| owners.iter().any(|(id, _)| id == node));
        for &(node, owner_epoch) in owners {
            let fresh = || Heard { at_ms: now_ms, owner_epoch, condemned: false };
            let heard = table.nodes.entry(node).or_insert_with(fresh);
            if heard.owner_epoch != owner_epoch {
                *heard = fresh();
            }
            heard.condemned |= now_ms.saturating_sub(heard.at_ms) > millis(LEASE + DRIFT_MAX);
        }
        let condemned = |node: &u64| table.nodes.get(node).is_some_and(|heard| heard.condemned);
        owners.iter().filter(|(node, _)| condemned(node)).copied().collect()
    }
}

/// Nodes that own mail, with their owner epochs.
pub(crate) fn owners(state: &State) -> Vec<(u64, u64)> {
    let nodes = state.nodes().into_iter();
    nodes.filter(|node| node.ownership.up).map(|node| (node.id, node.ownership.epoch)).collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
