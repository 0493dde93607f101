//! File and environment to a typed configuration, all errors at once.
//!
//! The document is held against the table of keys first, value by value, so that each fault can name its
//! line; only a document without faults becomes a [`Config`], and then the rules between keys are checked.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::document::{self, Document, nearest};
use super::schema::{KEYS, Key, LISTENER, list_of, names_in};
use super::{Config, ListenerConfig};

/// Every fault of a configuration, one line each: what, where, how to mend it.
#[derive(thiserror::Error, Debug)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

/// Reads `path`, then `OUTGATE_…` variables over it (`OUTGATE_SMTP_VERB_TIMEOUT_S` is `smtp.verb_timeout_s`).
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        ConfigError(vec![format!("{}: cannot read it: {error}: name the file with --config", path.display())])
    })?;
    parse(
        path,
        &text,
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
    )
}

/// As [`load`], with the text and the environment given.
pub fn parse(
    path: &Path,
    text: &str,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Config, ConfigError> {
    let mut document = document::read(path, text);
    overlay(&mut document, environment);
    if !document.faults.is_empty() {
        return Err(ConfigError(document.faults));
    }
    let table = std::mem::take(&mut document.root);
    let config = Config::deserialize(table)
        .map_err(|error| ConfigError(vec![format!("{}: {}", path.display(), error.message().replace('\n', ", "))]))?;
    let faults = between_keys(&config, &document);
    if faults.is_empty() { Ok(config) } else { Err(ConfigError(faults)) }
}

fn overlay(document: &mut Document, environment: impl IntoIterator<Item = (String, String)>) {
    let keys: BTreeMap<String, &Key> =
        KEYS.iter().filter(|key| list_of(key.section).is_none()).map(|key| (key.variable(), key)).collect();
    let mut variables: Vec<_> = environment.into_iter().filter(|(name, _)| name.starts_with("OUTGATE_")).collect();
    variables.sort();
    for (name, value) in variables {
        match keys.get(&name) {
            Some(key) => document.set(key, &value),
            None if names_section(&name) => document.faults.push(unknown_variable(&name, &keys)),
            None => {}
        }
    }
}

/// Whether it is `OUTGATE_SECTION_…`. Others are the command line's, or what container platforms set for a service of
/// this name (`OUTGATE_PORT`, `OUTGATE_SERVICE_HOST`): they must not keep a node from starting.
fn names_section(variable: &str) -> bool {
    let rest = variable.strip_prefix("OUTGATE_").and_then(|rest| rest.split_once('_'));
    rest.is_some_and(|(section, _)| names_in("").iter().any(|known| known.eq_ignore_ascii_case(section)))
}

fn unknown_variable(name: &str, keys: &BTreeMap<String, &Key>) -> String {
    let known: Vec<&str> = keys.keys().map(String::as_str).collect();
    match nearest(name, &known) {
        Some(near) => format!("{name}: no key has this variable: did you mean {near}?"),
        None => format!("{name}: no key has this variable: write OUTGATE_SECTION_KEY, or unset it"),
    }
}

fn between_keys(config: &Config, document: &Document) -> Vec<String> {
    let mut faults = Vec::new();
    match (&config.tls.certificate, &config.tls.key) {
        (Some(_), None) => faults.push(format!(
            "{}: tls.certificate: it needs its private key: add tls.key",
            document.place("tls.certificate")
        )),
        (None, Some(_)) => faults
            .push(format!("{}: tls.key: it needs its certificate: add tls.certificate", document.place("tls.key"))),
        (Some(_), Some(_)) | (None, None) => {}
    }
    if config.listener.is_empty() {
        faults.push("listener: there is none: add a [[listener]] with address and mode".to_owned());
    }
    faults.extend(duplicate_listeners(&config.listener, document));
    if let Some(at) = config.listener.iter().position(|listener| collides(listener, config)) {
        faults.push(format!(
            "{}: http.address: {} is the address of listener {} too: give another port",
            document.place("http.address"),
            config.http.address,
            at + 1
        ));
    }
    if config.delivery.relay.is_empty() && !config.delivery.relay_auth.is_empty() {
        let place = document.place("delivery.relay_auth");
        faults.push(format!("{place}: delivery.relay_auth: there is no relay to log in to: add delivery.relay"));
    }
    faults
}

/// Port 0 means "any free port" and collides with nothing.
fn collides(listener: &ListenerConfig, config: &Config) -> bool {
    listener.address == config.http.address && listener.address.port() != 0
}

fn duplicate_listeners(listeners: &[ListenerConfig], document: &Document) -> Vec<String> {
    let earlier = |at: usize| listeners[..at].iter().any(|other| other.address == listeners[at].address);
    (0..listeners.len())
        .filter(|&at| listeners[at].address.port() != 0 && earlier(at))
        .map(|at| {
            let place = document.place(&format!("{LISTENER}.{at}.address"));
            let address = listeners[at].address;
            format!("{place}: listener.address: {address} is there twice: give each listener its own address or port")
        })
        .collect()
}
