#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::load::parse;
use super::schema::{KEYS, LISTS};
use super::{Config, ListenerMode};

fn faults_of(text: &str, environment: &[(&str, &str)]) -> Vec<String> {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    parse(Path::new("outgate.toml"), text, environment).map_or_else(|error| error.0, |_| Vec::new())
}

/// Each document has exactly one fault, whose line has these parts.
#[test]
fn every_fault_is_one_line_that_tells_where_and_how_to_mend_it() {
    let listener = "[[listener]]\naddress = \"127.0.0.1:587\"\nmode = \"submission\"\n";
    let table: &[(&str, &[&str])] = &[
        ("[smtp]\nrecipient_max = 5", &["outgate.toml:2", "smtp.recipient_max", "did you mean `recipients_max`"]),
        ("[smtp]\nrecipients_maximum = 5", &["outgate.toml:2", "did you mean `recipients_max`"]),
        ("[smpt]\n", &["outgate.toml:1", "did you mean `smtp`"]),
        ("verb_timeout_s = 1", &["outgate.toml:1", "belongs into [smtp]"]),
        ("[smtp]\nzzzzzzzz = 5", &["unknown key `smtp.zzzzzzzz`", "known here are"]),
        ("[smtp]\n\nverb_timeout_s = 0", &["outgate.toml:3", "smtp.verb_timeout_s", "`0`", "1…"]),
        ("[smtp]\nverb_timeout_s = \"5\"", &["outgate.toml:2", "`\"5\"` does not fit", "whole number"]),
        ("[delivery]\nport = 70000", &["delivery.port", "1…65535"]),
        ("[delivery]\nport = 0", &["delivery.port", "1…65535"]),
        ("[delivery]\nrelay = \"mx.example.com\"", &["delivery.relay", "host:port"]),
        ("[delivery]\nrelay = \"mx.example.com:0\"", &["delivery.relay", "host:port"]),
        ("[delivery]\nrelay = \"::1:25\"", &["delivery.relay", "host:port"]),
        ("[delivery]\nrelay_auth = \"a:b\"", &["outgate.toml:2", "delivery.relay_auth", "add delivery.relay"]),
        ("[delivery]\nsource = \"here\"", &["delivery.source", "IP address"]),
        ("[delivery]\nlocal_addresses = \"yes\"", &["outgate.toml:2", "delivery.local_addresses", "true or false"]),
        ("[delivery.retry]\nfactor = 0.5", &["outgate.toml:2", "delivery.retry.factor", "1.0…"]),
        ("[dns]\nservers = [\"192.0.2.53\"]", &["dns.servers", "address:port"]),
        ("[dns]\ntimeout_s = 0", &["dns.timeout_s"]),
        ("[smtp]\ntrusted_networks = [\"192.0.2.1/24\"]", &["smtp.trusted_networks", "192.0.2.0/24"]),
        ("[smtp]\ntrusted_networks = [\"192.0.2.0/33\"]", &["smtp.trusted_networks", "networks"]),
        ("[smtp]\ntrusted_networks = \"192.0.2.0/24\"", &["smtp.trusted_networks", "list"]),
        ("[tls]\ncertificate = \"a.pem\"", &["outgate.toml:2", "tls.certificate", "add tls.key"]),
        ("[tls]\nkey = \"a.pem\"", &["outgate.toml:2", "tls.key", "add tls.certificate"]),
        ("[node]\nhostname = \"a b\"", &["node.hostname", "host name"]),
        ("[log]\nformat = \"xml\"", &["log.format", "\"text\" or \"json\""]),
        ("[log]\nlevel = \"loud\"", &["outgate.toml:2", "log.level", "`\"loud\"` does not fit", "debug"]),
        ("[log]\nlevel = \"info,outgate=loud\"", &["outgate.toml:2", "log.level"]),
        ("[log]\nlevel = \"\"", &["outgate.toml:2", "log.level"]),
        ("[cluster]\nlisten = \"7587\"", &["cluster.listen", "address:port"]),
        ("[cluster]\nadvertise = \"mx1\"", &["cluster.advertise", "host:port"]),
        ("[http]\naddress = \"8080\"", &["http.address", "address:port"]),
        ("listener = []", &["[[listener]]"]),
        ("[[listener]]\naddress = \"127.0.0.1:587\"", &["outgate.toml:1", "listener.mode", "missing"]),
        ("[[listener]]\naddress = \"127.0.0.1:587\"\nmode = \"smtp\"", &["outgate.toml:3", "listener.mode"]),
        ("[listener]\naddress = \"127.0.0.1:587\"", &["outgate.toml:1", "[[listener]]"]),
        ("smtp = 5", &["outgate.toml:1", "[smtp]"]),
        ("[[certificate]]\ncertificate = \"a.pem\"", &["outgate.toml:1", "certificate.key", "missing"]),
        ("[certificate]\nkey = \"a.pem\"", &["outgate.toml:1", "[[certificate]]"]),
        ("certificate = \"a.pem\"", &["outgate.toml:1", "[[certificate]]"]),
        ("[node\n", &["outgate.toml:1", "not TOML"]),
        ("[http]\naddress = \"0.0.0.0:587\"", &["outgate.toml:2", "http.address", "listener 1"]),
        (&format!("{listener}{listener}"), &["outgate.toml:5", "127.0.0.1:587", "twice"]),
    ];
    for (text, parts) in table {
        let faults = faults_of(text, &[]);
        assert_eq!(faults.len(), 1, "{text}: {faults:?}");
        for part in *parts {
            assert!(faults[0].contains(part) && !faults[0].contains('\n'), "`{part}` in {faults:?}");
        }
    }
}

