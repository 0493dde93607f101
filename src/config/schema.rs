//! THE table of configuration keys: what each one takes. The typed structs say what it means; a test
//! holds the two and the sample file against each other.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use toml::Value;
use tracing_subscriber::EnvFilter;

/// Ten years: longer periods are typing errors.
const SECONDS_MAX: i64 = 10 * 366 * 86_400;
const COUNT_MAX: i64 = 1_000_000_000;
const BYTES_MAX: i64 = 1 << 50;

/// What a key takes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Path,
    /// A name of RFC 1123, or nothing.
    Hostname,
    Integer {
        min: i64,
        max: i64,
    },
    Factor,
    Flag,
    Address,
    Addresses,
    Ip,
    Networks,
    Choice(&'static [&'static str]),
    /// `host:port`, or nothing.
    HostPort,
    /// `user:password`, or nothing.
    Credentials,
    /// A level of the log, or a filter with several.
    LogFilter,
}

/// One row of the table.
#[derive(Debug)]
pub(super) struct Key {
    /// `smtp`, `delivery.retry`; `listener` for a table of the list `[[listener]]`.
    pub(super) section: &'static str,
    pub(super) name: &'static str,
    pub(super) kind: Kind,
}

const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

const SECONDS: Kind = Kind::Integer { min: 1, max: SECONDS_MAX };
const COUNT: Kind = Kind::Integer { min: 1, max: COUNT_MAX };
const BYTES: Kind = Kind::Integer { min: 1, max: BYTES_MAX };
const DAYS: Kind = Kind::Integer { min: 1, max: 3_660 };

const fn key(section: &'static str, name: &'static str, kind: Kind) -> Key {
    Key { section, name, kind }
}

pub(super) const LISTENER: &str = "listener";
pub(super) const CERTIFICATE: &str = "certificate";
/// The lists of tables, with what each table needs and an example of it; every other section is there once.
pub(super) const LISTS: &[(&str, &[(&str, &str)])] = &[
    (LISTENER, &[("address", "\"0.0.0.0:587\""), ("mode", "\"submission\"")]),
    (
        CERTIFICATE,
        &[("certificate", "\"/etc/outgate/mail.example.com.pem\""), ("key", "\"/etc/outgate/mail.example.com.key\"")],
    ),
];

pub(super) const KEYS: &[Key] = &[
    key("node", "data_dir", Kind::Path),
    key("node", "hostname", Kind::Hostname),
    key("node", "control_socket", Kind::Path),
    key("cluster", "listen", Kind::Address),
    key("cluster", "advertise", Kind::HostPort),
    key(LISTENER, "address", Kind::Address),
    key(LISTENER, "mode", Kind::Choice(&["submission", "submissions"])),
    key(LISTENER, "clear_text_networks", Kind::Networks),
    key(LISTENER, "proxy_networks", Kind::Networks),
    key(LISTENER, "only", Kind::Networks),
    key(LISTENER, "exclude", Kind::Networks),
    key("tls", "certificate", Kind::Path),
    key("tls", "key", Kind::Path),
    key(CERTIFICATE, "certificate", Kind::Path),
    key(CERTIFICATE, "key", Kind::Path),
    key(CERTIFICATE, "addresses", Kind::Networks),
    key("smtp", "connections_max", COUNT),
    key("smtp", "connections_per_address_max", COUNT),
    key("smtp", "recipients_max", COUNT),
    key("smtp", "errors_max", COUNT),
    key("smtp", "verbs_max", COUNT),
    key("smtp", "messages_per_session_max", COUNT),
    key("smtp", "verb_timeout_s", SECONDS),
    key("smtp", "data_timeout_s", SECONDS),
    key("smtp", "data_rate_min_bytes_per_s", Kind::Integer { min: 0, max: BYTES_MAX }),
    key("smtp", "message_memory_max_bytes", BYTES),
    key("smtp", "drain_timeout_s", SECONDS),
    key("smtp", "trusted_networks", Kind::Networks),
    key("spool", "free_min_bytes", Kind::Integer { min: 0, max: BYTES_MAX }),
    key("spool", "segment_max_bytes", Kind::Integer { min: 1 << 16, max: 1 << 40 }),
    key("delivery", "relay", Kind::HostPort),
    key("delivery", "relay_auth", Kind::Credentials),
    key("delivery", "port", Kind::Integer { min: 1, max: 65_535 }),
    key("delivery", "helo", Kind::Hostname),
    key("delivery", "local_addresses", Kind::Flag),
    key("delivery", "eight_bit_strict", Kind::Flag),
    key("delivery", "source", Kind::Ip),
    key("delivery", "connections_max", COUNT),
    key("delivery", "connections_per_host_max", COUNT),
    key("delivery", "messages_per_connection_max", COUNT),
    key("delivery", "connect_timeout_s", SECONDS),
    key("delivery", "reply_timeout_s", SECONDS),
    key("delivery", "transaction_timeout_s", SECONDS),
    key("delivery", "final_reply_timeout_s", SECONDS),
    key("delivery", "idle_timeout_s", SECONDS),
    key("delivery.retry", "interval_s", SECONDS),
    key("delivery.retry", "interval_for_s", SECONDS),
    key("delivery.retry", "factor", Kind::Factor),
    key("delivery.retry", "factor_until_s", SECONDS),
    key("delivery.retry", "later_interval_s", SECONDS),
    key("delivery.retry", "delay_notice_s", Kind::Integer { min: 0, max: SECONDS_MAX }),
    key("dns", "servers", Kind::Addresses),
    key("dns", "timeout_s", SECONDS),
    key("quarantine", "keep_days", DAYS),
    key("maillog", "keep_days", DAYS),
    key("http", "address", Kind::Address),
    key("log", "format", Kind::Choice(&["text", "json"])),
    key("log", "level", Kind::LogFilter),
];

