//! Signing keys of domains. A selector may have one key of each algorithm.

use super::user::Dkim;
use super::{DomainId, Key, State};
use crate::command::{DkimAlgorithm, Outcome, Refusal};
use crate::name::DomainName;

const ALGORITHMS: [DkimAlgorithm; 2] = [DkimAlgorithm::RsaSha256, DkimAlgorithm::Ed25519Sha256];

impl State {
    pub(super) fn dkim_put(
        &mut self,
        domain: &DomainName,
        selector: String,
        algorithm: DkimAlgorithm,
        private_key: String,
    ) -> Result<Outcome, Refusal> {
        let id = self.domain_id(domain)?;
        let created = self.clock.seen;
        self.touch(Key::Dkim { domain: id, selector: selector.clone(), algorithm });
        self.dkim.insert((id, selector, algorithm), Dkim { private_key, created });
        Ok(Outcome::Done)
    }

    pub(super) fn dkim_remove(&mut self, domain: DomainName, selector: String) -> Result<Outcome, Refusal> {
        let id = self.domain_id(&domain)?;
        if self.dkim_drop(id, |known| known == selector) {
            Ok(Outcome::Done)
        } else {
            Err(Refusal::UnknownDkimKey(domain, selector))
        }
    }

    /// Drops the keys of a domain whose selector is meant; true where there was one.
    pub(super) fn dkim_drop(&mut self, domain: DomainId, meant: impl Fn(&str) -> bool) -> bool {
        let mine = self.dkim.range((domain, String::new(), ALGORITHMS[0])..).map(|(key, _)| key);
        let mine = mine.take_while(|(of, _, _)| *of == domain).filter(|(_, selector, _)| meant(selector));
        let keys: Vec<_> = mine.cloned().collect();
        for key in &keys {
            self.dkim.remove(key);
            let (domain, selector, algorithm) = key.clone();
            self.touch(Key::Dkim { domain, selector, algorithm });
        }
        !keys.is_empty()
    }
}
