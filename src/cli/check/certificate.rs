//! When a certificate ends, and whether its key fits.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;

/// The `notAfter` of the chain's first certificate; the fault names its file.
pub(super) fn end(certificate: &Path, key: &Path) -> Result<SystemTime, String> {
    let read =
        |path: &Path| std::fs::read(path).map_err(|error| format!("{}: cannot read it: {error}", path.display()));
    let (pem, key_pem) = (read(certificate)?, read(key)?);
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|error| format!("{}: not PEM: {error}", certificate.display()))?;
    let first = chain.first().cloned().ok_or_else(|| format!("{}: holds no certificate", certificate.display()))?;
    let private = PrivateKeyDer::from_pem_slice(&key_pem)
        .map_err(|error| format!("{}: holds no private key: {error}", key.display()))?;
    CertifiedKey::from_der(chain, private, &rustls::crypto::aws_lc_rs::default_provider())
        .map_err(|error| format!("{}: does not fit {}: {error}", key.display(), certificate.display()))?;
    not_after(&first).ok_or_else(|| format!("{}: its validity cannot be read", certificate.display()))
}

/// RFC 5280 section 4.1: Certificate { tbs { [0] version, serial, algorithm, issuer, validity { from, to } … } … }.
fn not_after(der: &[u8]) -> Option<SystemTime> {
    let (_, certificate, _) = element(der)?;
    let (_, tbs, _) = element(certificate)?;
    let (tag, _, rest) = element(tbs)?;
    let fields = if tag == VERSION { rest } else { tbs };
    let (_, _, fields) = element(fields)?;
    let (_, _, fields) = element(fields)?;
    let (_, _, fields) = element(fields)?;
    let (tag, validity, _) = element(fields)?;
    if tag != SEQUENCE {
        return None;
    }
    let (_, _, to) = element(validity)?;
    let (tag, text, _) = element(to)?;
    time(tag, std::str::from_utf8(text).ok()?)
}

/// Tag, content and what follows of the first DER element.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (octets, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        let grow = |length: usize, &octet: &u8| length.checked_mul(256)?.checked_add(usize::from(octet));
        (octets.iter().try_fold(0, grow)?, rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// `YYMMDDHHMMSSZ` up to 2049, `YYYYMMDDHHMMSSZ` from then on.
fn time(tag: u8, text: &str) -> Option<SystemTime> {
    let text = if tag == UTC_TIME {
        let century = if text.get(..2)?.parse::<u8>().ok()? < 50 { "20" } else { "19" };
        format!("{century}{text}")
    } else {
        text.to_owned()
    };
    let at = jiff::civil::DateTime::strptime("%Y%m%d%H%M%SZ", &text).ok()?;
    let seconds = at.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second();
    UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_end_of_a_certificate_is_read_and_a_strange_key_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        for year in [2031, 2077] {
            let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 3, 4);
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate = file("cert.pem", &params.self_signed(&key).unwrap().pem());
            let expected: jiff::Timestamp = format!("{year}-03-04T00:00:00Z").parse().unwrap();
            let end = end(&certificate, &file("key.pem", &key.serialize_pem())).unwrap();
            assert_eq!(end, SystemTime::from(expected));
        }
        let strange = file("other.pem", &rcgen::KeyPair::generate().unwrap().serialize_pem());
        let certificate = directory.path().join("cert.pem");
        assert!(end(&certificate, &strange).unwrap_err().contains("other.pem"));
        assert!(end(&file("none.pem", "nothing"), &strange).unwrap_err().contains("none.pem"));
        assert!(end(Path::new("/nonexistent"), &strange).unwrap_err().contains("/nonexistent"));
    }
}
