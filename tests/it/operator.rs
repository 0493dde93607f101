//! The command line: what it does, what it answers to wrong input, what it leaves untouched.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Output;

use crate::support::client::{Client, letter};
use crate::support::node::{PASSWORD, TestNode, outgate};
use crate::support::sink::Sink;

const ALICE: &str = "alice@demo.test";

/// Exit code 2 and one line that names each of `parts`.
fn assert_wrong_input(output: &Output, parts: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    for part in parts {
        assert!(text.contains(part), "`{part}` in {text}");
    }
    assert!(!text.contains("panicked") && text.lines().count() <= 4, "{text}");
}

#[test]
fn a_faulty_configuration_is_told_whole_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let run = |text: &str| {
        let file = directory.path().join("outgate.toml");
        fs::write(&file, text).unwrap();
        outgate(&["run", "--config", file.to_str().unwrap()])
    };
    assert_wrong_input(
        &run("[smtp]\nrecipients_maximum = 5\n"),
        &["outgate.toml:2", "recipients_maximum", "recipients_max"],
    );
    assert_wrong_input(&run("[delivery]\nrelay = \"no port\"\n[dns]\ntimeout_s = 0\n"), &["relay", "timeout_s"]);
    assert_wrong_input(&run("[node\n"), &["outgate.toml:1"]);
    assert_wrong_input(
        &run(&format!("[node]\ndata_dir = \"{}\"\n", directory.path().join("none").display())),
        &["outgate init"],
    );
    assert_wrong_input(&outgate(&["run", "--config", "/nonexistent/outgate.toml"]), &["/nonexistent/outgate.toml"]);
    assert!(!directory.path().join("none").exists());
}

#[test]
fn ports_in_use_bad_certificates_and_used_data_are_one_line() {
    let node = TestNode::start("");
    let directory = tempfile::tempdir().unwrap();
    let run = |data: &Path, more: &str| {
        let file = directory.path().join("outgate.toml");
        fs::write(
            &file,
            format!("{more}\n[http]\naddress = \"127.0.0.1:0\"\n[node]\ndata_dir = \"{}\"\n", data.display()),
        )
        .unwrap();
        outgate(&["run", "--config", file.to_str().unwrap()])
    };
    let fresh = directory.path().join("data");
    assert!(outgate(&["init", "--data", fresh.to_str().unwrap()]).status.success());
    let listener = |address: &str| format!("[[listener]]\naddress = \"{address}\"\nmode = \"submission\"\n");
    assert_wrong_input(&run(&node.data(), &listener("127.0.0.1:0")), &["in use"]);
    assert_wrong_input(
        &run(&fresh, &listener(&node.submission.to_string())),
        &[&node.submission.to_string(), "in use"],
    );
    let pem = directory.path().join("cert.pem");
    fs::write(&pem, "not a certificate").unwrap();
    let tls =
        format!("{}[tls]\ncertificate = \"{}\"\nkey = \"{}\"\n", listener("127.0.0.1:0"), pem.display(), pem.display());
    assert_wrong_input(&run(&fresh, &tls), &["cert.pem"]);
    let again = outgate(&["init", "--data", fresh.to_str().unwrap()]);
    assert_wrong_input(&again, &["already"]);
}

