//! DKIM keys: made here, and turned into the DNS record that verifiers ask for (RFC 6376 section 3.6.1, RFC 8463).

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair, RsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use outgate_cluster::command::DkimAlgorithm;

/// Octets of one character string of a TXT record (RFC 1035 section 3.3).
const STRING_LENGTH_MAX: usize = 255;
const PEM_LINE: usize = 64;
const PEM_BEGIN: &str = "-----BEGIN PRIVATE KEY-----\n";
const PEM_END: &str = "-----END PRIVATE KEY-----\n";

#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
pub enum DkimError {
    #[error("cannot make a key")]
    Generate,
    #[error("the stored key cannot be read")]
    Damaged,
}

/// A fresh private key as a PKCS#8 PEM document; RSA has 2048 bits and takes a moment.
pub fn generate(algorithm: DkimAlgorithm) -> Result<String, DkimError> {
    let failed = |_| DkimError::Generate;
    let der: Pkcs8V1Der<'static> = match algorithm {
        DkimAlgorithm::RsaSha256 => RsaKeyPair::generate(KeySize::Rsa2048).map_err(failed)?.as_der().map_err(failed)?,
        DkimAlgorithm::Ed25519Sha256 => Ed25519KeyPair::generate().map_err(failed)?.as_der().map_err(failed)?,
    };
    let text = STANDARD.encode(der.as_ref());
    let lines = chunks(&text, PEM_LINE).map(|line| format!("{line}\n"));
    Ok(format!("{PEM_BEGIN}{}{PEM_END}", lines.collect::<String>()))
}

/// The text of the TXT record, in one piece.
pub fn record(algorithm: DkimAlgorithm, private_key: &str) -> Result<String, DkimError> {
    let der = from_pem(private_key).ok_or(DkimError::Damaged)?;
    let (name, public) = match algorithm {
        DkimAlgorithm::RsaSha256 => {
            let pair = RsaKeyPair::from_pkcs8(&der).map_err(|_| DkimError::Damaged)?;
            let public: PublicKeyX509Der<'_> = pair.public_key().as_der().map_err(|_| DkimError::Damaged)?;
            ("rsa", STANDARD.encode(public.as_ref()))
        }
        DkimAlgorithm::Ed25519Sha256 => {
            let pair = Ed25519KeyPair::from_pkcs8(&der).map_err(|_| DkimError::Damaged)?;
            ("ed25519", STANDARD.encode(pair.public_key().as_ref()))
        }
    };
    Ok(format!("v=DKIM1; k={name}; p={public}"))
}

/// The line of a zone file: name, type and the record cut into strings that DNS can carry.
pub fn zone_line(selector: &str, domain: &str, record: &str) -> String {
    let strings: Vec<_> = chunks(record, STRING_LENGTH_MAX).map(|part| format!("\"{part}\"")).collect();
    format!("{selector}._domainkey.{domain}. IN TXT ( {} )", strings.join(" "))
}

fn from_pem(pem: &str) -> Option<Vec<u8>> {
    let inner = pem.trim().strip_prefix(PEM_BEGIN.trim())?.strip_suffix(PEM_END.trim())?;
    STANDARD.decode(inner.split_ascii_whitespace().collect::<String>()).ok()
}

/// Pieces of ASCII text.
fn chunks(text: &str, length: usize) -> impl Iterator<Item = &str> {
    (0..text.len()).step_by(length).filter_map(move |at| text.get(at..text.len().min(at + length)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_key_has_the_record_of_its_public_part() {
        let ed25519 = record(DkimAlgorithm::Ed25519Sha256, &generate(DkimAlgorithm::Ed25519Sha256).unwrap()).unwrap();
        assert!(ed25519.starts_with("v=DKIM1; k=ed25519; p="), "{ed25519}");
        // 32 octets of an Ed25519 key, base64.
        assert_eq!(ed25519.rsplit_once("p=").unwrap().1.len(), 44);
        let rsa = record(DkimAlgorithm::RsaSha256, &generate(DkimAlgorithm::RsaSha256).unwrap()).unwrap();
        // The SubjectPublicKeyInfo of every RSA-2048 key with the exponent 65537 begins like this.
        assert!(rsa.starts_with("v=DKIM1; k=rsa; p=MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A"), "{rsa}");
        assert_eq!(record(DkimAlgorithm::RsaSha256, "nonsense"), Err(DkimError::Damaged));
    }

    #[test]
    fn no_string_of_the_zone_line_is_too_long_and_nothing_is_lost() {
        let text = "x".repeat(600);
        let line = zone_line("s", "example.com", &text);
        assert!(line.starts_with("s._domainkey.example.com. IN TXT ( \"xx"), "{line}");
        let strings: Vec<_> = line.split('"').skip(1).step_by(2).collect();
        assert_eq!(strings.concat(), text);
        assert!(strings.iter().all(|part| part.len() <= 255));
    }
}
