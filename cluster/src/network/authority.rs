//! The cluster's own certificate authority.
//!
//! Certificates do not expire: a node's rights end with its membership, and a clock that is wrong must not take a cluster
//! down. A certificate names its node and its cluster, so that it is good for nothing else.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm,
};

use crate::command::Authority;

/// Uncompressed point of P-256.
pub(crate) const PUBLIC_KEY_BYTES: usize = 65;

pub(crate) type ClusterId = [u8; 16];

#[derive(thiserror::Error, Debug)]
#[error("cannot make a certificate: {0}")]
pub struct CertificateError(#[from] rcgen::Error);

/// A node's key before anybody vouched for it.
pub(crate) struct NodeKey(KeyPair);

struct PublicKey<'a>(&'a [u8]);

impl PublicKeyData for PublicKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl NodeKey {
    pub(crate) fn generate() -> Result<Self, CertificateError> {
        Ok(Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?))
    }

    pub(crate) fn public(&self) -> &[u8] {
        self.0.der_bytes()
    }

    /// PKCS#8.
    pub(crate) fn pem(&self) -> String {
        self.0.serialize_pem()
    }
}

/// The name in a node's certificate.
pub(crate) fn node_name(cluster: ClusterId, node: u64) -> String {
    format!("node-{node}.{}", hex(&cluster))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A new authority for a cluster.
pub(crate) fn found(cluster: ClusterId) -> Result<Authority, CertificateError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = params(cluster)?.self_signed(&key)?;
    Ok(Authority { certificate: certificate.pem(), private_key: key.serialize_pem() })
}

fn params(cluster: ClusterId) -> Result<CertificateParams, CertificateError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, format!("outgate cluster {}", hex(&cluster)));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(params)
}

/// Vouches for a node: its certificate in PEM.
pub(crate) fn vouch(
    authority: &Authority,
    cluster: ClusterId,
    node: u64,
    public_key: &[u8],
) -> Result<String, CertificateError> {
    let issuer = Issuer::new(params(cluster)?, KeyPair::from_pem(&authority.private_key)?);
    let name = node_name(cluster, node);
    let mut leaf = CertificateParams::new(vec![name.clone()])?;
    leaf.distinguished_name.push(DnType::CommonName, name);
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    leaf.use_authority_key_identifier_extension = true;
    Ok(leaf.signed_by(&PublicKey(public_key), &issuer)?.pem())
}
