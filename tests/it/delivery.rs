//! From the queue to the next hop, and back to the sender as a bounce.

use std::time::Duration;

use crate::support::client::letter;
use crate::support::node::{PASSWORD, TestNode};
use crate::support::sink::{Captured, Sink};
use crate::support::{dns, wait_at_most, wait_for};

const ALICE: &str = "alice@demo.test";
const BOB: &str = "bob@example.net";

/// The message without what outgate may add (PRODUCT: what is done to an accepted message).
fn stripped(mail: &Captured) -> String {
    let text = mail.text();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let unfolded = head.replace("\r\n ", "\u{1}").replace("\r\n\t", "\u{2}");
    let own = ["received:", "x-outgate-", "x-report-abuse-to:", "dkim-signature:"];
    let kept: Vec<_> =
        unfolded.split("\r\n").filter(|line| !own.iter().any(|name| line.to_lowercase().starts_with(name))).collect();
    format!("{}\r\n\r\n{body}", kept.join("\r\n")).replace('\u{1}', "\r\n ").replace('\u{2}', "\r\n\t")
}

#[test]
fn a_message_arrives_byte_for_byte() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    let body = ".leading dot\r\n..two\r\n\r\n  spaces  \r\n\ttab\r\nümläut\r\n.\u{2e}\r\n\r\n\r\n";
    let message = letter(ALICE, BOB, "folded\r\n and folded", body);
    let mut client = node.login(ALICE);
    client.say("MAIL FROM:<alice@demo.test> BODY=8BITMIME");
    client.say("RCPT TO:<bob@example.net>");
    client.say("DATA");
    client.send(format!("{}.\r\n", message.replace("\r\n.", "\r\n..")).as_bytes());
    assert_eq!(client.answer().code, 250);
    let mail = &sink.wait(1)[0];
    assert_eq!(stripped(mail), message);
    assert_eq!((mail.reverse_path.as_str(), mail.recipients.as_slice()), (ALICE, &[BOB.to_owned()][..]));
    let received = mail.header("Received").unwrap();
    assert!(received.contains("ESMTPSA") && received.contains("TLSv1") && !received.contains(PASSWORD), "{received}");
    assert_eq!(mail.header("X-Outgate-Username").as_deref(), Some(ALICE));
    assert_eq!(mail.header("X-Outgate-Class").as_deref(), Some("clean"));
}

#[test]
fn missing_date_and_message_id_are_added() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    assert_eq!(
        node.login(ALICE).mail(ALICE, BOB, "From: <alice@demo.test>\r\nX-Outgate-Class: forged\r\n\r\nhello\r\n").code,
        250
    );
    let mail = &sink.wait(1)[0];
    assert!(mail.header("Date").is_some() && mail.header("Message-ID").is_some(), "{}", mail.text());
    assert!(!mail.text().contains("forged"));
}

#[test]
fn connections_are_reused() {
    let sink = Sink::start();
    let node = TestNode::with_alice(&sink);
    let mut client = node.login(ALICE);
    for n in 0..20 {
        assert_eq!(client.mail(ALICE, BOB, &letter(ALICE, BOB, &n.to_string(), "hello")).code, 250);
        sink.wait(n + 1);
    }
    assert!(sink.connections() <= 3, "{} connections for 20 messages", sink.connections());
}

#[test]
fn refused_recipients_bounce_and_the_others_get_theirs() {
    let sink = Sink::start();
    sink.script(|line| line.contains("RCPT TO:<bad@").then(|| "550 5.1.1 no such user".to_owned()));
    let node = TestNode::with_alice(&sink);
    let mut client = node.login(ALICE);
    client.say("MAIL FROM:<alice@demo.test> RET=HDRS ENVID=QQ314159");
    client.say("RCPT TO:<bob@example.net>");
    client.say("RCPT TO:<bad@example.net> ORCPT=rfc822;bad@example.net");
    client.say("RCPT TO:<bad@example.org> NOTIFY=NEVER");
    client.say("DATA");
    client.send(format!("{}.\r\n", letter(ALICE, BOB, "mixed", "the body")).as_bytes());
    assert_eq!(client.answer().code, 250);
    let all = sink.wait(2);
    let good = all.iter().find(|mail| mail.reverse_path == ALICE).unwrap();
    assert_eq!(good.recipients, [BOB]);
    let bounce = all.iter().find(|mail| mail.reverse_path.is_empty()).unwrap();
    assert_eq!(bounce.recipients, [ALICE]);
    let text = bounce.text();
    for part in [
        "multipart/report",
        "report-type=delivery-status",
        "Original-Envelope-Id: QQ314159",
        "Final-Recipient: rfc822; bad@example.net",
        "Original-Recipient: rfc822; bad@example.net",
        "Action: failed",
        "Status: 5.1.1",
        "550 5.1.1 no such user",
        "text/rfc822-headers",
        "Content-Type: message/delivery-status\r\nContent-Transfer-Encoding: 7bit\r\n",
    ] {
        assert!(text.to_lowercase().contains(&part.to_lowercase()), "`{part}` in\n{text}");
    }
    assert!(!text.contains("the body") && !text.contains("bad@example.org"), "{text}");
}