/// The row of `section.name`.
pub(super) fn find(section: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.section == section && key.name == name)
}

/// The list that `path` is, or into a table of which it leads.
pub(super) fn list_of(path: &str) -> Option<&'static str> {
    let first = path.split('.').next()?;
    LISTS.iter().map(|(name, _)| *name).find(|name| *name == first)
}

/// Whether `path` is a section, or leads to one.
pub(super) fn is_section(path: &str) -> bool {
    KEYS.iter().any(|key| key.section == path)
}

/// The names that may stand in a section: its keys and the sections below it; `""` is the top.
pub(super) fn names_in(section: &str) -> Vec<&'static str> {
    let below = KEYS.iter().filter_map(|key| {
        let rest =
            if section.is_empty() { key.section } else { key.section.strip_prefix(section)?.strip_prefix('.')? };
        rest.split('.').next()
    });
    let mut names: Vec<_> = KEYS.iter().filter(|key| key.section == section).map(|key| key.name).chain(below).collect();
    names.sort_unstable();
    names.dedup();
    names
}

impl Key {
    /// `smtp.verb_timeout_s`.
    pub(super) fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// `OUTGATE_SMTP_VERB_TIMEOUT_S`.
    pub(super) fn variable(&self) -> String {
        format!("OUTGATE_{}", self.path().replace('.', "_").to_uppercase())
    }
}

impl Kind {
    /// What to give, for the operator.
    pub(super) fn expects(self) -> String {
        match self {
            Self::Path => "a path".to_owned(),
            Self::Hostname => "a host name such as mx1.example.com".to_owned(),
            Self::Integer { min, max } => format!("a whole number, {min}…{max}"),
            Self::Factor => "a number, 1.0…100.0".to_owned(),
            Self::Flag => "true or false".to_owned(),
            Self::Address => "address:port such as 0.0.0.0:587 or [::]:587".to_owned(),
            Self::Addresses => "a list of address:port such as [\"192.0.2.53:53\"]".to_owned(),
            Self::Ip => "an IP address such as 192.0.2.1".to_owned(),
            Self::Networks => "a list of networks such as [\"192.0.2.0/24\", \"2001:db8::/32\"]".to_owned(),
            Self::Choice(names) => names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(" or "),
            Self::HostPort => "host:port such as smarthost.example.com:25".to_owned(),
            Self::Credentials => "user:password".to_owned(),
            Self::LogFilter => {
                "error, warn, info, debug, trace, off, or a filter such as \"info,outgate::delivery=debug\"".to_owned()
            }
        }
    }

