//! Where one node of `outgate dev` lives: its folder, its address, its configuration.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use super::Args;
use super::folder::write_private;
use crate::cli::Outcome;
use crate::cli::failure::Failure;
use crate::config::{
    ClusterConfig, Config, DeliveryConfig, HttpConfig, ListenerConfig, ListenerMode, NodeConfig, TlsConfig,
};

pub(super) struct Place {
    pub(super) id: u64,
    directory: PathBuf,
}

impl Place {
    pub(super) fn new(root: &Path, id: u64) -> Self {
        Self { id, directory: root.join(format!("node{id}")) }
    }

    /// 127.0.0.1 for node 1, 127.0.0.2 for node 2 …
    fn ip(&self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(127, 0, 0, u8::try_from(self.id).unwrap_or(u8::MAX)))
    }

    pub(super) fn certificate(&self) -> PathBuf {
        self.directory.join("cert.pem")
    }

    pub(super) fn key(&self) -> PathBuf {
        self.directory.join("key.pem")
    }

    pub(super) fn config(&self) -> PathBuf {
        self.directory.join("outgate.toml")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.directory.join("node.log")
    }

    pub(super) fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.node_config().control_socket_path()
    }

    pub(super) fn is_initialised(&self) -> bool {
        self.node_config().cluster_dir().join("identity").exists()
    }

    fn node_config(&self) -> NodeConfig {
        NodeConfig { data_dir: self.data(), hostname: "localhost".to_owned(), ..NodeConfig::default() }
    }

    /// Where the node listens to the others: a port that was free once and is kept.
    pub(super) fn cluster_address(&self) -> Result<SocketAddr, Failure> {
        let file = self.directory.join("cluster-address");
        if let Some(kept) = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok()) {
            return Ok(kept);
        }
        let free = TcpListener::bind((self.ip(), 0)).and_then(|listener| listener.local_addr());
        let free = free.map_err(|error| Failure::failed(format!("no port is free on {}: {error}", self.ip())))?;
        write_private(&file, free.to_string().as_bytes())?;
        Ok(free)
    }

    /// The node's configuration, as the flags of today ask for it.
    pub(super) fn write_config(&self, args: &Args, relay: &str) -> Outcome {
        let on = |port| SocketAddr::new(self.ip(), port);
        let listener = |port, mode| ListenerConfig {
            address: on(port),
            mode,
            clear_text_networks: Vec::new(),
            proxy_networks: Vec::new(),
            only: Vec::new(),
            exclude: Vec::new(),
        };
        let config = Config {
            node: self.node_config(),
            cluster: ClusterConfig { listen: Some(self.cluster_address()?), advertise: String::new() },
            listener: vec![
                listener(args.submission_port, ListenerMode::Submission),
                listener(args.submissions_port, ListenerMode::Submissions),
            ],
            tls: TlsConfig { certificate: Some(self.certificate()), key: Some(self.key()) },
            delivery: DeliveryConfig { relay: relay.to_owned(), ..DeliveryConfig::default() },
            http: HttpConfig { address: on(args.http_port) },
            ..Config::default()
        };
        let text = toml::to_string(&config).map_err(Failure::failed)?;
        write_private(&self.config(), text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_generated_configuration_is_valid_and_the_cluster_s_port_stays() {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::new(directory.path(), 2);
        let args = Args {
            verb: None,
            nodes: 3,
            data: None,
            submission_port: 2587,
            submissions_port: 2465,
            http_port: 8080,
            relay: None,
            no_traffic: true,
            ready_file: None,
        };
        place.write_config(&args, "127.0.0.1:2525").ok().unwrap();
        let text = std::fs::read_to_string(place.config()).unwrap();
        let config = crate::config::load::parse(&place.config(), &text, []).unwrap();
        assert_eq!((config.delivery.relay.as_str(), config.listener[0].address.port()), ("127.0.0.1:2525", 2587));
        assert_eq!(config.node.control_socket_path(), place.socket());
        assert_eq!(config.cluster.listen, Some(place.cluster_address().ok().unwrap()));
        assert_eq!(config.http.address.ip().to_string(), "127.0.0.2");
    }
}