#[test]
fn a_deferred_message_is_tried_again_and_can_be_steered() {
    let sink = Sink::start();
    sink.script(|line| line.starts_with("MAIL").then(|| "451 4.3.0 not now".to_owned()));
    let node = TestNode::with_alice(&sink);
    assert_eq!(node.login(ALICE).mail(ALICE, BOB, &letter(ALICE, BOB, "later", "hello")).code, 250);
    let id = wait_for("a deferral", || {
        let queue = node.json(&["queue", "list"]);
        queue[0]["recipients"][0]["last_reply"].as_str().filter(|reply| reply.contains("451 4.3.0 not now"))?;
        queue[0]["id"].as_str().map(ToOwned::to_owned)
    });
    node.ok(&["queue", "freeze", &id]);
    assert_eq!(node.json(&["queue", "show", &id])["frozen"], true);
    sink.script(|_| None);
    let refused = node.cli(&["queue", "retry", &id]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && told.contains(&format!("{id} is frozen: thaw it first")), "{told}");
    assert_eq!(node.json(&["queue", "show", &id])["frozen"], true);
    node.ok(&["queue", "thaw", &id]);
    // The thaw may have begun the attempt already.
    node.cli(&["queue", "retry", &id]);
    sink.wait(1);
    wait_for("an empty queue", || (node.json(&["queue", "list"]) == serde_json::json!([])).then_some(()));
    let journey = node.ok(&["log", "search", "--id", &id, "--output", "json"]);
    for status in ["deferred", "frozen", "delivered"] {
        assert!(journey.contains(status), "{status} in {journey}");
    }
}

#[test]
fn removed_with_notice_the_sender_hears_of_it_and_a_dead_bounce_is_frozen() {
    let sink = Sink::start();
    sink.script(|line| line.starts_with("RCPT TO:<bob@").then(|| "450 4.2.1 busy".to_owned()));
    let node = TestNode::with_alice(&sink);
    let mut client = node.login(ALICE);
    assert_eq!(client.mail(ALICE, BOB, &letter(ALICE, BOB, "x", "hello")).code, 250);
    let id = wait_for("a queued message", || node.json(&["queue", "list"])[0]["id"].as_str().map(ToOwned::to_owned));
    wait_for("the end of the first attempt", || {
        (node.json(&["queue", "show", &id])["recipients"][0]["status"] == "deferred").then_some(())
    });
    node.ok(&["queue", "remove", &id, "--notify"]);
    assert!(sink.wait(1)[0].reverse_path.is_empty());
    sink.script(|line| line.starts_with("RCPT").then(|| "550 5.1.1 no".to_owned()));
    assert_eq!(client.mail(ALICE, BOB, &letter(ALICE, BOB, "y", "hello")).code, 250);
    wait_for("a frozen bounce", || {
        let queue = node.json(&["queue", "list"]);
        (queue[0]["sender"] == "" && queue[0]["frozen"] == true).then_some(())
    });
}

