//! Opportunistic TLS: encryption without proof of who is at the other end (RFC 7435). Whoever can answer for the
//! host could as well leave STARTTLS out, so a certificate that fails verification is still better than clear text.
//!
//! A next hop that gets a password is another matter: it has to prove its name to the system's roots.

use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ConfigBuilder, DigitallySignedStruct, Error, RootCertStore, SignatureScheme, WantsVerifier,
};

#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

/// Sessions are resumed, which saves most of a handshake to the same hop.
pub(super) struct Tls {
    /// Takes every certificate.
    pub(super) opportunistic: Arc<ClientConfig>,
    /// Made when it is first needed.
    verifying: OnceLock<Arc<ClientConfig>>,
}

impl Tls {
    pub(super) fn new() -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = Arc::new(AnyCertificate(Arc::clone(&provider)));
        let config = builder(provider).dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
        Self { opportunistic: Arc::new(config), verifying: OnceLock::new() }
    }

    /// Takes certificates that the system's roots vouch for. Reads their files once.
    pub(super) fn verifying(&self) -> Arc<ClientConfig> {
        Arc::clone(self.verifying.get_or_init(|| Arc::new(verifying(system_roots()))))
    }

    #[cfg(test)]
    pub(super) fn with_roots(roots: RootCertStore) -> Self {
        let tls = Self::new();
        tls.verifying.get_or_init(|| Arc::new(verifying(roots)));
        tls
    }
}

fn verifying(roots: RootCertStore) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    builder(provider).with_root_certificates(roots).with_no_client_auth()
}

#[expect(clippy::expect_used, reason = "the provider's own suites always fit the default versions")]
fn builder(provider: Arc<CryptoProvider>) -> ConfigBuilder<ClientConfig, WantsVerifier> {
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider supports TLS 1.2 and 1.3")
}

fn system_roots() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "cannot read some of the system's root certificates");
    }
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        tracing::error!("the system has no root certificates: next hops that need a login cannot be verified");
    }
    roots
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