#[test]
fn every_level_and_every_filter_of_the_log_is_taken() {
    for level in ["error", "WARN", "info", "debug", "trace", "off", "info,outgate::delivery=debug", "outgate=off, warn"]
    {
        assert_eq!(faults_of(&format!("[log]\nlevel = \"{level}\""), &[]), Vec::<String>::new(), "{level}");
    }
}

#[test]
fn all_faults_are_told_at_once() {
    let text = "[smtp]\nerrors_max = 0\n[dns]\ntimeout_s = -1\n[logs]\n";
    let faults = faults_of(text, &[("OUTGATE_DELIVERY_PORT", "x"), ("OUTGATE_SMTP_ERROR_MAX", "5")]);
    assert_eq!(faults.len(), 5, "{faults:?}");
    let in_file: Vec<_> = faults.iter().filter_map(|fault| fault.strip_prefix("outgate.toml:")?.get(..1)).collect();
    assert_eq!(in_file, ["2", "4", "5"], "{faults:?}");
    assert!(faults.iter().any(|fault| fault.starts_with("OUTGATE_DELIVERY_PORT: delivery.port")), "{faults:?}");
    assert!(faults.iter().any(|fault| fault.contains("did you mean OUTGATE_SMTP_ERRORS_MAX")), "{faults:?}");
}

#[test]
fn a_password_is_not_repeated_in_a_fault() {
    let faults = faults_of("[delivery]\nrelay = \"h:25\"\nrelay_auth = \":secret\"", &[]);
    assert!(faults.len() == 1 && !faults[0].contains("secret"), "{faults:?}");
}

#[test]
fn the_environment_stands_over_the_file() {
    let environment = [
        ("OUTGATE_NODE_DATA_DIR", "/elsewhere"),
        ("OUTGATE_DELIVERY_RETRY_FACTOR", "2"),
        ("OUTGATE_DELIVERY_LOCAL_ADDRESSES", "true"),
        ("OUTGATE_SMTP_TRUSTED_NETWORKS", "192.0.2.0/24, 2001:db8::/32"),
        ("OUTGATE_SOCKET", "no key"),
        ("OUTGATE_PORT_587_TCP", "no key"),
        ("HOME", "no key"),
    ];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let text = "[node]\ndata_dir = \"/here\"\n[delivery.retry]\nfactor = 3.0\ninterval_s = 7";
    let config = parse(Path::new("outgate.toml"), text, environment).unwrap();
    assert_eq!(config.node.data_dir, PathBuf::from("/elsewhere"));
    assert!((config.delivery.retry.factor - 2.0).abs() < f64::EPSILON);
    assert!(config.delivery.local_addresses);
    assert_eq!((config.delivery.retry.interval_s, config.smtp.trusted_networks.len()), (7, 2));
}

