#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::net::Ipv4Addr;

use super::*;

const ID: &str = "01JCXT5Y7Q8ZK3V9M2N4P6R8ST";

fn message(text: impl Into<String>) -> Message {
    Message::new(Bytes::from(text.into()))
}

fn plain() -> Stamp<'static> {
    Stamp {
        id: ID.parse().unwrap(),
        at: "2026-11-05T09:08:07Z".parse().unwrap(),
        hostname: "out.example.net",
        client: Peer {
            helo: "client.example.com",
            address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)),
            tls: Some(("TLSv1.3", "TLS13_AES_256_GCM_SHA384")),
            authenticated: true,
        },
        smtputf8: false,
        recipient: None,
        domain: "example.com",
        login: "alice@example.com",
        identity: None,
        class: "clean",
        evidence: &[],
        abuse_contact: "abuse@example.com",
        removed: &[],
    }
}

fn text(message: &Message) -> String {
    String::from_utf8(message.bytes().to_vec()).unwrap()
}

#[test]
fn originals_and_body_stay_byte_for_byte_between_the_added_fields() {
    let original = "Subject:  odd \t spacing \r\n folded\r\nDATE: x\r\nmessage-id: <1@x>\r\n";
    let body = "line\r\n.dot\r\n\r\n  \r\n";
    let stamped = stamp(&plain(), &message(format!("{original}\r\n{body}")));
    assert_eq!(
        text(&stamped),
        format!(
            "Received: from client.example.com ([192.0.2.7]) (using TLSv1.3 with cipher\r\n\
             \tTLS13_AES_256_GCM_SHA384) by out.example.net (outgate) with ESMTPSA id\r\n\
             \t{ID}; Thu, 05 Nov 2026 09:08:07 +0000\r\n\
             {original}\
             X-Outgate-Id: {ID}\r\n\
             X-Outgate-Domain: example.com\r\n\
             X-Outgate-Username: alice@example.com\r\n\
             X-Outgate-Class: clean\r\n\
             X-Report-Abuse-To: abuse@example.com\r\n\
             \r\n{body}"
        )
    );
}

#[test]
fn our_fields_stand_where_every_reader_sees_them() {
    for (original, fields, body) in [
        ("no field\r\nA: 1\r\n\r\nbody", "", "no field\r\nA: 1\r\n\r\nbody"),
        ("A: 1\r\nno field\r\nB: 2\r\n\r\nbody", "A: 1\r\n", "no field\r\nB: 2\r\n\r\nbody"),
        ("A: 1\r\n \t\r\n 2\r\nB:\r\n \r\n\r\nbody", "A: 1\r\n 2\r\nB:\r\n", "body"),
    ] {
        let stamped = stamp(&plain(), &message(original));
        assert_eq!(stamped.broken_header(), None);
        assert!(text(&stamped).contains(&format!("+0000\r\n{fields}Message-ID: ")), "{}", text(&stamped));
        assert_eq!(stamped.body(), body.as_bytes());
    }
}

#[test]
fn missing_fields_are_added() {
    let stamped = stamp(&plain(), &message("From: a@example.com\r\n\r\nx"));
    let of = |name: &str| stamped.named(name).map(|header| header.text()).collect::<Vec<_>>();
    assert_eq!(of("Message-ID"), [format!("<{ID}@out.example.net>")]);
    assert_eq!(of("Date"), ["Thu, 05 Nov 2026 09:08:07 +0000"]);
    for odd in ["", "\r\n", "\r\nbody", "From: a@example.com", "From: a@example.com\r\n"] {
        let stamped = stamp(&plain(), &message(odd));
        assert_eq!(stamped.named("X-Outgate-Id").count(), 1, "{odd:?}");
        assert_eq!(stamped.body(), message(odd).body(), "{odd:?}");
    }
}

#[test]
fn foreign_marks_and_identification_headers_are_stripped_with_their_folds() {
    let mut asked = plain();
    asked.removed = &["X-Auth-User"];
    let stamped = stamp(
        &asked,
        &message(
            "A: 1\r\nX-OUTGATE-Class: forged\r\n folded\r\nx-report-abuse-to: nobody\r\nReturn-path: <x@y>\r\nB: 2\r\nx-auth-user: carol\r\nC: 3\r\n\r\nX-Outgate-Id: body\r\n",
        ),
    );
    let names: Vec<_> = stamped.headers().map(|header| header.name.to_owned()).collect();
    assert_eq!(names[1..4], ["A", "B", "C"]);
    assert!(!text(&stamped).contains("forged") && !text(&stamped).contains("carol"));
    assert_eq!(stamped.body(), b"X-Outgate-Id: body\r\n");
}