#[test]
fn mail_exchangers_are_found_and_tried_in_order() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let zone = "good.test MX 10 dead.good.test\ngood.test MX 20 mx.good.test\ndead.good.test A 127.7.7.7\nmx.good.test A 127.0.0.21\nplain.test A 127.0.0.21\nnull.test MX 0 .\ndemo.test A 127.0.0.1\nbroken.test SERVFAIL\n";
    let sink = Sink::start_at(&format!("127.0.0.21:{port}"));
    let node = TestNode::start(&format!(
        "[dns]\nservers = [\"{}\"]\ntimeout_s = 2\n[delivery]\nport = {port}\nlocal_addresses = true\n",
        dns::serve(zone)
    ));
    node.ok(&["domain", "add", "demo.test"]);
    node.ok(&["user", "add", ALICE, "--password", PASSWORD]);
    let mut client = node.login(ALICE);
    for to in ["a@good.test", "a@plain.test"] {
        assert_eq!(client.mail(ALICE, to, &letter(ALICE, to, "x", "hello")).code, 250, "{to}");
    }
    sink.wait(2);
    let mut refused = |from: &str, to: &str| client.mail(from, to, &letter(ALICE, to, "x", "hello")).text;
    assert!(refused(ALICE, "a@nowhere.test").starts_with("550 5.1.2"));
    assert!(refused(ALICE, "a@null.test").starts_with("556 5.1.10"));
    assert!(refused(ALICE, "a@broken.test").starts_with("250"));
    assert!(refused("x@nowhere.test", "a@good.test").starts_with("550 5.1.8"));
    assert!(refused("x@null.test", "a@good.test").starts_with("550 5.7.27"));
    assert!(refused("x@broken.test", "a@good.test").starts_with("451 4.4.3"));
    assert_eq!(node.json(&["queue", "list"]).as_array().unwrap().len(), 1);
}

#[test]
fn mail_does_not_go_to_this_machine_by_mx_or_literal() {
    let sink = Sink::start_at("127.0.0.22:0");
    let zone = "evil.test MX 10 localhost.evil.test\nlocalhost.evil.test A 127.0.0.22\n";
    let node = TestNode::start(&format!(
        "[dns]\nservers = [\"{}\"]\ntimeout_s = 2\n[delivery]\nport = {}\n",
        dns::serve(zone),
        sink.address.port()
    ));
    node.ok(&["domain", "add", "demo.test"]);
    node.ok(&["settings", "set", "valid_sender_required=off"]);
    node.ok(&["user", "add", ALICE, "--password", PASSWORD]);
    let mut client = node.login(ALICE);
    for to in ["a@evil.test", "a@[127.0.0.22]"] {
        assert_eq!(client.mail(ALICE, to, &letter(ALICE, to, "x", "hello")).code, 250, "{to}");
        let bounced = wait_for("a bounce", || {
            let log = node.ok(&["log", "search", "--text", to, "--output", "json"]);
            log.contains("local address only").then_some(log)
        });
        assert!(bounced.contains("bounced"), "{bounced}");
    }
    assert_eq!(sink.connections(), 0);
}

#[test]
fn a_domain_has_its_own_route() {
    let (usual, special) = (Sink::start(), Sink::start());
    let node = TestNode::with_alice(&usual);
    let route = format!("route={}", special.address);
    node.ok(&["domain", "add", "other.test", &route, "contact=postmaster@other.test"]);
    node.ok(&["user", "add", "carol@other.test", "--password", PASSWORD]);
    assert_eq!(
        node.login("carol@other.test")
            .mail("carol@other.test", BOB, &letter("carol@other.test", BOB, "x", "hello"))
            .code,
        250
    );
    special.wait(1);
    assert!(usual.captured().is_empty());
}

#[test]
fn expired_messages_bounce() {
    let sink = Sink::start();
    sink.script(|line| line.starts_with("RCPT TO:<bob@").then(|| "450 4.2.1 busy".to_owned()));
    let node = TestNode::start(&format!(
        "[delivery]\nrelay = \"{}\"\n[delivery.retry]\ninterval_s = 1\ninterval_for_s = 1\nfactor_until_s = 2\nlater_interval_s = 1\ndelay_notice_s = 2\n",
        sink.address
    ));
    node.ok(&["domain", "add", "demo.test"]);
    node.ok(&["settings", "set", "valid_sender_required=off"]);
    node.ok(&["user", "add", ALICE, "--password", PASSWORD]);
    assert_eq!(node.login(ALICE).mail(ALICE, BOB, &letter(ALICE, BOB, "x", "hello")).code, 250);
    let notice = &wait_at_most(Duration::from_secs(20), "a delay notice", || {
        Some(sink.captured()).filter(|all| !all.is_empty())
    })[0];
    assert!(notice.reverse_path.is_empty() && notice.text().contains("Action: delayed"), "{}", notice.text());
}
