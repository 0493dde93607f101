#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::*;

/// Sun, 15 Nov 2026 12:00:00 +0000
const NOW_S: i64 = 1_794_744_000;
const FIELDS: &str = "From: alice@example.com\r\nTo: bob@example.net\r\nSubject: x\r\n";
const GTUBE: &str = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X";
const EICAR: &str = concat!(r"X5O!P%@AP[4\PZX54(P^)7CC)7}$EI", "CAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*");

fn findings(text: impl Into<String>) -> Vec<Finding> {
    let facts = Facts { now_s: NOW_S, max_message_size: 50 << 20 };
    run(&facts, &Message::new(Bytes::from(text.into())))
}

fn faults(text: impl Into<String>) -> Vec<Fault> {
    let fault = |finding: Finding| match finding.effect {
        Effect::Refuse(Refusal::Structure(fault)) => Some(fault),
        Effect::Refuse(_) | Effect::Note | Effect::Score(_) | Effect::Virus => None,
    };
    findings(text).into_iter().filter_map(fault).collect()
}

fn effects(text: impl Into<String>) -> Vec<Effect> {
    findings(text).into_iter().map(|finding| finding.effect).collect()
}

fn multipart(parts: usize) -> String {
    let mut text = format!("{FIELDS}Content-Type: multipart/mixed; boundary=\"b b\"\r\n\r\npreamble\r\n");
    for n in 0..parts {
        write!(text, "--b b\r\nContent-Type: text/plain\r\n\r\npart {n}\r\n").unwrap();
    }
    text + "--b b--\r\nepilogue\r\n"
}

/// Multiparts in one another: the message itself is level 0.
fn nested(levels: usize) -> String {
    let mut text = FIELDS.to_owned();
    for level in 0..levels {
        write!(text, "Content-Type: multipart/mixed; boundary=b{level}\r\n\r\n--b{level}\r\n").unwrap();
    }
    text + "\r\nleaf\r\n"
}

#[test]
fn an_ordinary_message_has_no_findings() {
    assert_eq!(findings(format!("{FIELDS}Date: Sun, 15 Nov 2026 11:58:00 +0000\r\n\r\nhello\r\n")), []);
    assert_eq!(findings(multipart(5)), []);
    assert_eq!(findings(""), []);
}

#[test]
fn the_real_size_counts() {
    let message = Message::new(Bytes::from_static(b"A: 1\r\n\r\nbody\r\n"));
    let check = |limit| run(&Facts { now_s: NOW_S, max_message_size: limit }, &message);
    assert_eq!(check(14), []);
    assert_eq!(check(13)[0].effect, Effect::Refuse(Refusal::TooLarge { limit: 13 }));
}

#[test]
fn lines_hold_998_octets() {
    let line = |length| format!("{FIELDS}\r\n{}\r\n", "x".repeat(length));
    assert_eq!(faults(line(998)), []);
    assert_eq!(faults(line(999)), [Fault::LineTooLong]);
    assert_eq!(faults(format!("{FIELDS}\r\n{}", "x".repeat(999))), [Fault::LineTooLong], "without a last CRLF");
    assert_eq!(faults(format!("X: {}\r\n\r\n", "x".repeat(999))), [Fault::LineTooLong], "in the header");
}

#[test]
fn parts_and_depth_are_bounded() {
    assert_eq!(faults(multipart(100)), []);
    assert_eq!(faults(multipart(101)), [Fault::TooManyParts]);
    assert_eq!(faults(nested(10)), []);
    assert_eq!(faults(nested(11)), [Fault::TooDeep]);
    let forwarded = |levels: usize| "Content-Type: message/rfc822\r\n\r\n".repeat(levels) + "\r\nx";
    assert_eq!(faults(forwarded(10)), []);
    assert_eq!(faults(forwarded(11)), [Fault::TooDeep]);
}

#[test]
fn depth_goes_back_where_a_part_ends() {
    let mut text = format!("{FIELDS}Content-Type: multipart/mixed; boundary=o\r\n\r\n");
    for _ in 0..30 {
        text += "--o\r\nContent-Type: message/rfc822\r\n\r\nContent-Type: multipart/mixed; boundary=i\r\n\r\n--i\r\n\r\nx\r\n--i--\r\n";
    }
    assert_eq!(faults(text + "--o--\r\n"), []);
}

#[test]
fn single_use_fields_stand_once() {
    assert_eq!(faults(format!("{FIELDS}subject: again\r\n\r\n")), [Fault::Duplicate("Subject")]);
    assert_eq!(faults(format!("{FIELDS}FROM: c@example.com\r\n\r\n")), [Fault::Duplicate("From")]);
    assert_eq!(faults(format!("{FIELDS}Received: 1\r\nReceived: 2\r\n\r\nFrom: in the body\r\n")), []);
}

