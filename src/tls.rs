//! Certificates of the listeners: read, made where none is given, exchanged while sessions run.

mod select;

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use self::select::{ByName, Select};
use crate::config::{CertificateConfig, TlsConfig};

/// The listeners' TLS; a reload takes effect for new handshakes.
#[derive(Clone)]
pub struct ServerTls {
    configs: Arc<ArcSwap<Configs>>,
    files: Arc<Files>,
    more: Arc<[CertificateConfig]>,
}

/// Every one knows all names; they differ in what a client gets that asks for none of them.
struct Configs {
    default: Arc<ServerConfig>,
    by_address: Vec<(Vec<IpNet>, Arc<ServerConfig>)>,
}

/// One clear line with the file that is at fault.
#[derive(thiserror::Error, Debug)]
#[error("{0}")]
pub struct TlsError(pub String);

/// Where chain and key stand.
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

impl ServerTls {
    /// Reads the configured files; in place of those of `config` makes a self-signed certificate for `hostname` under
    /// `data_dir`.
    pub fn load(
        config: &TlsConfig,
        more: &[CertificateConfig],
        data_dir: &Path,
        hostname: &str,
    ) -> Result<Self, TlsError> {
        let files = match (&config.certificate, &config.key) {
            (Some(certificate), Some(key)) => Files { certificate: certificate.clone(), key: key.clone() },
            (None, None) => self_signed(&data_dir.join("tls"), hostname)?,
            (Some(_), None) => return Err(TlsError("tls.certificate is set but tls.key is not: set both".to_owned())),
            (None, Some(_)) => return Err(TlsError("tls.key is set but tls.certificate is not: set both".to_owned())),
        };
        let configs = Arc::new(ArcSwap::from_pointee(Configs::read(&files, more)?));
        Ok(Self { configs, files: Arc::new(files), more: more.into() })
    }

    /// Reads the files again; on an error the old certificates stay.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.configs.store(Arc::new(Configs::read(&self.files, &self.more)?));
        Ok(())
    }

    /// For a client that reached this address.
    pub fn config_at(&self, local: IpAddr) -> Arc<ServerConfig> {
        let configs = self.configs.load();
        let own = configs.by_address.iter().find(|(networks, _)| networks.iter().any(|own| own.contains(&local)));
        Arc::clone(own.map_or(&configs.default, |(_, config)| config))
    }
}

impl Configs {
    fn read(files: &Files, more: &[CertificateConfig]) -> Result<Self, TlsError> {
        let mut by_name = ByName::default();
        let mut at_addresses = Vec::new();
        for config in more {
            let files = Files { certificate: config.certificate.clone(), key: config.key.clone() };
            let (certificate, names) = files.read(&mut by_name)?;
            if names == 0 && config.addresses.is_empty() {
                let path = files.certificate.display();
                return Err(TlsError(format!("{path} names no server, so no client would see it: give it addresses")));
            }
            at_addresses.push((config.addresses.clone(), certificate));
        }
        let (otherwise, _) = files.read(&mut by_name)?;
        let (by_name, base) = (Arc::new(by_name), server_config(Arc::clone(&otherwise))?);
        let with = |otherwise| {
            let mut config = base.clone();
            config.cert_resolver = Arc::new(Select { by_name: Arc::clone(&by_name), otherwise });
            Arc::new(config)
        };
        let by_address = at_addresses.into_iter().filter(|(addresses, _)| !addresses.is_empty());
        let by_address = by_address.map(|(addresses, certificate)| (addresses, with(certificate))).collect();
        Ok(Self { default: with(otherwise), by_address })
    }
}

impl Files {
    /// The certificate, and how many names it has, which are added to `by_name`.
    fn read(&self, by_name: &mut ByName) -> Result<(Arc<CertifiedKey>, usize), TlsError> {
        let (chain, key) = (read_chain(&self.certificate)?, read_key(&self.key)?);
        let certificate = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider());
        let certificate = Arc::new(certificate.map_err(|error| unusable(self, &error))?);
        let names = by_name.add(&certificate);
        let names =
            names.map_err(|error| TlsError(format!("{} cannot be used: {error}", self.certificate.display())))?;
        Ok((certificate, names))
    }
}

/// TLS 1.2 and 1.3, with tickets so that a client that comes back saves the key exchange.
fn server_config(certificate: Arc<CertifiedKey>) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError(format!("TLS cannot be used: {error}")))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Select { by_name: Arc::default(), otherwise: certificate }));
    config.ticketer =
        aws_lc_rs::Ticketer::new().map_err(|error| TlsError(format!("TLS tickets cannot be made: {error}")))?;
    // Each ticket costs a write and memory of the client; one brings it back as well as two.
    config.send_tls13_tickets = 1;
    Ok(config)
}

