//! The person inside a smarthost's mail (`identification_method`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use outgate_cluster::state::settings::{IdentificationHeader, IdentificationMethod, Settings};
use regex::{Regex, RegexBuilder};

use crate::mail::{Message, ReversePath};

/// Octets of an identity; the state keeps counters under it.
const IDENTITY_LENGTH_MAX: usize = 254;
/// Octets of a field that a regular expression is run over.
const FIELD_LENGTH_MAX: usize = 4 << 10;
/// Compiled size of one expression.
const REGEX_SIZE_MAX: usize = 1 << 20;
/// Compiled expressions that are kept.
const REGEXES_MAX: usize = 256;

/// What an identity may be taken from. Without a message `header` finds none.
#[derive(Clone, Copy, Debug)]
pub struct Traits<'a> {
    pub reverse_path: &'a ReversePath,
    pub authentication_user: Option<&'a str>,
    pub message: Option<&'a Message>,
}

/// In lower case, printable and bounded; `None` where the method finds nobody.
pub fn identity(settings: &Settings, traits: Traits<'_>) -> Option<String> {
    let text = match settings.identification_method {
        IdentificationMethod::None => None,
        IdentificationMethod::EnvelopeSender => traits.reverse_path.address().map(ToString::to_string),
        IdentificationMethod::AuthenticationUser => traits.authentication_user.map(str::to_owned),
        IdentificationMethod::Header => {
            traits.message.and_then(|message| from_headers(&settings.identification_headers, message))
        }
    };
    text.and_then(|text| normalised(&text))
}

/// The first listed header that is present wins, whether its expression matches or not.
fn from_headers(headers: &[IdentificationHeader], message: &Message) -> Option<String> {
    let (rule, field) = headers.iter().find_map(|rule| Some((rule, message.named(&rule.name).next()?)))?;
    let value = if field.value.len() <= FIELD_LENGTH_MAX { field.text() } else { return None };
    match rule.regex.as_deref().filter(|pattern| !pattern.is_empty()) {
        None => Some(value),
        Some(pattern) => first_group(pattern, &value),
    }
}

/// The first group, or the whole match of an expression without groups.
fn first_group(pattern: &str, value: &str) -> Option<String> {
    let captures = compiled(pattern)?.captures(value)?;
    captures.get(1).or_else(|| captures.get(0)).map(|found| found.as_str().to_owned())
}

/// Compiles, or finds what was compiled before: compiling costs more than a whole message does.
fn compiled(pattern: &str) -> Option<Arc<Regex>> {
    static COMPILED: Mutex<BTreeMap<String, Option<Arc<Regex>>>> = Mutex::new(BTreeMap::new());
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = compiled.get(pattern) {
        return known.clone();
    }
    let regex = RegexBuilder::new(pattern).size_limit(REGEX_SIZE_MAX).build();
    let regex = regex.inspect_err(|error| tracing::warn!(%error, "identification_headers: not an expression")).ok();
    if compiled.len() >= REGEXES_MAX {
        compiled.clear();
    }
    let regex = regex.map(Arc::new);
    compiled.insert(pattern.to_owned(), regex.clone());
    regex
}

fn normalised(text: &str) -> Option<String> {
    let mut identity = String::new();
    for c in text.trim().chars().filter(|c| !c.is_control()).flat_map(char::to_lowercase) {
        if identity.len() + c.len_utf8() > IDENTITY_LENGTH_MAX {
            break;
        }
        identity.push(c);
    }
    (!identity.is_empty()).then_some(identity)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use bytes::Bytes;

    use super::*;

    fn of(method: IdentificationMethod, headers: &[(&str, Option<&str>)], text: &str) -> Option<String> {
        let rule = |(name, regex): &(&str, Option<&str>)| IdentificationHeader {
            name: (*name).to_owned(),
            regex: regex.map(str::to_owned),
            remove: false,
        };
        let settings = Settings {
            identification_method: method,
            identification_headers: headers.iter().map(rule).collect(),
            ..Settings::default()
        };
        let message = Message::new(Bytes::from(text.to_owned()));
        let reverse_path = ReversePath::Address("Carol@Example.com".parse().unwrap());
        let traits = Traits {
            reverse_path: &reverse_path,
            authentication_user: Some("Login@example.com"),
            message: Some(&message),
        };
        identity(&settings, traits)
    }

    #[test]
    fn each_method_finds_its_own() {
        let text = "X-User: Dave\r\nX-Mail: \"x\" <erin@example.com>\r\n\r\n";
        let found = |text: &str| Some(text.to_owned());
        assert_eq!(of(IdentificationMethod::None, &[("X-User", None)], text), None);
        assert_eq!(of(IdentificationMethod::EnvelopeSender, &[], text), found("carol@example.com"));
        assert_eq!(of(IdentificationMethod::AuthenticationUser, &[], text), found("login@example.com"));
        let header = |headers: &[(&str, Option<&str>)]| of(IdentificationMethod::Header, headers, text);
        assert_eq!(header(&[("X-None", None), ("x-user", None)]), found("dave"));
        assert_eq!(header(&[("X-Mail", Some("<([^@]+)@"))]), found("erin"));
        assert_eq!(header(&[("X-Mail", Some("erin@[a-z.]+"))]), found("erin@example.com"), "no group: the match");
        assert_eq!(header(&[("X-Mail", Some("nobody")), ("X-User", None)]), None, "the first header present wins");
        assert_eq!(header(&[("X-User", Some("(broken"))]), None);
        assert_eq!(header(&[]), None);
    }

    #[test]
    fn an_identity_is_bounded_and_printable() {
        let long = format!("X-User: {}\r\n\r\n", "\u{e4}\u{1}".repeat(500));
        let identity = of(IdentificationMethod::Header, &[("X-User", None)], &long).unwrap();
        assert_eq!(identity.len(), 254);
        assert!(!identity.contains('\u{1}'));
        let endless = format!("X-User: {}\r\n\r\n", "a".repeat(FIELD_LENGTH_MAX + 1));
        assert_eq!(of(IdentificationMethod::Header, &[("X-User", None)], &endless), None);
    }
}
