//! A CA for one folder, and the nodes' certificates from it.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use super::folder::{Folder, write_private};
use super::place::Place;
use crate::cli::Outcome;
use crate::cli::failure::Failure;

/// Names under which a client may call any node, beside its address.
const NAMES: [&str; 3] = ["localhost", "demo.test", "::1"];

/// Makes what is missing; a client that trusts the CA goes on trusting it.
pub(super) fn make(folder: &Folder, place: &Place) -> Outcome {
    if place.certificate().exists() && place.key().exists() && folder.ca().exists() {
        return Ok(());
    }
    let failed = |error: rcgen::Error| Failure::failed(format!("cannot make a certificate: {error}"));
    let ca_key = authority_key(&folder.ca_key())?;
    let ca = authority().map_err(failed)?;
    let certificate = ca.self_signed(&ca_key).map_err(failed)?;
    write_private(&folder.ca(), certificate.pem().as_bytes())?;
    let key = KeyPair::generate().map_err(failed)?;
    let leaf = leaf(place.id).and_then(|leaf| leaf.signed_by(&key, &Issuer::new(ca, ca_key))).map_err(failed)?;
    write_private(&place.key(), key.serialize_pem().as_bytes())?;
    write_private(&place.certificate(), format!("{}{}", leaf.pem(), certificate.pem()).as_bytes())
}

fn authority_key(path: &Path) -> Result<KeyPair, Failure> {
    let failed = |error: rcgen::Error| Failure::failed(format!("{}: {error}", path.display()));
    if let Ok(pem) = std::fs::read_to_string(path) {
        return KeyPair::from_pem(&pem).map_err(failed);
    }
    let key = KeyPair::generate().map_err(failed)?;
    write_private(path, key.serialize_pem().as_bytes())?;
    Ok(key)
}

fn authority() -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "outgate dev CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn leaf(node: u64) -> Result<CertificateParams, rcgen::Error> {
    let mut names = NAMES.map(str::to_owned).to_vec();
    names.push(format!("127.0.0.{node}"));
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, NAMES[0]);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}