#[test]
fn an_import_names_line_column_and_reason_and_takes_all_or_none() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    let import = |text: &str, more: &[&str]| {
        let file = node.path().join("users.csv");
        fs::write(&file, text).unwrap();
        node.cli(&[&["user", "import", file.to_str().unwrap()], more].concat())
    };
    let broken = "carol,demo.test,secret one\nnot an address@,demo.test,x\n,demo.test,of the domain\n";
    assert_wrong_input(&import(broken, &["--strict"]), &["line 2"]);
    assert_eq!(node.json(&["user", "list"]).as_array().unwrap().len(), 1, "nothing was taken");
    let good = "\u{feff}user,domain,password\r\n\"carol\",demo.test,\"secret, one\"\r\n,demo.test,of the domain\r\n192.0.2.0/24,demo.test,\r\n";
    let output = import(good, &["--strict"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Client::login(node.submission, "carol@demo.test", "secret, one");
    Client::login(node.submission, "demo.test", "of the domain");
    let exported = node.ok(&["user", "export"]);
    assert!(exported.contains("192.0.2.0/24,demo.test") && !exported.contains("secret, one"), "{exported}");
}

#[test]
fn wrong_values_name_what_fits() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    assert_wrong_input(&node.cli(&["user", "set", ALICE, "lock_timeout=0"]), &["lock_timeout", "1", "10080"]);
    assert_wrong_input(&node.cli(&["user", "set", ALICE, "limit_per_fortnight=1"]), &["limit_per_fortnight"]);
    assert_wrong_input(&node.cli(&["user", "set", ALICE, "ip_authentication=false"]), &["ip_authentication"]);
    assert_wrong_input(&node.cli(&["user", "add", "not a login", "--password", "x"]), &["not a login"]);
    assert_wrong_input(&node.cli(&["user", "add", "192.0.2.1/24", "--domain", "demo.test"]), &["192.0.2.0/24"]);
    let unknown = node.cli(&["user", "lock", "nobody@demo.test"]);
    assert_eq!(unknown.status.code(), Some(1));
    let nowhere = outgate(&["user", "list", "--socket", "/nonexistent/control.sock"]);
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("/nonexistent/control.sock"));
}

#[test]
fn settings_are_inherited_level_by_level() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    let limit = || node.json(&["user", "show", ALICE])["settings"]["limit_per_minute"].clone();
    assert_eq!(limit(), serde_json::json!({"value": 60, "from": "cluster"}));
    node.ok(&["domain", "set", "demo.test", "limit_per_minute=7"]);
    assert_eq!(limit(), serde_json::json!({"value": 7, "from": "domain"}));
    node.ok(&["user", "set", ALICE, "limit_per_minute=60"]);
    assert_eq!(limit(), serde_json::json!({"value": 60, "from": "user"}));
    node.ok(&["user", "set", ALICE, "limit_per_minute=inherit"]);
    node.ok(&["domain", "set", "demo.test", "limit_per_minute=inherit"]);
    node.ok(&["settings", "set", "limit_per_minute=9"]);
    assert_eq!(limit(), serde_json::json!({"value": 9, "from": "cluster"}));
}

#[test]
fn the_log_is_searched_by_user_class_and_text() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    let mut client = node.login(ALICE);
    client.mail(ALICE, "bob@example.net", &letter(ALICE, "bob@example.net", "quarterly report", "hello"));
    client.mail(ALICE, "bob@example.net", &letter(ALICE, "bob@example.net", "win", crate::support::client::GTUBE));
    let count = |arguments: &[&str]| {
        node.json(&[&["log", "search"], arguments].concat())
            .as_array()
            .unwrap()
            .iter()
            .filter(|record| record["event"]["event"] == "submission")
            .count()
    };
    assert_eq!(count(&["--user", ALICE]), 2);
    assert_eq!(count(&["--class", "spam"]), 1);
    assert_eq!(count(&["--text", "quarterly"]), 1);
    assert_eq!(count(&["--text", "nothing like it"]), 0);
    assert_eq!(count(&["--since", "1h", "--status", "quarantined"]), 1);
    let delivered = |filter: &str, of: &str| {
        let found = node.json(&["log", "search", filter, of, "--status", "delivered"]);
        found.as_array().unwrap().first().map(|record| record["event"]["sender"].clone())
    };
    crate::support::wait_for("a delivery of alice", || delivered("--user", ALICE));
    assert_eq!(delivered("--domain", "demo.test"), Some(ALICE.into()));
    assert_eq!(delivered("--user", "lice@demo.test"), None);
    let held = node.json(&["quarantine", "list"])[0]["id"].as_str().unwrap().to_owned();
    node.ok(&["quarantine", "remove", &held]);
    assert_eq!(node.json(&["log", "search", "--user", ALICE, "--status", "removed"])[0]["id"], held.as_str());
    let mail = node.json(&["log", "search", "--user", ALICE, "--text", "quarterly"])[0]["id"].clone();
    let why = node.ok(&["why", mail.as_str().unwrap()]);
    assert!(why.contains("user/minute 0 -> 1 / 60"), "{why}");
    assert!(node.ok(&["why", &held]).contains("user/minute 1 -> 1 / 60"));
    assert!(node.ok(&["why", ALICE]).contains("recent"));
}

