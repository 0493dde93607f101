//! The protocol over a real socket: what clients may do, and what attackers try.

use std::io::{Read, Write};
use std::time::Duration;

use crate::support::client::{Client, letter};
use crate::support::node::TestNode;
use crate::support::sink::Sink;

const ALICE: &str = "alice@demo.test";
const BOB: &str = "bob@example.net";

#[test]
fn ehlo_names_the_extensions() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    let mut client = node.login(ALICE);
    let answer = client.say("EHLO client.test").text;
    for keyword in
        ["PIPELINING", "SIZE 52428800", "8BITMIME", "SMTPUTF8", "CHUNKING", "DSN", "ENHANCEDSTATUSCODES", "LIMITS "]
    {
        assert!(answer.contains(keyword), "{keyword} in {answer}");
    }
}

#[test]
fn a_pipeline_is_answered_in_order() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    let mut client = node.login(ALICE);
    client.send(b"MAIL FROM:<alice@demo.test>\r\nRCPT TO:<bob@example.net>\r\nRCPT TO:<bad\r\nDATA\r\n");
    let codes: Vec<_> = (0..4).map(|_| client.answer().code).collect();
    assert_eq!(codes, [250, 250, 501, 354]);
    client.send(
        format!("{}.\r\nMAIL FROM:<alice@demo.test>\r\nRSET\r\nQUIT\r\n", letter(ALICE, BOB, "x", "hello")).as_bytes(),
    );
    let codes: Vec<_> = (0..4).map(|_| client.answer().code).collect();
    assert_eq!(codes, [250, 250, 250, 221]);
    assert!(client.try_answer().is_none());
    sink.wait(1);
}

#[test]
fn chunks_make_one_message() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    let mut client = node.login(ALICE);
    let message = letter(ALICE, BOB, "chunks", ".\r\n..two\r\nend");
    let (first, second) = message.as_bytes().split_at(40);
    client.say("MAIL FROM:<alice@demo.test> BODY=8BITMIME");
    client.say("RCPT TO:<bob@example.net>");
    client.send(&[b"BDAT 40\r\n", first].concat());
    assert_eq!(client.answer().code, 250);
    client.send(&[format!("BDAT {} LAST\r\n", second.len()).as_bytes(), second].concat());
    assert_eq!(client.answer().code, 250);
    assert!(sink.wait(1)[0].text().ends_with("\r\n\r\n.\r\n..two\r\nend\r\n"), "{}", sink.captured()[0].text());
}

#[test]
fn postmaster_without_a_domain_is_the_contact() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    node.ok(&["domain", "set", "demo.test", "contact=boss@demo.test"]);
    let letter = letter(ALICE, "postmaster", "x", "hello");
    assert_eq!(node.login(ALICE).mail(ALICE, "Postmaster", &letter).code, 250);
    assert_eq!(sink.wait(1)[0].recipients, ["boss@demo.test"]);
}

#[test]
fn line_ends_that_are_not_crlf_never_smuggle() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    for end in ["\n.\n", "\n.\r\n", "\r.\r", "\r\n.\n", "\r\n.\r", "\r.\r\n", "\n\n.\r\n", "\r\n\0.\r\n", "\0"] {
        let mut client = node.login(ALICE);
        client.say("MAIL FROM:<alice@demo.test>");
        client.say("RCPT TO:<bob@example.net>");
        assert_eq!(client.say("DATA").code, 354);
        client.send(format!("Subject: x\r\n\r\nbody{end}MAIL FROM:<evil@demo.test>\r\nRCPT TO:<victim@example.net>\r\nDATA\r\nsmuggled\r\n.\r\n").as_bytes());
        let answer = client.answer();
        assert!(answer.text.starts_with("550 5.6.0"), "{end:?}: {answer:?}");
        assert_eq!(client.say("DATA").code, 503, "{end:?}");
    }
    let mut client = node.login(ALICE);
    assert_eq!(client.mail(ALICE, BOB, &letter(ALICE, BOB, "last", "hello")).code, 250);
    assert_eq!(sink.wait(1)[0].header("Subject").as_deref(), Some("last"));
}

#[test]
fn what_is_pipelined_behind_starttls_is_dropped() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    let mut client = Client::connect(node.submission);
    client.answer();
    client.say("EHLO client.test");
    client.send(b"STARTTLS\r\nNOOP\r\nEHLO injected\r\n");
    assert_eq!(client.answer().code, 220);
    client.wrap();
    assert!(client.say("EHLO client.test").text.contains("AUTH PLAIN LOGIN"));
    assert_eq!(client.auth(ALICE, crate::support::node::PASSWORD).code, 235);
}

#[test]
fn login_in_two_steps_and_its_cancellation() {
    use base64::prelude::{BASE64_STANDARD, Engine};
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    let mut client = Client::secured(node.submission);
    assert_eq!(client.say("AUTH LOGIN").code, 334);
    assert_eq!(client.say("*").code, 501);
    assert_eq!(client.say("AUTH PLAIN").code, 334);
    assert_eq!(client.say("not base64!").code, 501);
    assert_eq!(client.say("AUTH LOGIN").code, 334);
    assert_eq!(client.say(&BASE64_STANDARD.encode(ALICE)).code, 334);
    assert_eq!(client.say(&BASE64_STANDARD.encode(crate::support::node::PASSWORD)).code, 235);
    assert_eq!(client.auth(ALICE, "again").code, 503);
}

