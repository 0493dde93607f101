//! Real clients hand mail over, a real next hop takes it, a real verifier checks its signature.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::exim::Exim;
use crate::support::node::{PASSWORD, TestNode};
use crate::support::peer::{self, Running, run_with_input};
use crate::support::postfix::Postfix;
use crate::support::sink::{Captured, Sink};
use crate::support::wait_at_most;

const ALICE: &str = "alice@demo.test";
const BOB: &str = "bob@example.net";
const BODY: &str = "one line\r\n.a dot at its start\r\n\r\nlast line\r\n";

/// The message that every client sends: LF line ends, as programs keep mail in files.
fn letter() -> String {
    let mail = crate::support::client::letter(ALICE, BOB, "from a real client", BODY.trim_end());
    mail.replace("\r\n", "\n")
}

fn assert_arrived(sink: &Sink, count: usize) -> Captured {
    let mail = sink.wait(count).pop().unwrap();
    assert_eq!(mail.text().split_once("\r\n\r\n").unwrap().1, BODY, "{}", mail.text());
    assert_eq!(mail.header("X-Outgate-Username").as_deref(), Some(ALICE));
    mail
}

#[test]
fn swaks() {
    let Some(swaks) = peer::find("swaks") else { return };
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    let data = node.path().join("letter");
    fs::write(&data, letter()).unwrap();
    let send = |address: SocketAddr, tls: &[&str]| {
        let server = ["--server".to_owned(), address.ip().to_string(), "--port".to_owned(), address.port().to_string()];
        let mut command = Command::new(&swaks);
        command
            .args(server)
            .args(tls)
            .args(["--from", ALICE, "--to", BOB, "--auth-user", ALICE, "--auth-password", PASSWORD, "--data"])
            .arg(format!("@{}", data.display()));
        run_with_input(&mut command, "");
    };
    send(node.submission, &["--tls", "--auth", "LOGIN"]);
    send(node.submission, &["--tls", "--auth", "PLAIN", "--pipeline"]);
    send(node.submissions, &["--tls-on-connect", "--auth", "PLAIN"]);
    let all = sink.wait(3);
    // swaks adds a line end of its own to what it reads.
    assert!(all.iter().all(|mail| mail.text().split_once("\r\n\r\n").unwrap().1.starts_with(BODY)));
}

#[test]
fn msmtp() {
    let Some(msmtp) = peer::find("msmtp") else { return };
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    let port = node.submission.port().to_string();
    let password = node.path().join("password");
    fs::write(&password, PASSWORD).unwrap();
    let mut command = Command::new(msmtp);
    command.args([
        "--host=127.0.0.1",
        "--tls=on",
        "--tls-starttls=on",
        "--tls-certcheck=off",
        "--auth=plain",
        "--file=/dev/null",
    ]);
    command.arg(format!("--port={port}")).arg(format!("--user={ALICE}")).arg(format!("--from={ALICE}"));
    command.arg(format!("--passwordeval=cat {}", password.display())).arg(BOB);
    run_with_input(&mut command, &letter());
    assert_arrived(&sink, 1);
}

#[test]
fn smtplib() {
    let Some(python) = peer::python(&["smtplib"]) else { return };
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    let script = "import smtplib, ssl, sys\n\
        s = smtplib.SMTP('127.0.0.1', int(sys.argv[1]))\n\
        c = ssl.create_default_context(); c.check_hostname = False; c.verify_mode = ssl.CERT_NONE\n\
        s.starttls(context=c); s.login(sys.argv[2], sys.argv[3])\n\
        s.sendmail(sys.argv[2], [sys.argv[4]], sys.stdin.read()); s.quit()\n";
    let mut command = Command::new(python);
    command.args(["-c", script, &node.submission.port().to_string(), ALICE, PASSWORD, BOB]);
    run_with_input(&mut command, &letter());
    assert_arrived(&sink, 1);
}

/// A Postfix of its own whose `relayhost` is the node, with a login for each sender.
fn postfix(node: &TestNode) -> Option<Postfix> {
    let relay = format!("[{}]:{}", node.submission.ip(), node.submission.port());
    let logins = format!("{ALICE} {ALICE}:{PASSWORD}\n{relay} bob@demo.test:{PASSWORD}\n");
    Postfix::start(node.path(), None, &relay, &logins, "smtp_sender_dependent_authentication = yes\n")
}

#[test]
fn postfix_with_sender_dependent_login() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    node.ok(&["user", "add", "bob@demo.test", "--password", PASSWORD]);
    let Some(postfix) = postfix(&node) else { return };
    postfix.send(ALICE, BOB, &letter());
    let log = || postfix.log();
    wait_at_most(Duration::from_secs(30), "status=sent", || log().contains("status=sent").then_some(()));
    let mail = assert_arrived(&sink, 1);
    assert_eq!(mail.reverse_path, ALICE);
    postfix.send("bob@demo.test", BOB, &letter());
    let second = sink.wait(2).pop().unwrap();
    assert_eq!(second.header("X-Outgate-Username").as_deref(), Some("bob@demo.test"), "{}", log());
}

