//! What a node shows to others, and whom it believes.
//!
//! ```text
//! network/authority.pem     the cluster's authority
//! network/certificate.pem   this node's certificate
//! network/key.pem           this node's private key
//! network/founding.pem      the authority's private key, until the first log entry holds it
//! ```

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig, version};

use crate::network::authority::{ClusterId, node_name};
use crate::store::durable;

const AUTHORITY: &str = "authority.pem";
const CERTIFICATE: &str = "certificate.pem";
const KEY: &str = "key.pem";
const FOUNDING: &str = "founding.pem";

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) cluster: ClusterId,
    pub(crate) node: u64,
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
}

/// The four files as texts.
pub(crate) struct Papers {
    pub(crate) authority: String,
    pub(crate) certificate: String,
    pub(crate) key: String,
    pub(crate) founding: Option<String>,
}

pub(crate) fn directory(home: &Path) -> PathBuf {
    home.join("network")
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

impl Papers {
    /// On disk when it returns; readable by the owner alone.
    pub(crate) fn write(&self, home: &Path) -> io::Result<()> {
        let directory = directory(home);
        durable::create_directory(&directory)?;
        let founding = self.founding.as_deref().map(|text| (FOUNDING, text));
        let files = [(AUTHORITY, self.authority.as_str()), (CERTIFICATE, &self.certificate), (KEY, &self.key)];
        for (name, text) in files.into_iter().chain(founding) {
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(directory.join(name))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
        }
        durable::sync_directory(&directory)
    }

    pub(crate) fn read(home: &Path) -> io::Result<Self> {
        let read = |name: &str| std::fs::read_to_string(directory(home).join(name));
        let founding = match read(FOUNDING) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            read => Some(read?),
        };
        Ok(Self { authority: read(AUTHORITY)?, certificate: read(CERTIFICATE)?, key: read(KEY)?, founding })
    }
}

/// The replicated state holds the authority's key now.
pub(crate) fn forget_founding(home: &Path) -> io::Result<()> {
    match std::fs::remove_file(directory(home).join(FOUNDING)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

impl Credentials {
    pub(crate) fn new(cluster: ClusterId, node: u64, papers: &Papers) -> io::Result<Self> {
        let authority = certificate(&papers.authority)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone()).map_err(io::Error::other)?;
        let roots = Arc::new(roots);
        let chain = vec![certificate(&papers.certificate)?, authority];
        let key = || PrivateKeyDer::from_pem_slice(papers.key.as_bytes()).map_err(invalid);
        // A stranger may connect to ask for its admission; everybody else is looked at behind the greeting.
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider())
            .allow_unauthenticated()
            .build()
            .map_err(io::Error::other)?;
        let server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13])
            .map_err(io::Error::other)?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain.clone(), key()?)
            .map_err(invalid)?;
        let servers =
            WebPkiServerVerifier::builder_with_provider(roots, provider()).build().map_err(io::Error::other)?;
        let client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13])
            .map_err(io::Error::other)?
            .with_webpki_verifier(servers)
            .with_client_auth_cert(chain, key()?)
            .map_err(invalid)?;
        Ok(Self { cluster, node, server: Arc::new(server), client: Arc::new(client) })
    }

    /// The name that the certificate of a node must have.
    pub(crate) fn name_of(&self, node: u64) -> io::Result<ServerName<'static>> {
        ServerName::try_from(node_name(self.cluster, node)).map_err(invalid)
    }

    /// Whether a certificate, whose chain was verified, is that of a node.
    pub(crate) fn is_of(&self, certificate: &CertificateDer<'_>, node: u64) -> bool {
        let Ok(name) = self.name_of(node) else { return false };
        ParsedCertificate::try_from(certificate)
            .is_ok_and(|parsed| rustls::client::verify_server_name(&parsed, &name).is_ok())
    }
}

pub(crate) fn certificate(pem: &str) -> io::Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(invalid)
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
