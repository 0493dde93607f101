//! `outgate check`: configuration and surroundings, one line a finding, nothing changed.
//!
//! Exit codes: 0 = all is well, 1 = something is worth mending, 2 = `outgate run` would refuse to start.

mod certificate;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Outcome;
use super::failure::Failure;
use super::output::print;
use crate::config::{self, Config};
use crate::dns::Dns;

/// Reserved for such questions (RFC 2606); it has a null MX.
const WELL_KNOWN: &str = "example.com";
/// 2026-01-01: a clock that is earlier was never set.
const CLOCK_MIN_S: u64 = 1_767_225_600;
/// A file from so far in the future tells that the clock was set back.
const CLOCK_BACK_MAX: Duration = Duration::from_secs(60);
/// A certificate that ends so soon is worth a word.
const CERTIFICATE_SOON: Duration = Duration::from_secs(14 * 86_400);

#[derive(clap::Args)]
pub(super) struct Args {
    /// The node's configuration
    #[arg(long, env = "OUTGATE_CONFIG", value_name = "FILE", default_value = "/etc/outgate/outgate.toml")]
    config: PathBuf,
}

/// One line of the report.
enum Finding {
    Fine(String),
    /// A node would start all the same.
    Warning(String),
    /// No node starts before this is mended.
    Obstacle(String),
}

pub(super) fn execute(args: &Args) -> Outcome {
    let config = config::load(&args.config).map_err(|error| Failure::wrong_lines(error.0))?;
    let mut findings = vec![Finding::Fine(format!("{} is well-formed", args.config.display()))];
    findings.push(certificate_of(&config));
    findings.extend(config.listener.iter().map(|listener| port(listener.address)));
    findings.push(port(config.http.address));
    findings.extend(config.cluster.listen.map(port));
    findings.push(data_directory(&config));
    findings.push(disk(&config));
    findings.push(super::client::block_on(async { Ok(dns(&config).await) })?);
    findings.push(clock(&config.node.data_dir, SystemTime::now()));
    report(&findings)
}

fn report(findings: &[Finding]) -> Outcome {
    let mut code = 0;
    for finding in findings {
        let (line, weight) = match finding {
            Finding::Fine(text) => (format!("ok     {text}\n"), 0),
            Finding::Warning(text) => (format!("fault  {text}\n"), 1),
            Finding::Obstacle(text) => (format!("fault  {text}\n"), 2),
        };
        code = code.max(weight);
        print(&line)?;
    }
    if code == 0 { Ok(()) } else { Err(Failure::silent(code)) }
}

fn certificate_of(config: &Config) -> Finding {
    let (Some(certificate), Some(key)) = (&config.tls.certificate, &config.tls.key) else {
        return Finding::Fine("no certificate is configured: the node makes a self-signed one".to_owned());
    };
    let file = certificate.display();
    match certificate::end(certificate, key) {
        Err(fault) => Finding::Obstacle(fault),
        Ok(end) => match end.duration_since(SystemTime::now()) {
            Err(_) => Finding::Obstacle(format!("{file}: the certificate has expired: get a new one")),
            Ok(left) if left < CERTIFICATE_SOON => {
                Finding::Warning(format!("{file}: expires in {} days: get a new one", left.as_secs() / 86_400))
            }
            Ok(left) => Finding::Fine(format!("{file}: good for {} days", left.as_secs() / 86_400)),
        },
    }
}

fn port(address: SocketAddr) -> Finding {
    match TcpListener::bind(address) {
        Ok(_) => Finding::Fine(format!("{address} is free")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            Finding::Obstacle(format!("{address} is in use: is this node running already?"))
        }
        Err(error) => Finding::Obstacle(format!("{address}: cannot listen: {error}")),
    }
}

fn data_directory(config: &Config) -> Finding {
    let data = &config.node.data_dir;
    let shown = data.display();
    if let Some(fault) = super::run::without_node(config) {
        return Finding::Obstacle(fault);
    }
    match rustix::fs::access(data, rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK) {
        Ok(()) => Finding::Fine(format!("{shown} can be written")),
        Err(error) => Finding::Obstacle(format!("{shown}: cannot be written: {error}: run as its owner")),
    }
}

fn disk(config: &Config) -> Finding {
    let data = &config.node.data_dir;
    let there = data.ancestors().find(|path| path.exists()).unwrap_or(data);
    match rustix::fs::statvfs(there) {
        Err(error) => Finding::Warning(format!("{}: cannot ask for free space: {error}", there.display())),
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let (shown, need) = (free >> 20, config.spool.free_min_bytes);
            if free <= need {
                let needed = need >> 20;
                Finding::Warning(format!("{shown} MiB are free and {needed} MiB must be: mail would get 452"))
            } else {
                Finding::Fine(format!("{shown} MiB of disk are free"))
            }
        }
    }
}

async fn dns(config: &Config) -> Finding {
    let asked = async { Dns::new(&config.dns)?.exchangers(WELL_KNOWN).await };
    match asked.await {
        Ok(_) => Finding::Fine("DNS answers".to_owned()),
        Err(error) => Finding::Warning(format!("{error}: see dns.servers and /etc/resolv.conf")),
    }
}

fn clock(data: &Path, now: SystemTime) -> Finding {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let newest = std::fs::metadata(data).and_then(|meta| meta.modified()).ok();
    let ahead = newest.and_then(|newest| newest.duration_since(now).ok()).unwrap_or_default();
    if since.as_secs() < CLOCK_MIN_S {
        Finding::Warning("the clock was never set: start time synchronisation".to_owned())
    } else if ahead > CLOCK_BACK_MAX {
        Finding::Warning(format!("the clock is {} s behind the data directory: set it", ahead.as_secs()))
    } else {
        Finding::Fine("the clock is sane".to_owned())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_port_in_use_and_a_missing_directory_are_found() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(matches!(port(taken.local_addr().unwrap()), Finding::Obstacle(text) if text.contains("in use")));
        assert!(matches!(port("127.0.0.1:0".parse().unwrap()), Finding::Fine(_)));
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        for data in [Path::new("/nonexistent"), directory.path()] {
            config.node.data_dir = data.to_owned();
            assert!(matches!(data_directory(&config), Finding::Obstacle(text) if text.contains("outgate init")));
        }
    }

    #[test]
    fn a_clock_that_was_set_back_is_found() {
        let data = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        assert!(matches!(clock(data.path(), now), Finding::Fine(_)));
        assert!(matches!(clock(data.path(), now - Duration::from_secs(3_600)), Finding::Warning(_)));
        assert!(matches!(clock(data.path(), UNIX_EPOCH), Finding::Warning(_)));
    }

    #[test]
    fn a_full_disk_is_found() {
        let data = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.node.data_dir = data.path().join("not yet");
        assert!(matches!(disk(&config), Finding::Fine(_)));
        config.spool.free_min_bytes = u64::MAX;
        assert!(matches!(disk(&config), Finding::Warning(_)));
    }
}
