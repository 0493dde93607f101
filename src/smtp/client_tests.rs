#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::mail::{Address, Notify, ReversePath};

fn take(text: &str) -> Result<Option<ServerReply>, ReplyError> {
    ServerReply::take(&mut text.as_bytes().to_vec())
}

#[test]
fn replies_are_taken_one_by_one() {
    let mut buffer = b"250-first\r\n250 last\r\n550 5.1.1 no\r\n25".to_vec();
    let first = ServerReply::take(&mut buffer).unwrap().unwrap();
    assert_eq!((first.code, first.lines.len(), first.text().as_str()), (250, 2, "250 first last"));
    let second = ServerReply::take(&mut buffer).unwrap().unwrap();
    assert_eq!((second.enhanced(), second.is_permanent()), (Some("5.1.1"), true));
    assert_eq!((ServerReply::take(&mut buffer), buffer.as_slice()), (Ok(None), &b"25"[..]));
}

#[test]
fn what_is_no_reply_is_told() {
    for text in ["hello\r\n", "25\r\n", "250?x\r\n", "150 x\r\n", "600 x\r\n", "250-a\r\n251 b\r\n", "\r\n"] {
        assert_eq!(take(text), Err(ReplyError::Malformed), "{text:?}");
    }
    assert_eq!(take("250\r\n").unwrap().unwrap().code, 250);
    assert_eq!(take("250 4.1.1 wrong class\r\n").unwrap().unwrap().enhanced(), None);
    assert_eq!(take("550 5.1.1234 long\r\n").unwrap().unwrap().enhanced(), None);
}

#[test]
fn replies_have_bounds() {
    let fits = format!("250 {}\r\n", "x".repeat(REPLY_LINE_MAX_BYTES - 5));
    assert!(take(&fits).unwrap().is_some());
    assert_eq!(take(&format!("250 {}\r\n", "x".repeat(REPLY_LINE_MAX_BYTES))), Err(ReplyError::LineTooLong));
    assert_eq!(take(&"2".repeat(REPLY_LINE_MAX_BYTES + 1)), Err(ReplyError::LineTooLong));
    let lines = |count: usize| "250-x\r\n".repeat(count - 1) + "250 x\r\n";
    assert_eq!(take(&lines(REPLY_LINES_MAX)).unwrap().unwrap().lines.len(), REPLY_LINES_MAX);
    assert_eq!(take(&lines(REPLY_LINES_MAX + 1)), Err(ReplyError::TooManyLines));
}

#[test]
fn control_characters_of_a_reply_do_not_reach_the_log() {
    assert_eq!(take("550 a\tb\x1b[31m\r\n").unwrap().unwrap().text(), "550 a b [31m");
}

#[test]
fn extensions_are_read() {
    let reply = take("250-host STARTTLS\r\n250-Pipelining\r\n250-SIZE 1000\r\n250-AUTH=LOGIN PLAIN\r\n250 dsn\r\n");
    let found = Extensions::parse(&reply.unwrap().unwrap());
    let expected =
        Extensions { pipelining: true, dsn: true, auth_plain: true, size_max: Some(1000), ..Extensions::default() };
    assert_eq!(found, expected);
    assert_eq!(Extensions::parse(&take("250-h\r\n250 SIZE 0\r\n").unwrap().unwrap()).size_max, None);
}

fn envelope(sender: &str, recipient: &str) -> Envelope {
    Envelope {
        reverse_path: ReversePath::Address(Address::new(sender).unwrap()),
        recipients: vec![Recipient {
            address: Address::new(recipient).unwrap(),
            notify: Notify { success: true, failure: false, delay: true, explicit: true },
            original: Some("rfc822;a+b@x.y".to_owned()),
        }],
        body: Body::EightBitMime,
        smtputf8: true,
        ret: Some(Return::Headers),
        envid: Some("e=1 ".to_owned()),
    }
}

#[test]
fn parameters_are_given_only_where_offered() {
    let envelope = envelope("a@bücher.example", "b@x.y");
    let all = Extensions { dsn: true, eight_bit_mime: true, size_max: Some(9999), ..Extensions::default() };
    let mut line = String::new();
    write_mail(&mut line, &envelope, 42, &all, true);
    write_rcpt(&mut line, &envelope.recipients[0], &all, true);
    assert_eq!(
        line,
        "MAIL FROM:<a@bücher.example> SIZE=42 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=e+3D1+20\r\n\
         RCPT TO:<b@x.y> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a+2Bb@x.y\r\n"
    );
    line.clear();
    write_mail(&mut line, &envelope, 42, &Extensions::default(), false);
    write_rcpt(&mut line, &envelope.recipients[0], &Extensions::default(), false);
    assert_eq!(line, "MAIL FROM:<a@xn--bcher-kva.example>\r\nRCPT TO:<b@x.y>\r\n");
}

#[test]
fn only_local_parts_and_headers_need_smtputf8() {
    let needs = |sender: &str, header: &[u8]| {
        let envelope = envelope(sender, "b@x.y");
        needs_smtputf8(&envelope, envelope.recipients.iter(), header)
    };
    assert!(!needs("a@bücher.example", b"Subject: x\r\n"));
    assert!(needs("ä@x.y", b"Subject: x\r\n"));
    assert!(needs("a@x.y", "Subject: ä\r\n".as_bytes()));
}

fn leaves(bytes: &[u8], piece_max: usize) -> Vec<u8> {
    CleanBody::check(bytes).unwrap().pieces(piece_max).flatten().collect()
}

#[test]
fn dots_are_doubled_wherever_a_piece_ends() {
    let body = b".\r\na\r\n..b\r\nc.\r\n.d";
    for piece_max in 1..=body.len() + 1 {
        assert_eq!(leaves(body, piece_max), b"..\r\na\r\n...b\r\nc.\r\n..d\r\n.\r\n", "{piece_max}");
    }
    assert_eq!(leaves(b"", 10), b".\r\n");
    assert_eq!(leaves(b"a\r\n", 3), b"a\r\n.\r\n");
}

#[test]
fn what_must_not_leave_is_refused_at_every_place() {
    for at in 0..100 {
        let mut body = vec![b'x'; 100];
        body[at] = 0;
        assert_eq!(CleanBody::check(&body).unwrap_err(), Unclean::Nul);
        body[at] = b'\n';
        assert_eq!(CleanBody::check(&body).unwrap_err(), Unclean::BareLf);
        body[at] = b'\r';
        assert_eq!(CleanBody::check(&body).unwrap_err(), Unclean::BareCr);
        if at < 99 {
            body[at + 1] = b'\n';
            assert!(CleanBody::check(&body).is_ok());
        }
    }
}
