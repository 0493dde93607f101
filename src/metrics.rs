//! Every metric of a node, in one table. No addresses or logins as labels: their number has no bound.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Seconds; from a fraction of a millisecond to the longest patience of a client.
const LATENCY_BUCKETS: [f64; 12] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

/// One label: the class, reply code, status or kind that the metric's help names.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Kind {
    pub kind: &'static str,
}

impl From<&'static str> for Kind {
    fn from(kind: &'static str) -> Self {
        Self { kind }
    }
}

macro_rules! metrics {
    ($( $field:ident : $type:ty = $make:expr, $name:literal, $help:literal; )*) => {
        /// The counters of a node, updated from anywhere.
        pub struct Metrics {
            registry: Registry,
            $( pub $field: $type, )*
        }

        impl Default for Metrics {
            fn default() -> Self {
                let mut registry = Registry::with_prefix("outgate");
                $( let $field: $type = $make; registry.register($name, $help, $field.clone()); )*
                Self { registry, $( $field, )* }
            }
        }
    };
}

metrics! {
    connections_open: Gauge = Gauge::default(), "connections_open", "Open client connections";
    connections: Family<Kind, Counter> = Family::default(), "connections", "Client connections by how they began: accepted, refused, blocked";
    logins: Family<Kind, Counter> = Family::default(), "logins", "Logins by result: ok, failed, blocked, cached";
    replies: Family<Kind, Counter> = Family::default(), "end_of_data_replies", "Answers at the end of DATA by class of reply: 2xx, 4xx, 5xx";
    messages: Family<Kind, Counter> = Family::default(), "messages", "Judged messages by class";
    locks: Family<Kind, Counter> = Family::default(), "locks", "Locks by cause";
    submission_seconds: Histogram = Histogram::new(LATENCY_BUCKETS), "submission_seconds", "From the end of DATA to its answer";
    admission_seconds: Histogram = Histogram::new(LATENCY_BUCKETS), "admission_seconds", "Decision of the replicated state";
    spool_sync_seconds: Histogram = Histogram::new(LATENCY_BUCKETS), "spool_sync_seconds", "One fdatasync of the spool";
    queue_messages: Gauge = Gauge::default(), "queue_messages", "Messages in the delivery queue";
    queue_frozen: Gauge = Gauge::default(), "queue_frozen", "Frozen messages in the delivery queue";
    deliveries: Family<Kind, Counter> = Family::default(), "deliveries", "Recipients by outcome of an attempt: delivered, deferred, bounced, expired";
    delivery_connections: Family<Kind, Counter> = Family::default(), "delivery_connections", "Connections to next hops: opened, reused, failed";
    mirror_copies_missing: Gauge = Gauge::default(), "mirror_copies_missing", "Messages of this node without a copy on another, though they should have one";
    mirror_copies_remade: Counter<u64, AtomicU64> = Counter::default(), "mirror_copies_remade", "Messages that got a new mirror because their old one was lost";
    messages_taken_over: Counter<u64, AtomicU64> = Counter::default(), "messages_taken_over", "Messages taken over from nodes that are down";
    messages_yielded: Counter<u64, AtomicU64> = Counter::default(), "messages_yielded", "Messages that others had taken over when this node came back";
    duplicates: Counter<u64, AtomicU64> = Counter::default(), "duplicates", "Messages that this node may have delivered and another that took them over as well";
    quarantined: Counter<u64, AtomicU64> = Counter::default(), "quarantined", "Messages put into quarantine";
}

impl Metrics {
    /// The text that `/metrics` answers (OpenMetrics 1.0).
    pub fn encode(&self) -> String {
        let mut text = String::new();
        if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            tracing::error!(%error, "cannot encode metrics");
        }
        text
    }
}
