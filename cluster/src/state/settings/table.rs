//! THE table of settings.

use super::patch::Level;
use super::value::{
    Field, IdentificationHeader, IdentificationMethod, Kind, LockedResponse, NotifyAdmin, QuarantineResponse,
    ScannerFailure, ValidSender, Value,
};
use crate::command::LimitUnit;

const MINUTES_OF_WEEK: u64 = 7 * 24 * 60;
const LIMIT_MAX: u64 = 1_000_000_000;

const LIMIT: Kind = Kind::Number { min: 0, max: LIMIT_MAX, unit: "(0 = unlimited)" };
const SCORE: Kind = Kind::Number { min: 0, max: 1_000, unit: "thousandths" };
const COUNT: Kind = Kind::Number { min: 0, max: 100, unit: "(0 = rule off)" };
const WEEK_OF_MINUTES: Kind = Kind::Number { min: 1, max: MINUTES_OF_WEEK, unit: "min" };

/// One row of the table, for help texts and docs.
#[derive(Clone, Debug)]
pub struct Row {
    pub key: &'static str,
    /// `true or false`, `1…10080 min`, …
    pub expects: String,
    pub default: Value,
    pub help: &'static str,
    pub cluster_only: bool,
    /// The lowest level that may set it.
    pub lowest: Level,
}

/// Every setting in the order of the table.
pub fn rows() -> Vec<Row> {
    let defaults = Settings::default();
    let row = |entry: &Entry| Row {
        key: entry.key,
        expects: entry.kind.expects(),
        default: (entry.get)(&defaults),
        help: entry.help,
        cluster_only: entry.lowest == Level::Cluster,
        lowest: entry.lowest,
    };
    TABLE.iter().map(row).collect()
}

/// A row as the code uses it.
pub(super) struct Entry {
    pub(super) key: &'static str,
    pub(super) kind: Kind,
    pub(super) lowest: Level,
    pub(super) help: &'static str,
    pub(super) get: fn(&Settings) -> Value,
    /// Leaves the setting alone where the value has another type.
    pub(super) set: fn(&mut Settings, &Value),
}

/// The position of a row, by its key.
pub(super) fn find(key: &str) -> Option<usize> {
    TABLE.iter().position(|entry| entry.key == key)
}

