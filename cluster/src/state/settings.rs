//! THE table of settings: name, type, unit, range, default, help and levels, each written once.
//! Panel, API, CLI, CSV and docs are derived from it.

use serde::{Deserialize, Serialize};

/// The effective settings of one User (or, from [`crate::State::defaults`], of the cluster).
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub automatic_lock: bool,
    pub lock_timeout_minutes: u64,
    pub max_unlocks: u64,
    pub lock_on_limit: bool,
    pub block_spam: bool,
    pub quarantine_response: QuarantineResponse,
    pub limits_enabled: bool,
    pub limit_per_minute: u64,
    pub limit_per_hour: u64,
    pub limit_per_day: u64,
    pub limit_per_week: u64,
    pub limit_per_month: u64,
    pub limit_unit: crate::command::LimitUnit,
    pub max_recipients_per_day: u64,
    pub invalid_recipient_limit: u64,
    pub max_message_size: u64,
    pub max_connections: u64,
    /// Domains, `.example.com` standing for every domain below it; empty = no requirement.
    pub require_from_domain: Vec<String>,
    pub valid_sender_required: ValidSender,
    /// `local@domain`, `@domain`, `*` within.
    pub allowed_senders: Vec<String>,
    pub blocked_senders: Vec<String>,
    pub identification_method: IdentificationMethod,
    pub identification_headers: Vec<IdentificationHeader>,
    pub lock_identities: bool,
    pub locked_response: LockedResponse,
    pub dkim_selector: String,
    pub bounce_tagging: bool,
    pub max_days_to_retry: u64,
    pub delivery_pool: String,
    pub notify_admin: NotifyAdmin,
    // Cluster-wide from here on: domains and users cannot change these.
    pub ip_authentication: bool,
    /// Thousandths: 900 = 0.90.
    pub spam_score: u64,
    pub unsure_score: u64,
    pub scanner_failure: ScannerFailure,
    pub null_sender_limit_per_hour: u64,
    pub abuse_virus_count: u64,
    pub abuse_phish_count: u64,
    pub abuse_phish_minutes: u64,
    pub abuse_spam_count: u64,
    pub abuse_spam_minutes: u64,
    pub abuse_mean_messages: u64,
    /// Mean scores in thousandths over 10 minutes, 1 hour, 24 hours.
    pub abuse_mean_10_minutes: u64,
    pub abuse_mean_hour: u64,
    pub abuse_mean_day: u64,
    /// Failures of login within an hour after which an address is put on the authentication block list.
    pub auth_failures_max: u64,
    pub auth_block_minutes: u64,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
pub enum QuarantineResponse {
    Rejected,
    Accepted,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
pub enum ValidSender {
    Off,
    Domain,
    Mailbox,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
pub enum IdentificationMethod {
    None,
    EnvelopeSender,
    AuthenticationUser,
    Header,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct IdentificationHeader {
    pub name: String,
    pub regex: Option<String>,
    pub remove: bool,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
pub enum LockedResponse {
    Defer,
    Reject,
    Discard,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
pub enum NotifyAdmin {
    Off,
    Locks,
    All,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
pub enum ScannerFailure {
    Defer,
    Accept,
}

/// A typed value of a setting; which one a key takes is in its row of the table.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub enum Value {
    Bool(bool),
    Number(u64),
    /// Enumerations and names.
    Text(String),
    List(Vec<String>),
    Headers(Vec<IdentificationHeader>),
}

/// Changes of settings by key; `None` = `inherit` from the level above.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
pub struct Patch(pub Vec<(String, Option<Value>)>);

/// A setting as it holds for a User, with the level that set it.
#[derive(Clone, Debug)]
pub struct Effective {
    pub key: &'static str,
    pub value: Value,
    /// `cluster`, `domain` or `user`.
    pub from: &'static str,
}

/// At which level a patch is meant to be used: some settings exist only for the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    Cluster,
    Domain,
    User,
}

#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum SettingError {
    #[error("`{0}` is not a setting: `outgate settings show` lists them")]
    Unknown(String),
    #[error("{key}: `{given}` does not fit: give {expected}")]
    Value { key: &'static str, given: String, expected: String },
    #[error("{0} is a setting of the cluster: use `outgate settings set`")]
    ClusterOnly(&'static str),
    #[error("`{0}` is not KEY=VALUE")]
    NoValue(String),
}

impl Patch {
    /// Reads `KEY=VALUE` texts as the CLI, CSV and API give them; `VALUE` may be `inherit`.
    /// Lists are separated by commas; `identification_headers` is JSON.
    pub fn parse(_pairs: &[impl AsRef<str>], _level: Level) -> Result<Self, SettingError> {
        todo!()
    }
}

impl Value {
    /// The JSON form used by API, CLI and export.
    pub fn to_json(&self) -> serde_json::Value {
        todo!()
    }
}

/// One row of the table, for help texts and docs.
#[derive(Clone, Debug)]
pub struct Row {
    pub key: &'static str,
    /// `true or false`, `1…10080 min`, …
    pub expects: String,
    pub default: Value,
    pub help: &'static str,
    pub cluster_only: bool,
}

/// Every setting in the order of the table.
pub fn rows() -> Vec<Row> {
    todo!()
}
