//! Sender rules: `require_from_domain`, then `allowed_senders`, then `blocked_senders`.
//!
//! All three hold for the envelope sender and for every address in header From. Domains compare as A-labels, so
//! no spelling of an international name passes by a rule.

use std::borrow::Cow;

use outgate_cluster::state::UserView;
use outgate_cluster::state::settings::{IdentificationMethod, Settings};
use outgate_cluster::{DomainName, Login};

use crate::check::{Check, Effect, Finding, HeaderFrom, Refusal};
use crate::mail::Address;

/// The rule that an address breaks.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
pub enum SenderRule {
    #[error("not in require_from_domain")]
    RequiredDomain,
    #[error("not in allowed_senders")]
    Allowed,
    #[error("in blocked_senders")]
    Blocked,
}

/// Whether the User may write as this address.
pub fn permits(settings: &Settings, address: &Address) -> Result<(), SenderRule> {
    let domain = ascii_domain(address);
    let in_required = |rule: &String| domain_matches(rule, &domain);
    if !settings.require_from_domain.is_empty() && !settings.require_from_domain.iter().any(in_required) {
        return Err(SenderRule::RequiredDomain);
    }
    let text = format!("{}@{domain}", address.local().to_lowercase());
    let matches = |pattern: &String| address_matches(pattern, &text);
    if !settings.allowed_senders.is_empty() && !settings.allowed_senders.iter().any(matches) {
        return Err(SenderRule::Allowed);
    }
    if settings.blocked_senders.iter().any(matches) { Err(SenderRule::Blocked) } else { Ok(()) }
}

/// Header From under the rules. Where there are rules, a From that is missing or unreadable breaks them.
pub fn header_from(settings: &Settings, from: &HeaderFrom) -> Option<Finding> {
    let ruled = !(settings.require_from_domain.is_empty()
        && settings.allowed_senders.is_empty()
        && settings.blocked_senders.is_empty());
    let refuse = |text| Finding { check: Check::SenderRules, effect: Effect::Refuse(Refusal::HeaderFrom), text };
    let note = |text| Finding { check: Check::SenderRules, effect: Effect::Note, text };
    let weigh = |text: &str| if ruled { refuse(text.to_owned()) } else { note(text.to_owned()) };
    match from {
        HeaderFrom::Missing => Some(weigh("there is no From field")),
        HeaderFrom::Unreadable => Some(weigh("the From field is no list of addresses")),
        HeaderFrom::Addresses(addresses) => addresses.iter().find_map(|address| {
            let rule = permits(settings, address).err()?;
            Some(refuse(format!("header From {address} is {rule}")))
        }),
    }
}

/// Whether the User's mail is signed with the key of an author's domain. The domains of others have keys here as well, so
/// a person needs to belong to the domain, by login or by `require_from_domain`. A network or a smarthost, told by
/// `identification_method`, sends for many domains that no rule lists: it signs for all.
pub fn may_sign_for(user: &UserView, domain: &DomainName) -> bool {
    let is_smarthost = match user.settings.identification_method {
        IdentificationMethod::None => matches!(user.login, Login::Network(_)),
        IdentificationMethod::EnvelopeSender
        | IdentificationMethod::AuthenticationUser
        | IdentificationMethod::Header => true,
    };
    let required = &user.settings.require_from_domain;
    is_smarthost || user.domain == *domain || required.iter().any(|rule| domain_matches(rule, domain.as_str()))
}

/// `example.com` is that domain alone; `.example.com` and `*.example.com` are all domains below it.
fn domain_matches(rule: &str, domain: &str) -> bool {
    let rule = rule.trim();
    match rule.strip_prefix("*.").or_else(|| rule.strip_prefix('.')) {
        Some(parent) => {
            let parent = ascii(parent);
            domain.strip_suffix(parent.as_ref()).is_some_and(|below| below.len() > 1 && below.ends_with('.'))
        }
        None => domain == ascii(rule),
    }
}

/// `local@domain`, `@domain` or `domain`, with `*` for any run of characters; compared without case.
fn address_matches(pattern: &str, address: &str) -> bool {
    let pattern = pattern.trim();
    let (local, domain) = pattern.rsplit_once('@').unwrap_or(("", pattern));
    let local = if local.is_empty() { "*" } else { local };
    wildcard(&format!("{}@{}", local.to_lowercase(), ascii(domain)), address)
}