    /// What is wrong with `value`; `None` = it fits.
    pub(super) fn fault(self, value: &Value) -> Option<String> {
        let fits = match (self, value) {
            (Self::Path, Value::String(_)) => true,
            (Self::Hostname, Value::String(text)) => text.is_empty() || is_hostname(text),
            (Self::Integer { min, max }, Value::Integer(number)) => (min..=max).contains(number),
            (Self::Factor, Value::Float(number)) => (1.0..=100.0).contains(number),
            (Self::Factor, Value::Integer(number)) => (1..=100).contains(number),
            (Self::Flag, Value::Boolean(_)) => true,
            (Self::Address, Value::String(text)) => text.parse::<SocketAddr>().is_ok(),
            (Self::Ip, Value::String(text)) => text.parse::<IpAddr>().is_ok(),
            (Self::Choice(names), Value::String(text)) => names.contains(&text.as_str()),
            (Self::HostPort, Value::String(text)) => text.is_empty() || is_host_port(text),
            (Self::Credentials, Value::String(text)) => {
                text.is_empty() || text.split_once(':').is_some_and(|(user, _)| !user.is_empty())
            }
            (Self::LogFilter, Value::String(text)) => is_log_filter(text),
            (Self::Addresses, Value::Array(list)) => {
                return fault_in_list(list, |text| text.parse::<SocketAddr>().is_ok());
            }
            (Self::Networks, Value::Array(list)) => return network_fault(list),
            _ => false,
        };
        (!fits).then(|| self.describe(value))
    }

    /// A password that does not fit is not repeated.
    fn describe(self, value: &Value) -> String {
        match self {
            Self::Credentials => "the text does not fit".to_owned(),
            Self::Path
            | Self::Hostname
            | Self::Integer { .. }
            | Self::Factor
            | Self::Flag
            | Self::Address
            | Self::Addresses
            | Self::Ip
            | Self::Networks
            | Self::Choice(_)
            | Self::HostPort
            | Self::LogFilter => format!("{} does not fit", shown(value)),
        }
    }

    /// The value of an environment variable; lists are separated by commas.
    pub(super) fn read(self, text: &str) -> Value {
        let as_text = || Value::String(text.to_owned());
        match self {
            Self::Integer { .. } => text.trim().parse().map_or_else(|_| as_text(), Value::Integer),
            Self::Factor => text.trim().parse().map_or_else(|_| as_text(), Value::Float),
            Self::Flag => text.trim().parse().map_or_else(|_| as_text(), Value::Boolean),
            Self::Addresses | Self::Networks => Value::Array(
                text.split(',')
                    .map(str::trim)
                    .filter(|part| !part.is_empty())
                    .map(|part| Value::String(part.to_owned()))
                    .collect(),
            ),
            Self::Path
            | Self::Hostname
            | Self::Address
            | Self::Ip
            | Self::Choice(_)
            | Self::HostPort
            | Self::Credentials
            | Self::LogFilter => as_text(),
        }
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Table(_) => "a table".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::String(_) | Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {
            format!("`{value}`")
        }
    }
}

fn fault_in_list(list: &[Value], fits: impl Fn(&str) -> bool) -> Option<String> {
    let wrong = list.iter().find(|value| !value.as_str().is_some_and(&fits))?;
    Some(format!("{} does not fit", shown(wrong)))
}

fn network_fault(list: &[Value]) -> Option<String> {
    let wrong = fault_in_list(list, |text| text.parse::<IpNet>().is_ok());
    wrong.or_else(|| {
        let networks = list.iter().filter_map(|value| value.as_str()?.parse::<IpNet>().ok());
        let net = networks.into_iter().find(|net| net.trunc() != *net)?;
        Some(format!("`{net}` has bits behind its prefix length, write {}", net.trunc()))
    })
}

pub(crate) fn is_hostname(text: &str) -> bool {
    let label_ok = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    text.len() <= 253 && text.split('.').all(label_ok)
}

/// Levels, bare or of a part. A bare word that is no level is a part's name to `EnvFilter`, which silences all others.
fn is_log_filter(text: &str) -> bool {
    let ends_in_level =
        |part: &str| part.rsplit('=').next().is_some_and(|level| LEVELS.contains(&&*level.trim().to_lowercase()));
    text.split(',').all(ends_in_level) && EnvFilter::try_new(text).is_ok()
}

/// Name, IPv4 address or bracketed IPv6 address, and a port that is not 0.
pub(crate) fn is_host_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let host_ok = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => is_hostname(host),
    };
    host_ok && port.parse::<u16>().is_ok_and(|port| port != 0)
}
