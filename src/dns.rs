//! Look-ups of mail exchangers and addresses, with their negative answers told apart.
//!
//! "It does not exist" bounces mail, "nobody answered" keeps it: only an answer of NOERROR without records or NXDOMAIN
//! counts as the former, everything else is a [`DnsError`]. Names are asked with their root dot, so that no search
//! domain is appended, and every look-up has an outer time limit.
//!
//! Questions beyond a bound wait for their turn, which does not count against that limit: after a restart thousands of
//! messages are due at once. Deliveries have a bound of their own, so that clients never wait behind them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError as NetDnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use tokio::sync::Semaphore;

use crate::config::DnsConfig;

const CACHE_ENTRIES_MAX: u64 = 65_536;
const QUESTIONS_AT_ONCE_MAX: usize = 200;
/// Exchangers of one domain that are looked at; hostile zones list hundreds.
const EXCHANGERS_MAX: usize = 50;
/// However long a zone asks us to remember.
const TTL_MAX: Duration = Duration::from_secs(3600);
const NEGATIVE_TTL_MAX: Duration = Duration::from_secs(300);
/// Each of the resolver's own attempts gets this part of the whole time.
const ATTEMPTS: u32 = 3;

/// A resolver with its cache. Cheap to clone.
#[derive(Clone)]
pub struct Dns {
    resolver: TokioResolver,
    timeout: Duration,
    questions: Arc<Semaphore>,
}

/// Where mail for a domain goes (RFC 5321 section 5.1).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Exchangers {
    /// Host names by preference, equals in random order; the domain itself where it has addresses but no MX.
    Hosts(Vec<String>),
    /// `MX 0 .` (RFC 7505).
    Null,
    /// Neither MX nor A nor AAAA.
    None,
}

/// A host that takes mail for a domain.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Exchanger {
    pub preference: u16,
    /// In lower case, without the root dot.
    pub host: String,
}

/// No answer within the time limit, or a server failure: ask again later.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[error("DNS gave no answer for {name}")]
pub struct DnsError {
    pub name: String,
}

impl Dns {
    pub fn new(config: &DnsConfig) -> Result<Self, DnsError> {
        let timeout = Duration::from_secs(config.timeout_s);
        let failed = |_: NetError| DnsError { name: "the configured resolvers".to_owned() };
        let mut builder = if config.servers.is_empty() {
            TokioResolver::builder_tokio().map_err(failed)?
        } else {
            let servers = config.servers.iter().map(|server| {
                let mut found = NameServerConfig::udp_and_tcp(server.ip());
                found.connections.iter_mut().for_each(|connection| connection.port = server.port());
                found
            });
            let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        set_options(builder.options_mut(), timeout);
        let questions = Arc::new(Semaphore::new(QUESTIONS_AT_ONCE_MAX));
        Ok(Self { resolver: builder.build().map_err(failed)?, timeout, questions })
    }

    /// The same resolver and cache, whose questions do not wait behind those of `self`.
    pub fn with_own_bound(&self) -> Self {
        Self { questions: Arc::new(Semaphore::new(QUESTIONS_AT_ONCE_MAX)), ..self.clone() }
    }

    pub async fn exchangers(&self, domain: &str) -> Result<Exchangers, DnsError> {
        let Some(found) = self.mail_exchangers(domain).await? else { return Ok(Exchangers::Null) };
        if !found.is_empty() {
            return Ok(Exchangers::Hosts(found.into_iter().map(|exchanger| exchanger.host).collect()));
        }
        let addresses = self.addresses(domain).await?;
        Ok(if addresses.is_empty() { Exchangers::None } else { Exchangers::Hosts(vec![domain.to_owned()]) })
    }

    /// The MX records alone, by preference, equals in random order; `None` = null MX.
    pub async fn mail_exchangers(&self, domain: &str) -> Result<Option<Vec<Exchanger>>, DnsError> {
        let Some(answer) = self.lookup(domain, RecordType::MX).await? else { return Ok(Some(Vec::new())) };
        let mut found: Vec<(u16, u64, String)> = Vec::new();
        let mut null = false;
        for record in answer.answers() {
            let RData::MX(mx) = &record.data else { continue };
            null |= mx.exchange.is_root();
            if !mx.exchange.is_root() && found.len() < EXCHANGERS_MAX {
                let host = mx.exchange.to_ascii().trim_end_matches('.').to_ascii_lowercase();
                found.push((mx.preference, random(), host));
            }
        }
        if found.is_empty() && null {
            return Ok(None);
        }
        found.sort_unstable();
        Ok(Some(found.into_iter().map(|(preference, _, host)| Exchanger { preference, host }).collect()))
    }

    /// IPv4 before IPv6; empty where the host has none.
    pub async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, DnsError> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        let (v4, v6) = tokio::join!(self.lookup(host, RecordType::A), self.lookup(host, RecordType::AAAA));
        let failure = v4.as_ref().err().or(v6.as_ref().err()).cloned();
        let mut found = Vec::new();
        for answer in [v4, v6].into_iter().flatten().flatten() {
            found.extend(answer.answers().iter().filter_map(|record| record.data.ip_addr()));
        }
        match failure {
            Some(error) if found.is_empty() => Err(error),
            Some(_) | None => Ok(found),
        }
    }

    /// `None` = there are no such records, surely.
    async fn lookup(&self, name: &str, kind: RecordType) -> Result<Option<Lookup>, DnsError> {
        let failed = || DnsError { name: name.to_owned() };
        // What no name of DNS can be does not exist.
        let Ok(absolute) = Name::from_ascii(format!("{}.", name.trim_end_matches('.'))) else { return Ok(None) };
        let _turn = self.questions.acquire().await.map_err(|_| failed())?;
        let answer = tokio::time::timeout(self.timeout, self.resolver.lookup(absolute, kind)).await;
        match answer.map_err(|_| failed())? {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if is_surely_absent(&error) => Ok(None),
            Err(error) => {
                tracing::debug!(name, ?kind, %error, "DNS look-up failed");
                Err(failed())
            }
        }
    }
}

fn set_options(options: &mut ResolverOpts, timeout: Duration) {
    options.timeout = timeout / ATTEMPTS;
    options.attempts = 2;
    options.cache_size = CACHE_ENTRIES_MAX;
    options.positive_max_ttl = Some(TTL_MAX);
    options.negative_max_ttl = Some(NEGATIVE_TTL_MAX);
}

fn is_surely_absent(error: &NetError) -> bool {
    let NetError::Dns(NetDnsError::NoRecordsFound(absent)) = error else { return false };
    matches!(absent.response_code, ResponseCode::NoError | ResponseCode::NXDomain)
}

/// Orders exchangers of equal preference; needs to be uneven, not secret.
fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0u8)
}

#[cfg(test)]
pub(crate) mod tests;