/// A new certificate for the name: as clients see it (DER), and the lines that configure it.
fn write_certificate(directory: &Path, name: &str) -> (Vec<u8>, String) {
    let (certificate, key) = (directory.join(format!("{name}.pem")), directory.join(format!("{name}.key")));
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    fs::write(&certificate, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let lines = format!("certificate = \"{}\"\nkey = \"{}\"\n", certificate.display(), key.display());
    (made.cert.der().to_vec(), lines)
}

#[test]
fn a_client_sees_the_certificate_of_the_name_that_it_asks_for_or_of_the_address_that_it_reached() {
    let directory = tempfile::tempdir().unwrap();
    let made = |name: &str| write_certificate(directory.path(), name);
    let ((first, first_files), (customer, customer_files), (other, other_files)) =
        (made("mx.test"), made("mail.customer.test"), made("mail.other.test"));
    let node = TestNode::start(&format!(
        "[[listener]]\naddress = \"0.0.0.0:0\"\nmode = \"submission\"\n[[listener]]\naddress = \"0.0.0.0:0\"\nmode = \"submissions\"\n[tls]\n{first_files}[[certificate]]\n{customer_files}[[certificate]]\n{other_files}addresses = [\"127.0.0.7/32\"]\n"
    ));
    let shown = |address: &str, name: &str| {
        Client::peer_certificate(SocketAddr::new(address.parse().unwrap(), node.submissions.port()), name)
    };
    for address in ["127.0.0.1", "127.0.0.7"] {
        assert!(shown(address, "mx.test") == first);
        assert!(shown(address, "Mail.Customer.test") == customer);
        assert!(shown(address, "mail.other.test") == other);
    }
    // Who asks for another name, or (with an address in place of one) for none.
    for name in ["round-robin.test", "127.0.0.1"] {
        assert!(shown("127.0.0.1", name) == first);
        assert!(shown("127.0.0.7", name) == other);
    }
    let (renewed, _) = made("mail.customer.test");
    node.hang_up();
    crate::support::wait_for("the renewed one", || (shown("127.0.0.1", "mail.customer.test") == renewed).then_some(()));
}

#[test]
fn a_certificate_is_exchanged_by_sighup() {
    let directory = tempfile::tempdir().unwrap();
    let (first, files) = write_certificate(directory.path(), "localhost");
    let node = TestNode::start(&format!("[tls]\n{files}"));
    let presented = || Client::peer_certificate(node.submissions, "localhost");
    assert_eq!(presented(), first);
    let (second, _) = write_certificate(directory.path(), "localhost");
    node.hang_up();
    crate::support::wait_for("the new certificate", || (presented() == second).then_some(()));
    fs::write(directory.path().join("localhost.key"), "broken").unwrap();
    node.hang_up();
    crate::support::wait_for("a complaint", || node.log().contains("localhost.key").then_some(()));
    assert_eq!(presented(), second);
}

#[test]
fn passwords_come_by_standard_input_and_never_show() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    for arguments in
        [&["user", "show", ALICE][..], &["user", "list"], &["user", "export"], &["why", ALICE], &["log", "search"]]
    {
        assert!(!node.ok(arguments).contains(PASSWORD));
    }
}