#[test]
fn postfix_keeps_what_a_limit_defers() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    node.ok(&["user", "set", ALICE, "limit_per_hour=5"]);
    let Some(postfix) = postfix(&node) else { return };
    for _ in 0..8 {
        postfix.send(ALICE, BOB, &letter());
    }
    let log = || postfix.log();
    wait_at_most(Duration::from_secs(60), "three deferrals", || {
        (log().matches("status=deferred").count() >= 3).then_some(())
    });
    assert!(log().contains("limit of 5 messages per hour reached"), "{}", log());
    assert_eq!(sink.wait(5).len(), 5);
}

#[test]
fn exim_as_smarthost_client() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    let (host, port) = (node.submission.ip().to_string(), node.submission.port());
    let Some(exim) = Exim::start(node.path(), None, &host, port, &format!("{ALICE}: {PASSWORD}\n")) else { return };
    exim.send(&["-odf"], ALICE, BOB, &letter());
    wait_at_most(Duration::from_secs(30), "a delivery in Exim's log", || exim.log().contains("=> bob@").then_some(()));
    let mail = assert_arrived(&sink, 1);
    assert_eq!(mail.reverse_path, ALICE);
}

/// A next hop of another make: aiosmtpd, which keeps what it gets in files.
const AIOSMTPD: &str = "\
import asyncio, sys, os
from aiosmtpd.controller import Controller
class Keep:
    n = 0
    async def handle_DATA(self, server, session, envelope):
        self.n += 1
        path = os.path.join(sys.argv[1], 'mail%d' % self.n)
        open(path + '.tmp', 'wb').write(envelope.original_content)
        os.rename(path + '.tmp', path)
        return '250 kept'
c = Controller(Keep(), hostname='127.0.0.1', port=int(sys.argv[2]))
c.start()
print('ready', flush=True)
sys.stdin.read()
";

#[test]
fn dkimpy_verifies_what_aiosmtpd_took() {
    let Some(python) = peer::python(&["aiosmtpd", "dkim", "nacl"]) else { return };
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut hop = Command::new(&python)
        .args(["-c", AIOSMTPD])
        .arg(folder.path())
        .arg(port.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(hop.stdout.take().unwrap()), &mut ready).unwrap();
    let _hop = Running(hop);
    let node = TestNode::start(&format!("[delivery]\nrelay = \"127.0.0.1:{port}\"\n"));
    node.ok(&["domain", "add", "demo.test"]);
    node.ok(&["settings", "set", "valid_sender_required=off"]);
    node.ok(&["user", "add", ALICE, "--password", PASSWORD]);
    node.ok(&["dkim", "create", "demo.test", "--algorithm", "both"]);
    let keys = node.json(&["dkim", "show", "demo.test"]);
    let mut client = node.login(ALICE);
    for tail in ["end\r\n", "end\r\n \r\n\t\r\n", "end\r\n\r\n\r\n", "", "  spaces \t  inside  \r\n. \r\n"] {
        assert_eq!(
            client
                .mail(ALICE, BOB, &crate::support::client::letter(ALICE, BOB, "signed", &format!("body\r\n{tail}")))
                .code,
            250
        );
    }
    for n in 1..=5 {
        let file = folder.path().join(format!("mail{n}"));
        wait_at_most(Duration::from_secs(20), "a delivered message", || file.exists().then_some(()));
        verify(&python, &file, &keys);
    }
}

/// Every signature of the message must verify against the DNS text that outgate itself printed.
fn verify(python: &Path, file: &Path, keys: &serde_json::Value) {
    let records: serde_json::Map<_, _> = keys
        .as_array()
        .unwrap()
        .iter()
        .map(|key| (key["dns_name"].as_str().unwrap().trim_end_matches('.').to_owned(), key["dns_value"].clone()))
        .collect();
    let script = "import dkim, json, sys\n\
        zone = json.loads(sys.argv[2]); mail = open(sys.argv[1], 'rb').read()\n\
        count = mail.split(b'\\r\\n\\r\\n')[0].lower().count(b'dkim-signature:')\n\
        assert count == 2, count\n\
        for n in range(count):\n    d = dkim.DKIM(mail); assert d.verify(n, dnsfunc=lambda name, timeout=5: zone[name.decode().rstrip('.')].encode()), n\n";
    run_with_input(
        Command::new(python).args(["-c", script]).arg(file).arg(serde_json::Value::Object(records).to_string()),
        "",
    );
}

#[test]
fn smtp_sink_takes_what_is_delivered() {
    let Some(smtp_sink) = peer::find("smtp-sink") else { return };
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let child = Command::new(smtp_sink)
        .args(["-u", "nobody", "-d", "mail%M"])
        .arg(format!("127.0.0.1:{port}"))
        .arg("100")
        .current_dir(folder.path())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Command::new("chmod").arg("777").arg(folder.path()).status().unwrap();
    let _hop = Running(child);
    let node = TestNode::start(&format!("[delivery]\nrelay = \"127.0.0.1:{port}\"\n"));
    node.ok(&["domain", "add", "demo.test"]);
    node.ok(&["settings", "set", "valid_sender_required=off"]);
    node.ok(&["user", "add", ALICE, "--password", PASSWORD]);
    assert_eq!(node.login(ALICE).mail(ALICE, BOB, &crate::support::client::letter(ALICE, BOB, "x", "hello")).code, 250);
    wait_at_most(Duration::from_secs(20), "a delivered message", || {
        (node.json(&["queue", "list"]) == serde_json::json!([])).then_some(())
    });
    assert!(node.ok(&["log", "search", "--status", "delivered", "--output", "json"]).contains(BOB));
}