#[test]
fn every_line_of_the_header_is_a_field_or_a_fold() {
    for whole in [format!("{FIELDS} folded\r\n\t\r\n\r\nx"), "\r\nno header\r\n".to_owned(), FIELDS.to_owned()] {
        assert_eq!(faults(whole.as_str()), [], "{whole}");
    }
    for broken in [
        format!("this is no header\r\n{FIELDS}\r\nx"),
        format!("From alice@example.com Fri Nov 20 10:00:00 2026\r\n{FIELDS}\r\nx"),
        format!("{FIELDS}this is no header\r\nX: y\r\n\r\nx"),
        format!(" \r\n{FIELDS}\r\nx"),
        "no header and no empty line\r\n".to_owned(),
    ] {
        assert_eq!(faults(broken.as_str()), [Fault::NoField], "{broken}");
    }
}

#[test]
fn a_hundred_hops_are_enough() {
    let travelled = |hops: usize| format!("{}{FIELDS}\r\nx", "received: from a by b\r\n".repeat(hops));
    assert_eq!(faults(travelled(100)), []);
    assert_eq!(faults(travelled(101)), [Fault::Loop]);
}

#[test]
fn partial_messages_and_endless_headers_are_refused() {
    let partial = "Content-Type: message/partial; id=1; number=1\r\n\r\nx";
    assert_eq!(faults(format!("{FIELDS}{partial}")), [Fault::Partial]);
    let inside = format!("{FIELDS}Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n{partial}\r\n--b--\r\n");
    assert_eq!(faults(inside), [Fault::Partial]);
    assert_eq!(faults(format!("X: {}\r\n", "y\r\n ".repeat(100_000))), [Fault::HeaderTooLong]);
}

#[test]
fn dates_far_off_are_noted() {
    let date = |date: &str| findings(format!("Date: {date}\r\n\r\n")).first().map(|finding| finding.text.clone());
    assert_eq!(date("Sun, 8 Nov 2026 12:00:00 +0000"), None);
    assert_eq!(date("Sun, 8 Nov 2026 11:59:59 +0000").unwrap(), "the Date field is off by 7 days");
    assert_eq!(date("Sun, 22 Nov 2026 13:00:01 +0100"), Some("the Date field is off by 7 days".to_owned()));
    assert_eq!(date("yesterday").unwrap(), "the Date field cannot be read");
    assert_eq!(effects("Date: Thu, 1 Jan 1970 00:00:00 +0000\r\n\r\n"), [Effect::Note]);
}

#[test]
fn gtube_is_spam_and_eicar_a_virus_plain_or_encoded() {
    let encoded = |encoding: &str, body: &str| {
        format!(
            "{FIELDS}Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: application/octet-stream\r\n\
             Content-Transfer-Encoding: {encoding}\r\n\r\n{body}\r\n--b--\r\n"
        )
    };
    let base64 = |text: &str| {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(format!("..{text}"));
        text.as_bytes().chunks(40).map(|line| String::from_utf8_lossy(line) + "\r\n").collect::<String>()
    };
    let quoted = |text: &str| text.replace('*', "=2A").replace("STANDARD", "STAN=\r\nDARD");
    for (text, effect) in [(GTUBE, Effect::Score(1000)), (EICAR, Effect::Virus)] {
        assert_eq!(effects(format!("{FIELDS}\r\nsee {text} here\r\n")), std::slice::from_ref(&effect));
        assert_eq!(effects(encoded("BASE64", &base64(text))), std::slice::from_ref(&effect));
        assert_eq!(effects(encoded("quoted-printable", &quoted(text))), std::slice::from_ref(&effect));
        assert_eq!(effects(format!("Subject: {text}\r\n\r\n")), [], "in a header field");
    }
}

#[test]
fn hostile_input_costs_no_more_than_its_length() {
    let deep = nested(10_000);
    let wide = multipart(100_000);
    let fields = format!("{FIELDS}{}\r\nx", "X-A: b\r\n".repeat(100_000));
    let delimiters = format!("{}{}", multipart(1), "--b c\r\n".repeat(500_000));
    let started = Instant::now();
    assert_eq!(faults(deep), [Fault::TooDeep]);
    assert_eq!(faults(wide), [Fault::TooManyParts]);
    assert_eq!(faults(fields), [Fault::HeaderTooLong]);
    assert_eq!(faults(delimiters), []);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn the_corpus_is_judged_as_its_names_say() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mail");
    let mut seen = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).unwrap().replace("\r\n", "\n").replace('\n', "\r\n");
        let expected = match name.split('-').next().unwrap() {
            "clean" => vec![],
            "spam" => vec![Effect::Score(1000)],
            "virus" => vec![Effect::Virus],
            "note" => vec![Effect::Note],
            "duplicate" => vec![Effect::Refuse(Refusal::Structure(Fault::Duplicate("From")))],
            "partial" => vec![Effect::Refuse(Refusal::Structure(Fault::Partial))],
            other => panic!("no expectation for {other}"),
        };
        assert_eq!(effects(text), expected, "{name}");
        seen += 1;
    }
    assert!(seen >= 6);
}