/// The domain as DNS knows it; a literal stays as it is.
fn ascii_domain(address: &Address) -> String {
    address.dns_domain().unwrap_or_else(|| address.domain().to_owned())
}

fn ascii(domain: &str) -> Cow<'_, str> {
    match idna::domain_to_ascii(domain) {
        Ok(ascii) => Cow::Owned(ascii),
        Err(_) => Cow::Owned(domain.to_lowercase()),
    }
}

/// `*` = any run of bytes, none included. Linear but for the last star's retries.
fn wildcard(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((star_p, star_t)) = star {
            star = Some((star_p, star_t + 1));
            (p, t) = (star_p + 1, star_t + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn domains_and_the_domains_below_them() {
        for (rule, domain, expected) in [
            ("example.com", "example.com", true),
            ("Example.COM", "example.com", true),
            ("example.com", "sub.example.com", false),
            ("example.com", "badexample.com", false),
            (".example.com", "sub.example.com", true),
            (".example.com", "a.b.example.com", true),
            ("*.example.com", "sub.example.com", true),
            ("*.example.com", "example.com", false),
            (".example.com", "example.com", false),
            (".example.com", "badexample.com", false),
            ("bücher.example", "xn--bcher-kva.example", true),
            (".bücher.example", "a.xn--bcher-kva.example", true),
        ] {
            assert_eq!(domain_matches(rule, domain), expected, "{rule} {domain}");
        }
    }

    #[test]
    fn address_patterns() {
        for (pattern, address, expected) in [
            ("alice@example.com", "alice@example.com", true),
            ("Alice@Example.com", "alice@example.com", true),
            ("@example.com", "bob@example.com", true),
            ("example.com", "bob@example.com", true),
            ("@example.com", "bob@sub.example.com", false),
            ("@*.example.com", "bob@sub.example.com", true),
            ("a*e@example.com", "alice@example.com", true),
            ("a*x@example.com", "alice@example.com", false),
            ("*", "anyone@example.com", true),
            ("*@*", "anyone@example.com", true),
            ("@bücher.example", "a@xn--bcher-kva.example", true),
            ("a*a*a*a*b@x.y", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa@x.y", false),
        ] {
            assert_eq!(address_matches(pattern, address), expected, "{pattern} {address}");
        }
    }

    fn settings(change: impl FnOnce(&mut Settings)) -> Settings {
        let mut settings = Settings::default();
        change(&mut settings);
        settings
    }

    fn list(items: &[&str]) -> Vec<String> {
        items.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_rules_come_in_their_order() {
        let ruled = settings(|settings| {
            settings.require_from_domain = list(&["example.com", ".example.com"]);
            settings.allowed_senders = list(&["@example.com", "root@*.example.com"]);
            settings.blocked_senders = list(&["bad*@example.com"]);
        });
        for (address, expected) in [
            ("alice@example.com", Ok(())),
            ("root@host.example.com", Ok(())),
            ("alice@example.org", Err(SenderRule::RequiredDomain)),
            ("alice@[192.0.2.1]", Err(SenderRule::RequiredDomain)),
            ("alice@host.example.com", Err(SenderRule::Allowed)),
            ("Bad.guy@example.com", Err(SenderRule::Blocked)),
        ] {
            assert_eq!(permits(&ruled, &address.parse().unwrap()), expected, "{address}");
        }
        assert_eq!(permits(&Settings::default(), &"anyone@example.org".parse().unwrap()), Ok(()));
    }

    #[test]
    fn every_author_counts_and_an_unreadable_list_breaks_any_rule() {
        let ruled = settings(|settings| settings.require_from_domain = list(&["example.com"]));
        let authors = |list: &[&str]| HeaderFrom::Addresses(list.iter().map(|a| a.parse().unwrap()).collect());
        let effect = |settings: &Settings, from: &HeaderFrom| header_from(settings, from).map(|f| f.effect);
        let refused = Some(Effect::Refuse(Refusal::HeaderFrom));
        assert_eq!(effect(&ruled, &authors(&["a@example.com", "b@example.com"])), None);
        assert_eq!(effect(&ruled, &authors(&["a@example.com", "b@example.org"])), refused);
        assert_eq!(effect(&ruled, &HeaderFrom::Missing), refused);
        assert_eq!(effect(&ruled, &HeaderFrom::Unreadable), refused);
        assert_eq!(effect(&Settings::default(), &HeaderFrom::Unreadable), Some(Effect::Note));
        assert_eq!(effect(&Settings::default(), &authors(&["b@example.org"])), None);
    }
}