#[test]
fn an_import_takes_the_good_lines_and_names_every_bad_one() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    let file = node.path().join("users.csv");
    let long = "x".repeat(1_000_000);
    let mut bytes = format!("a b,demo.test,pw\n\ncarol,demo.test,pw,more\n{long}\u{1b},demo.test,pw\n").into_bytes();
    bytes.extend_from_slice(b"d\xfc,demo.test,pw\n,,\nerin,demo.test,pw\n");
    fs::write(&file, bytes).unwrap();
    let output = node.cli(&["user", "import", file.to_str().unwrap(), "--output", "csv"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.len() + output.stderr.len() < 5_000 && !output.stderr.contains(&0x1b));
    let faults = String::from_utf8(output.stdout).unwrap();
    for start in ["1,user,", "3,password,\"4 columns", "4,user,", "5,user,not UTF-8", "6,domain,"] {
        assert!(faults.lines().any(|line| line.starts_with(start)), "{start} in {faults}");
    }
    assert!(node.ok(&["user", "list"]).contains("erin@demo.test"));
}

#[test]
fn a_quote_without_end_spares_the_lines_before_it() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    let file = node.path().join("users.csv");
    fs::write(&file, "carol,demo.test,pw\nx y,demo.test,pw\ndave,demo.test,\"pw\nerin,demo.test,pw\n").unwrap();
    let import = |more: &[&str]| {
        let output = node.cli(&[&["user", "import", file.to_str().unwrap(), "--output", "csv"], more].concat());
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    for (way, code) in [(&["--strict"][..], 2), (&[], 1)] {
        let (exit, faults) = import(way);
        assert_eq!(exit, Some(code), "{faults}");
        for start in ["2,user,", "3,password,a quote that is opened here is never closed"] {
            assert!(faults.lines().any(|line| line.starts_with(start)), "{way:?}: {start} in {faults}");
        }
        let users = node.ok(&["user", "list"]);
        assert_eq!((users.contains("carol"), users.contains("erin")), (way.is_empty(), false), "{way:?}: {users}");
    }
}

#[test]
fn what_is_refused_makes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let data = data.to_str().unwrap();
    let place = ["--cluster", "127.0.0.1:7587", "--hostname", "bad host", "--data", data];
    assert_wrong_input(&outgate(&[&["init"][..], &place].concat()), &["--hostname", "`bad host`"]);
    let join = ["join", "127.0.0.1:9", "--token", "x"];
    assert_wrong_input(&outgate(&[&join[..], &place].concat()), &["--hostname", "`bad host`"]);
    assert!(!fs::exists(data).unwrap());
    assert!(outgate(&["init", "--data", data, "--hostname", "mx.demo.test"]).status.success());
    let names = || fs::read_dir(data).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    let before = names();
    let dev = outgate(&["dev", "--data", data, "--nodes", "0"]);
    assert_wrong_input(&dev, &["--nodes"]);
    assert_wrong_input(&outgate(&["dev", "--data", data]), &[data, "holds a node"]);
    assert_eq!(names(), before);
}

#[test]
fn an_export_tells_of_disabled_users() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    let export = || {
        let output = node.cli(&["user", "export"]);
        assert!(output.status.success() && String::from_utf8(output.stdout).unwrap().contains("alice,demo.test"));
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(export(), "");
    node.ok(&["user", "disable", ALICE]);
    assert_eq!(export(), "outgate: 1 of these users is disabled, and an import would enable it\n");
}

#[test]
fn settings_without_effect_say_so() {
    let node = TestNode::start("");
    let table = node.json(&["settings", "show"]);
    for key in ["bounce_tagging", "delivery_pool", "notify_admin"] {
        let row = table.as_array().unwrap().iter().find(|row| row["key"] == key).unwrap();
        assert!(row["help"].as_str().unwrap().contains("has no effect yet"), "{row}");
    }
}