#[test]
fn received_names_the_protocol_as_it_was() {
    let with = |tls, authenticated, smtputf8| {
        let mut asked = plain();
        (asked.client.tls, asked.client.authenticated, asked.smtputf8) = (tls, authenticated, smtputf8);
        let stamped = stamp(&asked, &message("\r\n"));
        let received = stamped.named("Received").next().unwrap().text();
        let words: Vec<_> = received.split_whitespace().collect();
        let with = words.iter().rposition(|word| *word == "with").unwrap();
        words[with + 1].to_owned()
    };
    let tls = Some(("TLSv1.2", "X"));
    assert_eq!(with(tls, true, false), "ESMTPSA");
    assert_eq!(with(None, true, false), "ESMTPA");
    assert_eq!(with(tls, false, false), "ESMTPS");
    assert_eq!(with(None, false, false), "ESMTP");
    assert_eq!(with(tls, true, true), "UTF8SMTPSA");
    assert_eq!(with(None, false, true), "UTF8SMTP");
}

#[test]
fn received_names_a_recipient_that_is_ascii() {
    let clause = |recipient: &str| {
        let recipient = recipient.parse().unwrap();
        let mut asked = plain();
        (asked.recipient, asked.smtputf8) = (Some(&recipient), true);
        let received = stamp(&asked, &message("\r\n")).named("Received").next().unwrap().text();
        received.split_once(" for ").map(|(_, rest)| rest.split(';').next().unwrap().to_owned())
    };
    assert_eq!(clause("bob@example.net").as_deref(), Some("<bob@example.net>"));
    assert_eq!(clause("j\u{fc}rgen@example.net"), None);
}

#[test]
fn no_value_can_end_its_field() {
    let evil = "a\r\nBcc: x@y.z\r\n\r\nbody\u{0}\u{7f}\u{e9}";
    let evidence = ["x ".repeat(5_000), "y".repeat(3_000)];
    let mut asked = plain();
    asked.client.helo = "evil (\r\nFrom: x) \"";
    (asked.login, asked.identity, asked.evidence) = (evil, Some(evil), &evidence);
    let stamped = stamp(&asked, &message("A: 1\r\n\r\nreal body"));
    assert_eq!(stamped.body(), b"real body");
    assert_eq!(stamped.named("Bcc").count() + stamped.named("From").count(), 0);
    assert!(stamped.header_section().is_ascii());
    assert!(text(&stamped).lines().all(|line| line.len() <= 998));
    assert!(stamped.named("X-Outgate-Evidence").next().unwrap().value.len() < 2_200);
}

mod signing {
    use std::collections::HashMap;
    use std::process::{Command, Stdio};