fn unusable(files: &Files, error: &rustls::Error) -> TlsError {
    let (certificate, key) = (files.certificate.display(), files.key.display());
    if matches!(error, rustls::Error::InconsistentKeys(_)) {
        let mend = "give the key that the certificate was made with";
        return TlsError(format!("{key} is not the key of {certificate}: {mend}"));
    }
    TlsError(format!("{certificate} with {key} cannot be used: {error}"))
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path)?;
    let chain = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| TlsError(format!("{} is not valid PEM: {error}", path.display())))?;
    if chain.is_empty() {
        let path = path.display();
        return Err(TlsError(format!(
            "{path} holds no certificate: give the PEM chain, the server's certificate first"
        )));
    }
    Ok(chain)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let wrong = |_| TlsError(format!("{} holds no private key: give an unencrypted PEM key", path.display()));
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(wrong)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|error| {
        TlsError(format!("cannot read {}: {error}; check the path and that the service may read it", path.display()))
    })
}

/// The files of an earlier start, or new ones; clients that pin the certificate keep working. Files that do not work,
/// as a crash between the two may leave them, are made anew.
fn self_signed(directory: &Path, hostname: &str) -> Result<Files, TlsError> {
    let files = Files { certificate: directory.join("certificate.pem"), key: directory.join("key.pem") };
    if files.certificate.exists() && files.key.exists() {
        match files.read(&mut ByName::default()) {
            Ok(_) => return Ok(files),
            Err(TlsError(error)) => tracing::warn!(error, "making a new self-signed certificate"),
        }
    }
    let made = rcgen::generate_simple_self_signed([hostname.to_owned()])
        .map_err(|error| TlsError(format!("cannot make a certificate for {hostname}: {error}")))?;
    let written = fs::create_dir_all(directory)
        .and_then(|()| write_durably(&files.key, &made.signing_key.serialize_pem()))
        .and_then(|()| write_durably(&files.certificate, &made.cert.pem()))
        .and_then(|()| fs::File::open(directory)?.sync_all());
    written.map_err(|error| TlsError(format!("cannot write below {}: {error}", directory.display())))?;
    Ok(files)
}

/// The file is whole or not there; nobody else may read it.
fn write_durably(path: &Path, text: &str) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn load(config: &TlsConfig, directory: &Path) -> Result<ServerTls, String> {
        ServerTls::load(config, &[], directory, "mx.test").map_err(|error| error.0)
    }

    #[test]
    fn a_certificate_is_made_once() {
        let directory = tempfile::tempdir().unwrap();
        load(&TlsConfig::default(), directory.path()).unwrap();
        let file = directory.path().join("tls/certificate.pem");
        let first = fs::read(&file).unwrap();
        load(&TlsConfig::default(), directory.path()).unwrap().reload().unwrap();
        assert_eq!(fs::read(&file).unwrap(), first);
        let mode = fs::metadata(directory.path().join("tls/key.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_self_made_certificate_that_is_broken_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        for file in ["certificate.pem", "key.pem"] {
            load(&TlsConfig::default(), directory.path()).unwrap();
            let file = directory.path().join("tls").join(file);
            fs::write(&file, "").unwrap();
            load(&TlsConfig::default(), directory.path()).unwrap();
            assert!(!fs::read(&file).unwrap().is_empty());
        }
        assert_eq!(fs::read_dir(directory.path().join("tls")).unwrap().count(), 2, "nothing half-written is left");
    }

    #[test]
    fn errors_name_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["a", "b"] {
            let made = rcgen::generate_simple_self_signed([format!("{name}.test")]).unwrap();
            fs::write(path(&format!("{name}.pem")), made.cert.pem()).unwrap();
            fs::write(path(&format!("{name}.key")), made.signing_key.serialize_pem()).unwrap();
        }
        fs::write(path("empty.pem"), "nothing").unwrap();
        for (certificate, key, expected) in [
            ("a.pem", "b.key", "b.key is not the key of"),
            ("none.pem", "a.key", "none.pem: No such file"),
            ("empty.pem", "a.key", "empty.pem holds no certificate"),
            ("a.pem", "empty.pem", "empty.pem holds no private key"),
        ] {
            let config = TlsConfig { certificate: Some(path(certificate)), key: Some(path(key)) };
            let error = load(&config, directory.path()).err().unwrap();
            assert!(error.contains(expected) && !error.contains('\n'), "{error}");
        }
        let half = TlsConfig { certificate: Some(path("a.pem")), key: None };
        assert!(load(&half, directory.path()).is_err_and(|error| error.contains("tls.key")));
    }

    #[test]
    fn a_failed_reload_keeps_the_old_certificate() {
        let directory = tempfile::tempdir().unwrap();
        let tls = load(&TlsConfig::default(), directory.path()).unwrap();
        let before = tls.configs.load_full();
        fs::write(directory.path().join("tls/certificate.pem"), "gone").unwrap();
        assert!(tls.reload().is_err());
        assert!(Arc::ptr_eq(&before, &tls.configs.load_full()));
    }
}
