//! Certificates of the listeners: read, made where none is given, exchanged while sessions run.

use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;

use crate::config::TlsConfig;

/// The listeners' TLS; a reload takes effect for new handshakes.
#[derive(Clone)]
pub struct ServerTls {
    pub config: Arc<ArcSwap<ServerConfig>>,
}

/// One clear line with the file that is at fault.
#[derive(thiserror::Error, Debug)]
#[error("{0}")]
pub struct TlsError(pub String);

impl ServerTls {
    /// Reads the configured files, or makes a self-signed certificate for `hostname` under `data_dir`.
    pub fn load(_config: &TlsConfig, _data_dir: &Path, _hostname: &str) -> Result<Self, TlsError> {
        todo!()
    }

    /// Reads the files again; on an error the old certificate stays.
    pub fn reload(&self) -> Result<(), TlsError> {
        todo!()
    }
}