#[test]
fn only_variables_of_a_section_can_be_wrong() {
    let foreign =
        ["OUTGATE_PORT", "OUTGATE_PORT_587_TCP_ADDR", "OUTGATE_SERVICE_HOST", "OUTGATE_SOCKET", "OUTGATE_X_Y"];
    for name in foreign.into_iter().chain(["OUTGATE_", "OUTGATE_SMTP", "OUTGATE_SMTPX_Y", "OUTGATE__A"]) {
        assert_eq!(faults_of("", &[(name, "tcp://10.0.0.1:587")]), Vec::<String>::new(), "{name}");
    }
    for name in [
        "OUTGATE_SMTP_PORT",
        "OUTGATE_DELIVERY_RETRY_X",
        "OUTGATE_LISTENER_ADDRESS",
        "OUTGATE_CERTIFICATE_KEY",
        "OUTGATE_DNS_",
    ] {
        let faults = faults_of("", &[(name, "1")]);
        assert!(faults.len() == 1 && faults[0].starts_with(name), "{name}: {faults:?}");
    }
}

#[test]
fn an_empty_file_is_the_default() {
    assert_eq!(parse(Path::new("outgate.toml"), "", []).unwrap(), Config::default());
    let own = "[[listener]]\naddress = \"[::1]:0\"\nmode = \"submissions\"\n[[listener]]\naddress = \"[::1]:0\"\nmode = \"submission\"";
    let config = parse(Path::new("outgate.toml"), own, []).unwrap();
    assert_eq!(
        config.listener.iter().map(|own| own.mode).collect::<Vec<_>>(),
        [ListenerMode::Submissions, ListenerMode::Submission]
    );
}

fn config_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config")
}

fn files_under(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_under(&path) } else { vec![path] }).collect()
}

#[test]
fn every_configuration_that_is_shipped_is_valid() {
    let files: Vec<_> = files_under(&config_folder())
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .collect();
    assert!(!files.is_empty());
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(parse(&file, &text, []).map(drop).map_err(|error| error.0), Ok(()));
    }
}

#[test]
fn the_unit_runs_the_program_with_the_sample_s_path() {
    let unit = std::fs::read_to_string(config_folder().join("outgate.service")).unwrap();
    assert!(unit.contains("ExecStart=/usr/bin/outgate run --config /etc/outgate/outgate.toml\n"));
}

/// Keys that have no default stand in the sample as a comment.
const WITHOUT_DEFAULT: [&str; 7] = [
    "cluster.listen",
    "tls.certificate",
    "tls.key",
    "certificate.certificate",
    "certificate.key",
    "certificate.addresses",
    "delivery.source",
];

#[test]
fn the_sample_names_every_key_with_its_default() {
    let text = std::fs::read_to_string(config_folder().join("outgate.toml")).unwrap();
    assert_eq!(parse(Path::new("outgate.toml"), &text, []).unwrap(), Config::default());
    let sample = paths(&toml::from_str::<toml::Value>(&text).unwrap());
    let typed = paths(&toml::Value::try_from(Config::default()).unwrap());
    assert_eq!(sample, typed, "the sample and the typed keys");
    for key in WITHOUT_DEFAULT {
        let name = key.rsplit('.').next().unwrap();
        assert!(text.contains(&format!("\n# {name} = ")), "{key}");
    }
}

#[test]
fn the_table_of_keys_has_every_typed_key_and_no_other() {
    let mut typed = paths(&toml::Value::try_from(Config::default()).unwrap());
    typed.extend(WITHOUT_DEFAULT.map(str::to_owned));
    assert_eq!(KEYS.iter().map(super::schema::Key::path).collect::<BTreeSet<_>>(), typed);
}

fn paths(value: &toml::Value) -> BTreeSet<String> {
    fn walk(prefix: &str, value: &toml::Value, found: &mut BTreeSet<String>) {
        match value {
            toml::Value::Table(table) => {
                for (name, value) in table {
                    walk(&format!("{prefix}.{name}"), value, found);
                }
            }
            toml::Value::Array(list) if LISTS.iter().any(|(name, _)| prefix == format!(".{name}")) => {
                list.iter().for_each(|value| walk(prefix, value, found));
            }
            toml::Value::String(_)
            | toml::Value::Integer(_)
            | toml::Value::Float(_)
            | toml::Value::Boolean(_)
            | toml::Value::Datetime(_)
            | toml::Value::Array(_) => {
                found.insert(prefix.trim_start_matches('.').to_owned());
            }
        }
    }
    let mut found = BTreeSet::new();
    walk("", value, &mut found);
    found
}