#[test]
fn wrong_questions_are_exit_code_2_with_words() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    assert_wrong_input(&node.cli(&["log", "search", "--status", "foo"]), &["foo", "accepted"]);
    assert_wrong_input(&node.cli(&["log", "search", "--class", "foo"]), &["foo", "locked"]);
    assert_wrong_input(&node.cli(&["log", "search", "--id", "nope"]), &["`nope` is not a message id"]);
    assert_wrong_input(&node.cli(&["log", "search", "--limit", "0"]), &["1 to 10000"]);
    assert_wrong_input(&node.cli(&["log", "search", "--limit", "10001"]), &["1 to 10000"]);
    assert_wrong_input(&node.cli(&["why", ""]), &["a name is empty"]);
    assert_wrong_input(&node.cli(&["domain", "set", "demo.test", "route=mx.demo.test"]), &["give host:port"]);
    assert_wrong_input(&outgate(&["dev", "restart", "9", "--data", "/"]), &["no node 9"]);
    assert_wrong_input(&outgate(&["dev", "restart", "1", "--data", "/nonexistent"]), &["/nonexistent"]);
    for arguments in
        [["user", "show", "a\u{1b}[2Jb"], ["user", "list", "a\u{1b}[2Jb"], ["settings", "set", "a\u{1b}[2Jb"]]
    {
        let output = node.cli(&arguments);
        assert_eq!(output.status.code(), Some(2));
        assert!(!output.stderr.contains(&0x1b), "{arguments:?}");
    }
    let unknown = node.cli(&["dkim", "show", "nope.test"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("not known"));
}

#[test]
fn a_network_is_named_with_its_owner_and_changes_answer_in_json() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    let network = "192.0.2.0/24@demo.test";
    assert_eq!(node.json(&["user", "add", network])["login"], "192.0.2.0/24");
    assert_eq!(node.json(&["user", "show", network])["domain"], "demo.test");
    assert_eq!(node.json(&["user", "lock", network])["state"], "locked_manually");
    assert!(node.ok(&["why", network]).contains("locked_manually"));
    assert_eq!(node.cli(&["user", "show", "192.0.2.0/24@other.test"]).status.code(), Some(1));
    assert_eq!(node.json(&["user", "remove", network]), serde_json::json!({}));
    assert_eq!(node.json(&["domain", "set", "demo.test", "enabled=true"])["name"], "demo.test");
}

#[test]
fn check_and_run_agree() {
    let directory = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let outcome = |port: &str, data: &str| {
        let file = directory.path().join("outgate.toml");
        let listener = format!("[[listener]]\naddress = \"{port}\"\nmode = \"submission\"\n");
        let http = "[http]\naddress = \"127.0.0.1:0\"\n";
        fs::write(&file, format!("{listener}{http}[node]\ndata_dir = \"{data}\"\n")).unwrap();
        ["check", "run"].map(|verb| {
            let output = outgate(&[verb, "--config", file.to_str().unwrap()]);
            let text = [output.stdout, output.stderr].concat();
            (output.status.code(), String::from_utf8(text).unwrap())
        })
    };
    for (code, text) in outcome("127.0.0.1:0", directory.path().to_str().unwrap()) {
        assert!(code == Some(2) && text.contains("holds no node: `outgate init"), "{text}");
    }
    let data = directory.path().join("data");
    let made = std::process::Command::new(env!("CARGO_BIN_EXE_outgate"))
        .args(["init", "--data", "data"])
        .current_dir(directory.path())
        .output()
        .unwrap();
    assert!(made.status.success());
    let written = fs::read_to_string(data.join("outgate.toml")).unwrap();
    assert!(written.contains(&format!("data_dir = \"{}\"", data.canonicalize().unwrap().display())), "{written}");
    for (code, text) in outcome(&taken.local_addr().unwrap().to_string(), data.to_str().unwrap()) {
        assert!(code == Some(2) && text.contains("in use"), "{text}");
    }
}