    use aws_lc_rs::digest::{SHA256, digest};
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    use aws_lc_rs::rsa::KeySize;
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair, RsaKeyPair};
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use outgate_cluster::command::DkimAlgorithm;
    use outgate_cluster::state::DkimKey;
    use outgate_cluster::{DomainName, Timestamp};

    use super::super::dkim::sign;
    use super::*;

    const BODIES: [&str; 12] = [
        "hello\r\n",
        "",
        "no line end",
        "two  spaces\tand tab \r\n next\r\n",
        "a\r\n\r\n\r\nb\r\n",
        "tail\r\n\r\n\r\n",
        "tail\r\n \r\n",
        "tail\r\n\t \r\n \r\n\r\n",
        "tail  \r\n  \r\n",
        " \r\n",
        "\r\n \r\n",
        "in\r\n \t\r\nside\r\n",
    ];

    fn pem(der: &[u8]) -> String {
        format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der))
    }

    fn key(selector: &str, algorithm: DkimAlgorithm, der: &[u8]) -> DkimKey {
        DkimKey {
            domain: DomainName::new("example.com").unwrap(),
            selector: selector.to_owned(),
            algorithm,
            private_key: pem(der),
            created: Timestamp(0),
        }
    }

    /// An RSA key and an Ed25519 key with their DNS records.
    fn keys() -> (Vec<DkimKey>, HashMap<String, String>) {
        let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let rsa_der = AsDer::<Pkcs8V1Der<'_>>::as_der(&rsa).unwrap();
        let rsa_public = AsDer::<aws_lc_rs::encoding::PublicKeyX509Der<'_>>::as_der(rsa.public_key());
        let ed_der = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new()).unwrap();
        let ed = Ed25519KeyPair::from_pkcs8(ed_der.as_ref()).unwrap();
        let records = HashMap::from([
            ("default".to_owned(), format!("v=DKIM1; k=rsa; p={}", STANDARD.encode(rsa_public.unwrap().as_ref()))),
            (
                "default-ed25519".to_owned(),
                format!("v=DKIM1; k=ed25519; p={}", STANDARD.encode(ed.public_key().as_ref())),
            ),
        ]);
        let keys = vec![
            key("default", DkimAlgorithm::RsaSha256, rsa_der.as_ref()),
            key("default-ed25519", DkimAlgorithm::Ed25519Sha256, ed_der.as_ref()),
        ];
        (keys, records)
    }

    fn stamped(body: &str) -> Message {
        stamp(&plain(), &message(format!("From: A\r\n <a@example.com>\r\nSubject: s\r\nX-Y: z\r\n\r\n{body}")))
    }

    /// RFC 6376 section 3.4.4, written down once more and slowly.
    fn relaxed_body(body: &str) -> String {
        let reduce = |line: &str| {
            let words: Vec<_> = line.split([' ', '\t']).filter(|word| !word.is_empty()).collect();
            let lead = if line.starts_with([' ', '\t']) && !words.is_empty() { " " } else { "" };
            format!("{lead}{}", words.join(" "))
        };
        let mut lines: Vec<_> = body.split("\r\n").map(reduce).collect();
        while lines.last().is_some_and(String::is_empty) {
            lines.pop();
        }
        lines.iter().map(|line| format!("{line}\r\n")).collect()
    }

    fn tag(signature: &str, name: &str) -> String {
        let squeezed: String = signature.split_whitespace().collect();
        squeezed.split(';').find_map(|tag| tag.strip_prefix(&format!("{name}="))).unwrap().to_owned()
    }

    #[test]
    fn the_body_hash_is_that_of_the_body_as_it_leaves() {
        let (keys, _) = keys();
        for body in BODIES {
            let signed = sign(&stamped(body), &keys);
            assert_eq!(signed.body(), body.as_bytes());
            let expected = STANDARD.encode(digest(&SHA256, relaxed_body(body).as_bytes()).as_ref());
            for signature in signed.named("DKIM-Signature") {
                assert_eq!(tag(&signature.text(), "bh"), expected, "{body:?}");
            }
            assert_eq!(signed.named("DKIM-Signature").count(), 2);
        }
    }

    #[test]
    fn important_fields_are_signed_once_more_than_they_occur() {
        let (keys, _) = keys();
        let signed = sign(&stamped("x"), &keys);
        let fields = tag(&signed.named("DKIM-Signature").next().unwrap().text(), "h").to_lowercase();
        let count = |name: &str| fields.split(':').filter(|field| *field == name).count();
        assert_eq!((count("from"), count("subject"), count("date"), count("message-id")), (2, 2, 2, 2));
        assert_eq!((count("to"), count("x-y"), count("received")), (2, 0, 0));
    }

    #[test]
    fn an_unusable_key_signs_nothing_and_harms_nothing() {
        let (mut keys, _) = keys();
        keys[0].private_key = "no key".to_owned();
        let plain = stamped("x");
        let signed = sign(&plain, &keys);
        assert_eq!(signed.named("DKIM-Signature").count(), 1);
        assert!(signed.bytes().ends_with(plain.bytes()));
        assert_eq!(sign(&plain, &keys[..1]), plain);
        assert_eq!(sign(&plain, &[]), plain);
    }

    #[test]
    fn an_exchanged_key_is_used_at_once() {
        let ((first, _), (second, _)) = (keys(), keys());
        let of = |keys: &[DkimKey]| tag(&sign(&stamped("x"), keys).named("DKIM-Signature").last().unwrap().text(), "b");
        assert_ne!(of(&first), of(&second));
    }

    /// dkimpy judges every signature over the whole message, for every body. Skipped aloud without it, unless CI=true.
    #[test]
    fn a_foreign_verifier_agrees() {
        const SCRIPT: &str = "import sys, json, dkim\n\
            case = json.load(sys.stdin)\n\
            records = {k: v.encode() for k, v in case['records'].items()}\n\
            def txt(name, timeout=5):\n    return records.get(name.decode().split('.')[0])\n\
            for text in case['messages']:\n    \
                d = dkim.DKIM(text.encode('latin-1'))\n    \
                print([d.verify(idx=i, dnsfunc=txt) for i in range(2)])\n";
        let (keys, records) = keys();
        let as_text = |body: &&str| String::from_utf8(sign(&stamped(body), &keys).bytes().to_vec()).unwrap();
        let messages: Vec<_> = BODIES.iter().map(as_text).collect();
        let input = serde_json::json!({ "records": records, "messages": messages }).to_string();
        let python = Command::new("/usr/bin/python3")
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let has_dkimpy = Command::new("/usr/bin/python3").args(["-c", "import dkim, nacl"]).output();
        if !has_dkimpy.is_ok_and(|output| output.status.success()) {
            assert!(std::env::var("CI").is_err(), "dkimpy is not installed");
            return;
        }
        let mut python = python.unwrap();
        std::io::Write::write_all(&mut python.stdin.take().unwrap(), input.as_bytes()).unwrap();
        let output = python.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said.lines().collect::<Vec<_>>(), vec!["[True, True]"; BODIES.len()], "{complaint}");
    }
}