impl Settings {
    /// Every key with its value, in the order of the table.
    pub fn values(&self) -> impl Iterator<Item = (&'static str, Value)> + '_ {
        TABLE.iter().map(|entry| (entry.key, (entry.get)(self)))
    }

    pub fn value(&self, key: &str) -> Option<Value> {
        find(key).map(|row| (TABLE[row].get)(self))
    }
}

macro_rules! settings {
    ($( $(#[$doc:meta])* $field:ident ($key:literal, $lowest:ident) : $type:ty = $default:expr, $kind:expr, $help:literal; )*) => {
        /// The effective settings of one User (or, from [`crate::State::defaults`], of the cluster).
        #[derive(Clone, Debug, PartialEq)]
        pub struct Settings { $( $(#[$doc])* pub $field: $type, )* }

        impl Default for Settings {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        pub(super) static TABLE: &[Entry] = &[$( Entry {
            key: $key,
            kind: $kind,
            lowest: Level::$lowest,
            help: $help,
            get: |settings| settings.$field.to_value(),
            set: |settings, value| if let Some(value) = <$type as Field>::from_value(value) { settings.$field = value },
        }, )*];
    };
}

settings! {
    automatic_lock ("automatic_lock", User): bool = true, Kind::Bool,
        "Lock the User when abuse is detected: on for a person, off for a smarthost";
    lock_timeout_minutes ("lock_timeout", User): u64 = 30, WEEK_OF_MINUTES,
        "How long an automatic lock lasts";
    max_unlocks ("max_unlocks", User): u64 = 1, Kind::Number { min: 0, max: 100, unit: "" },
        "How often the timeout unlocks before only an Admin can";
    lock_on_limit ("lock_on_limit", User): bool = false, Kind::Bool,
        "Exceeding a limit counts as abuse";
    block_spam ("block_spam", User): bool = true, Kind::Bool,
        "Spam messages are not delivered";
    quarantine_response ("quarantine_response", User): QuarantineResponse = QuarantineResponse::Rejected,
        Kind::Choice(QuarantineResponse::NAMES), "What the client hears when its message is held as spam";
    limits_enabled ("limits_enabled", User): bool = true, Kind::Bool,
        "Master switch of limit_per_minute to limit_unit";
    limit_per_minute ("limit_per_minute", User): u64 = 60, LIMIT, "Accepted per sliding minute";
    limit_per_hour ("limit_per_hour", User): u64 = 500, LIMIT, "Accepted per sliding hour";
    limit_per_day ("limit_per_day", User): u64 = 2_000, LIMIT, "Accepted per sliding day";
    limit_per_week ("limit_per_week", User): u64 = 5_000, LIMIT, "Accepted per sliding week";
    limit_per_month ("limit_per_month", User): u64 = 20_000, LIMIT, "Accepted per sliding 30 days";
    limit_unit ("limit_unit", User): LimitUnit = LimitUnit::Messages, Kind::Choice(LimitUnit::NAMES),
        "What the windows count, from now on";
    max_recipients_per_day ("max_recipients_per_day", User): u64 = 0,
        Kind::Number { min: 0, max: 10_000_000, unit: "(0 = unlimited)" },
        "Different recipient addresses per sliding 24 hours, counted from when it is set";
    invalid_recipient_limit ("invalid_recipient_limit", User): u64 = 50,
        Kind::Number { min: 0, max: 1_000_000, unit: "(0 = rule off)" },
        "Recipients refused as invalid per sliding 24 hours that count as abuse";
    max_message_size ("max_message_size", User): u64 = 52_428_800,
        Kind::Number { min: 1_024, max: 1 << 31, unit: "bytes" }, "Largest message";
    max_connections ("max_connections", User): u64 = 100,
        Kind::Number { min: 0, max: 100_000, unit: "(0 = unlimited)" }, "Concurrent sessions of the User in the whole cluster";
    /// Domains, `.example.com` standing for every domain below it; empty = no requirement.
    require_from_domain ("require_from_domain", User): Vec<String> = Vec::new(), Kind::Domains,
        "Envelope sender and header From must be in one of these";
    valid_sender_required ("valid_sender_required", User): ValidSender = ValidSender::Domain,
        Kind::Choice(ValidSender::NAMES), "The sender's domain must have MX or A; mailbox does the same as domain, there is no callout to its MX yet";
    /// `local@domain`, `@domain`, `*` within.
    allowed_senders ("allowed_senders", User): Vec<String> = Vec::new(), Kind::Patterns,
        "Only these senders, where not empty";
    blocked_senders ("blocked_senders", User): Vec<String> = Vec::new(), Kind::Patterns, "Never these senders";
    identification_method ("identification_method", User): IdentificationMethod = IdentificationMethod::None,
        Kind::Choice(IdentificationMethod::NAMES), "How to recognise the person inside a smarthost's mail";
    identification_headers ("identification_headers", User): Vec<IdentificationHeader> = Vec::new(), Kind::Headers,
        "Headers that name the identity; the first present wins";
    lock_identities ("lock_identities", User): bool = true, Kind::Bool,
        "Abuse locks the identity and not the User";
    locked_response ("locked_response", User): LockedResponse = LockedResponse::Defer,
        Kind::Choice(LockedResponse::NAMES), "Reply at the end of DATA while locked";
    dkim_selector ("dkim_selector", User): String = "default".to_owned(), Kind::Label,
        "Key of the author's domain to sign with: a mailbox or domain User signs for its own domain and those of require_from_domain, a network or a User with an identification_method for any domain that has a key";
    bounce_tagging ("bounce_tagging", User): bool = false, Kind::Bool, "Tag the reverse-path (BATV); has no effect yet";
    max_days_to_retry ("max_days_to_retry", User): u64 = 4, Kind::Number { min: 1, max: 30, unit: "days" },
        "After that a message bounces to its sender";
    delivery_pool ("delivery_pool", User): String = "default".to_owned(), Kind::Label,
        "Source addresses and HELO name for delivery; has no effect yet";
    notify_admin ("notify_admin", User): NotifyAdmin = NotifyAdmin::Locks, Kind::Choice(NotifyAdmin::NAMES),
        "Mail to the domain's admin contact; has no effect yet";
    // Of a domain as a whole: counted over all its Users, in the domain's own `limit_unit`.
    domain_limit_per_minute ("domain_limit_per_minute", Domain): u64 = 0, LIMIT, "Accepted per sliding minute from the whole domain";
    domain_limit_per_hour ("domain_limit_per_hour", Domain): u64 = 0, LIMIT, "Accepted per sliding hour from the whole domain";
    domain_limit_per_day ("domain_limit_per_day", Domain): u64 = 0, LIMIT, "Accepted per sliding day from the whole domain";
    domain_limit_per_week ("domain_limit_per_week", Domain): u64 = 0, LIMIT, "Accepted per sliding week from the whole domain";
    domain_limit_per_month ("domain_limit_per_month", Domain): u64 = 0, LIMIT, "Accepted per sliding 30 days from the whole domain";
    // Cluster-wide from here on: domains and users cannot change these.
    ip_authentication ("ip_authentication", Cluster): bool = true, Kind::Bool, "Network Users may send";
    /// Thousandths: 900 = 0.90.
    spam_score ("spam_score", Cluster): u64 = 900, SCORE, "Score from which a message is spam; a fraction such as 0.9 is read as well";
    unsure_score ("unsure_score", Cluster): u64 = 500, SCORE, "Score from which a message is unsure";
    scanner_failure ("scanner_failure", Cluster): ScannerFailure = ScannerFailure::Defer,
        Kind::Choice(ScannerFailure::NAMES), "When a scanner fails or times out";
    null_sender_limit_per_hour ("null_sender_limit_per_hour", Cluster): u64 = 100, LIMIT,
        "Messages with the null reverse-path per User and sliding hour; they count nowhere else";
    abuse_virus_count ("abuse_virus_count", Cluster): u64 = 1, COUNT, "Viruses within 24 hours that count as abuse";
    abuse_phish_count ("abuse_phish_count", Cluster): u64 = 2, COUNT, "Phish messages that count as abuse";
    abuse_phish_minutes ("abuse_phish_minutes", Cluster): u64 = 1_440, WEEK_OF_MINUTES, "Within this time";
    abuse_spam_count ("abuse_spam_count", Cluster): u64 = 5, COUNT, "Spam messages that count as abuse";
    abuse_spam_minutes ("abuse_spam_minutes", Cluster): u64 = 10, WEEK_OF_MINUTES, "Within this time";
    abuse_mean_messages ("abuse_mean_messages", Cluster): u64 = 10, Kind::Number { min: 1, max: 10_000, unit: "messages" },
        "Fewer messages have no mean score";
    /// Mean scores in thousandths over 10 minutes, 1 hour, 24 hours; 0 = rule off.
    abuse_mean_10_minutes ("abuse_mean_10_minutes", Cluster): u64 = 800, SCORE, "Mean score over 10 minutes that counts as abuse (0 = rule off)";
    abuse_mean_hour ("abuse_mean_hour", Cluster): u64 = 700, SCORE, "Mean score over an hour that counts as abuse (0 = rule off)";
    abuse_mean_day ("abuse_mean_day", Cluster): u64 = 600, SCORE, "Mean score over 24 hours that counts as abuse (0 = rule off)";
    /// Failures of login within an hour after which an address is put on the authentication block list.
    auth_failures_max ("auth_failures_max", Cluster): u64 = 10, Kind::Number { min: 1, max: 1_000, unit: "failures" },
        "Failed logins within an hour that put an address on the authentication block list";
    auth_block_minutes ("auth_block_minutes", Cluster): u64 = 60, WEEK_OF_MINUTES,
        "How long an address stays on the authentication block list";
}
