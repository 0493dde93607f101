//! Which of several certificates a client is shown.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use webpki::EndEntityCert;

/// The one of the name that the client asks for (SNI, RFC 6066 section 3), else a certain one.
#[derive(Debug)]
pub(super) struct Select {
    pub(super) by_name: Arc<ByName>,
    pub(super) otherwise: Arc<CertifiedKey>,
}

/// Certificates by the names in them, in lower case; a wildcard stands for one label (RFC 9525 section 6.3).
#[derive(Default, Debug)]
pub(super) struct ByName(BTreeMap<String, Arc<CertifiedKey>>);

impl ByName {
    /// Of two with the same name the first is shown. Returns how many names the certificate has.
    pub(super) fn add(&mut self, certificate: &Arc<CertifiedKey>) -> Result<usize, webpki::Error> {
        let Some(own) = certificate.cert.first() else { return Ok(0) };
        let own = EndEntityCert::try_from(own)?;
        let names: Vec<_> = own.valid_dns_names().map(str::to_ascii_lowercase).collect();
        let count = names.len();
        for name in names {
            self.0.entry(name).or_insert_with(|| Arc::clone(certificate));
        }
        Ok(count)
    }

    fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        let name = name.to_ascii_lowercase();
        let of_parent = || self.0.get(&format!("*{}", &name[name.find('.')?..]));
        self.0.get(&name).or_else(of_parent)
    }
}

impl ResolvesServerCert for Select {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello.server_name().and_then(|name| self.by_name.find(name));
        Some(Arc::clone(named.unwrap_or(&self.otherwise)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use rustls::crypto::aws_lc_rs;

    use super::*;

    fn certificate(names: &[&str]) -> Arc<CertifiedKey> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let key = made.signing_key.serialize_der().try_into().unwrap();
        let provider = aws_lc_rs::default_provider();
        Arc::new(CertifiedKey::from_der(vec![made.cert.der().clone()], key, &provider).unwrap())
    }

    #[test]
    fn a_name_finds_its_certificate_and_a_wildcard_stands_for_one_label() {
        let mut names = ByName::default();
        let (first, second) = (certificate(&["mail.a.test", "*.a.test"]), certificate(&["mail.a.test", "B.test"]));
        assert_eq!((names.add(&first).unwrap(), names.add(&second).unwrap()), (2, 2));
        let found = |name: &str| names.find(name).map(|found| Arc::ptr_eq(found, &first));
        assert_eq!(found("mail.a.test"), Some(true), "the first that has it");
        assert_eq!(found("SMTP.A.test"), Some(true));
        assert_eq!(found("b.TEST"), Some(false));
        for unknown in ["a.test", "x.smtp.a.test", "test", ".a.test.", ""] {
            assert_eq!(found(unknown), None, "{unknown}");
        }
    }
}
