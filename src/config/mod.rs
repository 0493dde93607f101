//! The node's configuration: types here, one loader in `load`. Settings that all nodes share are not
//! here but in the replicated state.

mod document;
pub mod load;
mod schema;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use load::{ConfigError, load};
pub(crate) use schema::{is_host_port, is_hostname};

/// One node's file, `outgate.toml`. Every key has a default; `config/outgate.toml` shows them all.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub node: NodeConfig,
    pub cluster: ClusterConfig,
    pub listener: Vec<ListenerConfig>,
    pub tls: TlsConfig,
    /// Beside that of `tls`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub certificate: Vec<CertificateConfig>,
    pub smtp: SmtpConfig,
    pub spool: SpoolConfig,
    pub delivery: DeliveryConfig,
    pub dns: DnsConfig,
    pub quarantine: QuarantineConfig,
    pub maillog: MaillogConfig,
    pub http: HttpConfig,
    pub log: LogConfig,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    pub data_dir: PathBuf,
    /// Name in the greeting, in Received and as default HELO; the host name where empty.
    pub hostname: String,
    /// Local socket of the command line; `control.sock` in the data directory where empty.
    pub control_socket: PathBuf,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterConfig {
    /// Where other nodes are listened to; without it the node stays alone.
    pub listen: Option<SocketAddr>,
    /// `host:port` by which other nodes reach this one; where it listens, if empty.
    pub advertise: String,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct ListenerConfig {
    pub address: SocketAddr,
    pub mode: ListenerMode,
    /// Networks whose clients may send AUTH without TLS.
    #[serde(default)]
    pub clear_text_networks: Vec<IpNet>,
    /// Networks of load balancers, which must open with a PROXY protocol header (v1 or v2).
    #[serde(default)]
    pub proxy_networks: Vec<IpNet>,
    /// Of this machine's addresses, those that are served; all where empty.
    #[serde(default)]
    pub only: Vec<IpNet>,
    /// Of this machine's addresses, those that are not served.
    #[serde(default)]
    pub exclude: Vec<IpNet>,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ListenerMode {
    /// Port 587: STARTTLS.
    Submission,
    /// Port 465: TLS from the first byte (RFC 8314).
    Submissions,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// PEM chain and key; a self-signed certificate is made in the data directory where both are absent.
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

/// Shown to clients that ask for a name in it (SNI), and at its addresses to those that ask for none that is known.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct CertificateConfig {
    /// PEM chain and key.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Of this machine's addresses.
    #[serde(default)]
    pub addresses: Vec<IpNet>,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct SmtpConfig {
    pub connections_max: usize,
    pub connections_per_address_max: usize,
    pub recipients_max: usize,
    /// 4xx and 5xx answers after which a session is closed.
    pub errors_max: usize,
    /// Verbs in one session after which it is closed.
    pub verbs_max: usize,
    pub messages_per_session_max: usize,
    /// Seconds to wait for a verb (RFC 5321 section 4.5.3.2 asks for at least 300).
    pub verb_timeout_s: u64,
    /// Seconds to wait for the next bytes of a message.
    pub data_timeout_s: u64,
    /// A message must come at this rate on average over each minute.
    pub data_rate_min_bytes_per_s: u64,
    /// Bytes of messages that may be in memory at once; further DATA is put off. A User gets a quarter, or one message.
    pub message_memory_max_bytes: u64,
    /// Seconds that sessions get to finish at shutdown.
    pub drain_timeout_s: u64,
    /// Addresses that are not counted per address nor put on block lists: monitoring, load balancers.
    pub trusted_networks: Vec<IpNet>,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct SpoolConfig {
    /// Free disk below which mail is answered with 452.
    pub free_min_bytes: u64,
    pub segment_max_bytes: u64,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct DeliveryConfig {
    /// `host:port` that takes all mail whose domain has no route of its own; MX look-up where empty.
    pub relay: String,
    /// `user:password` for the relay.
    pub relay_auth: String,
    /// Port of hosts found by MX.
    pub port: u16,
    /// HELO name; the node's host name where empty.
    pub helo: String,
    /// Lets mail go to loopback and link-local addresses that DNS or an address literal names; a relay or a route
    /// may have one anyway.
    pub local_addresses: bool,
    /// Whether a message with octets above 127 bounces where a hop does not offer 8BITMIME (RFC 6152 section 3).
    pub eight_bit_strict: bool,
    /// Local address of outgoing connections.
    pub source: Option<IpAddr>,
    pub connections_max: usize,
    /// For one set of hosts and for one address, whatever names it has; never more than half of all.
    pub connections_per_host_max: usize,
    pub messages_per_connection_max: usize,
    pub connect_timeout_s: u64,
    pub reply_timeout_s: u64,
    /// Seconds for a whole transaction up to its final dot, over all hosts that are tried.
    pub transaction_timeout_s: u64,
    /// Seconds to wait for the reply behind the final dot (RFC 5321 section 4.5.3.2.6): giving up earlier makes
    /// duplicates.
    pub final_reply_timeout_s: u64,
    /// Seconds that a connection is kept for the next message.
    pub idle_timeout_s: u64,
    pub retry: RetryConfig,
}

/// First every `interval_s` for `interval_for_s`, then `factor` times longer up to `step_max_s` of age, then every `later_interval_s`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct RetryConfig {
    pub interval_s: u64,
    pub interval_for_s: u64,
    pub factor: f64,
    pub factor_until_s: u64,
    pub later_interval_s: u64,
    /// Age at which the sender hears of a delay, where NOTIFY asks for it; 0 = never.
    pub delay_notice_s: u64,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct DnsConfig {
    /// `address:port`; the system's resolvers where empty.
    pub servers: Vec<SocketAddr>,
    pub timeout_s: u64,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct QuarantineConfig {
    pub keep_days: u64,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct MaillogConfig {
    pub keep_days: u64,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Serves `/healthz`, `/readyz` and `/metrics`.
    pub address: SocketAddr,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    pub format: LogFormat,
    /// `error` … `trace`, or a filter such as `info,outgate::delivery=debug`.
    pub level: String,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Text,
    Json,
}

const UNSPECIFIED: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

impl Default for Config {
    fn default() -> Self {
        let listener = |port, mode| ListenerConfig {
            address: SocketAddr::new(UNSPECIFIED, port),
            mode,
            clear_text_networks: Vec::new(),
            proxy_networks: Vec::new(),
            only: Vec::new(),
            exclude: Vec::new(),
        };
        Self {
            node: NodeConfig::default(),
            cluster: ClusterConfig::default(),
            listener: vec![listener(587, ListenerMode::Submission), listener(465, ListenerMode::Submissions)],
            tls: TlsConfig::default(),
            certificate: Vec::new(),
            smtp: SmtpConfig::default(),
            spool: SpoolConfig::default(),
            delivery: DeliveryConfig::default(),
            dns: DnsConfig::default(),
            quarantine: QuarantineConfig::default(),
            maillog: MaillogConfig::default(),
            http: HttpConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl NodeConfig {
    /// Where the replicated state lives.
    pub fn cluster_dir(&self) -> PathBuf {
        self.data_dir.join("cluster")
    }

    /// The configured host name, or the machine's own.
    pub fn effective_hostname(&self) -> String {
        if !self.hostname.is_empty() {
            return self.hostname.clone();
        }
        rustix::system::uname().nodename().to_string_lossy().into_owned()
    }

    /// [`NodeConfig::control_socket`], or its default.
    pub fn control_socket_path(&self) -> PathBuf {
        if self.control_socket.as_os_str().is_empty() {
            self.data_dir.join("control.sock")
        } else {
            self.control_socket.clone()
        }
    }
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self { data_dir: PathBuf::from("/var/lib/outgate"), hostname: String::new(), control_socket: PathBuf::new() }
    }
}

impl Default for SmtpConfig {
    fn default() -> Self {
        Self {
            connections_max: 20_000,
            connections_per_address_max: 1_000,
            recipients_max: 1_000,
            errors_max: 20,
            verbs_max: 100_000,
            messages_per_session_max: 10_000,
            verb_timeout_s: 300,
            data_timeout_s: 180,
            data_rate_min_bytes_per_s: 100,
            message_memory_max_bytes: 1 << 30,
            drain_timeout_s: 30,
            trusted_networks: Vec::new(),
        }
    }
}

impl Default for SpoolConfig {
    fn default() -> Self {
        Self { free_min_bytes: 256 << 20, segment_max_bytes: 64 << 20 }
    }
}

impl Default for DeliveryConfig {
    fn default() -> Self {
        Self {
            relay: String::new(),
            relay_auth: String::new(),
            port: 25,
            helo: String::new(),
            local_addresses: false,
            eight_bit_strict: false,
            source: None,
            connections_max: 500,
            connections_per_host_max: 20,
            messages_per_connection_max: 100,
            connect_timeout_s: 30,
            reply_timeout_s: 300,
            transaction_timeout_s: 900,
            final_reply_timeout_s: 600,
            idle_timeout_s: 5,
            retry: RetryConfig::default(),
        }
    }
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            interval_s: 15 * 60,
            interval_for_s: 2 * 3600,
            factor: 1.5,
            factor_until_s: 16 * 3600,
            later_interval_s: 6 * 3600,
            delay_notice_s: 4 * 3600,
        }
    }
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self { servers: Vec::new(), timeout_s: 10 }
    }
}

impl Default for QuarantineConfig {
    fn default() -> Self {
        Self { keep_days: 14 }
    }
}

impl Default for MaillogConfig {
    fn default() -> Self {
        Self { keep_days: 32 }
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self { address: SocketAddr::new(LOOPBACK, 8080) }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".to_owned() }
    }
}