#[test]
fn garbage_is_bounded() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    let mut client = Client::connect(node.submission);
    client.answer();
    client.send(&[&[b'A'; 100_000][..], b"\r\n"].concat());
    assert_eq!(client.answer().code, 500);
    assert_eq!(client.say("NOOP").code, 250, "the rest of a long line is swallowed");
    let mut last = client.say("FOO");
    for _ in 0..50 {
        if last.code == 421 {
            break;
        }
        client.send(b"FOO\r\n");
        let Some(answer) = client.try_answer() else { break };
        last = answer;
    }
    assert_eq!(last.code, 421);
    node.login(ALICE);
}

#[test]
fn proxy_header_names_the_client() {
    let sink = Sink::start();
    let node = TestNode::start(&format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\nmode = \"submission\"\nproxy_networks = [\"127.0.0.0/8\"]\n[[listener]]\naddress = \"127.0.0.1:0\"\nmode = \"submissions\"\n[delivery]\nrelay = \"{}\"\n",
        sink.address
    ));
    node.ok(&["domain", "add", "demo.test"]);
    node.ok(&["settings", "set", "valid_sender_required=off"]);
    node.ok(&["user", "add", "203.0.113.7", "--domain", "demo.test"]);
    let mut client = Client::connect(node.submission);
    client.send(b"PROXY TCP4 203.0.113.7 127.0.0.1 4242 587\r\n");
    assert_eq!(client.answer().code, 220);
    client.say("EHLO client.test");
    assert_eq!(client.mail("x@demo.test", BOB, &letter("x@demo.test", BOB, "x", "hello")).code, 250);
    assert!(sink.wait(1)[0].header("Received").unwrap().contains("203.0.113.7"));
    let mut without = Client::connect(node.submission);
    without.send(b"EHLO client.test\r\n");
    assert!(without.try_answer().is_none_or(|answer| answer.code >= 400));
}

#[test]
fn a_silent_client_and_a_dripping_one_are_closed() {
    let node = TestNode::start("[smtp]\nverb_timeout_s = 1\ndata_timeout_s = 1\n");
    let mut silent = Client::connect(node.submission);
    silent.answer();
    let end = silent.try_answer();
    assert!(end.is_none_or(|answer| answer.code == 421));
}

#[test]
fn http_serves_health_and_metrics_without_addresses() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    node.login(ALICE).mail(ALICE, BOB, &letter(ALICE, BOB, "x", "hello"));
    sink.wait(1);
    assert_eq!(node.get("/healthz").0, 200);
    assert_eq!(node.get("/readyz").0, 200);
    let (code, metrics) = node.get("/metrics");
    assert!(code == 200 && metrics.contains("outgate_end_of_data_replies_total{kind=\"2xx\"} 1"), "{metrics}");
    assert!(!metrics.contains("demo.test") && !metrics.contains("example.net"), "{metrics}");
    assert!(!node.log().contains(crate::support::node::PASSWORD));
}

#[test]
fn sigterm_finishes_the_open_transaction() {
    let sink = Sink::start();
    let mut node = TestNode::with_alice(&sink);
    let mut client = node.login(ALICE);
    client.say("MAIL FROM:<alice@demo.test>");
    client.say("RCPT TO:<bob@example.net>");
    assert_eq!(client.say("DATA").code, 354);
    let (address, pid) = (node.submission, node.pid());
    std::process::Command::new("kill").args(["-TERM", &pid.to_string()]).status().unwrap();
    crate::support::wait_for("refused connections", || std::net::TcpStream::connect(address).is_err().then_some(()));
    let (code, told) = node.get("/readyz");
    assert!(code == 503 && told.contains("the listeners are closed"), "{code} {told}");
    assert_eq!(node.json(&["status"])["ready"], false);
    client.send(format!("{}.\r\n", letter(ALICE, BOB, "late", "hello")).as_bytes());
    assert_eq!(client.answer().code, 250);
    node.restart();
    assert_eq!(sink.wait(1)[0].header("Subject").as_deref(), Some("late"));
}

#[test]
fn connections_per_address_are_bounded() {
    let node = TestNode::start("[smtp]\nconnections_per_address_max = 2\n");
    let mut kept: Vec<_> = (0..2).map(|_| Client::connect(node.submission)).collect();
    assert!(kept.iter_mut().all(|client| client.answer().code == 220));
    assert!(Client::connect(node.submission).answer().text.starts_with("421 4.7.0"));
    let mut other = Client::connect_from("127.0.5.5".parse().unwrap(), node.submission);
    assert_eq!(other.answer().code, 220);
}

#[test]
fn ten_thousand_bytes_of_noise_close_quietly() {
    let node = TestNode::start("");
    let mut socket = std::net::TcpStream::connect(node.submission).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let noise: Vec<u8> = (0..10_000u32).map(|n| u8::try_from(n.wrapping_mul(2_654_435_761) >> 24).unwrap()).collect();
    socket.write_all(&noise).unwrap();
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answers = Vec::new();
    let _closed = socket.read_to_end(&mut answers);
    assert!(answers.starts_with(b"220 "));
    assert_eq!(Client::connect(node.submission).answer().code, 220);
}
