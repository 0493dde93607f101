//! However the octets are cut into reads, the same is said; and nothing makes the machine fail.

use proptest::collection::vec;
use proptest::prelude::*;

use super::driver::{Driver, SIZE_MAX, rules};
use crate::smtp::Fault;

/// What a client may send, in order and out of order. STARTTLS is missing: what follows it in the same read is dropped.
const PIECES: [&[u8]; 27] = [
    b"EHLO client.test\r\n",
    b"AUTH PLAIN AGEAc2VjcmV0\r\n",
    b"AUTH LOGIN\r\n",
    b"YQ==\r\n",
    b"c2VjcmV0\r\n",
    b"*\r\n",
    b"MAIL FROM:<a@b.test>\r\n",
    b"MAIL FROM:<full@b.test> SIZE=10\r\n",
    b"RCPT TO:<c@d.test>\r\n",
    b"RCPT TO:<later@d.test>\r\n",
    b"RCPT TO:<nobody>\r\n",
    b"DATA\r\n",
    b"Subject: a\r\n\r\n..b\r\n.c\r\n",
    b"\r\n.\r\n",
    b"\n.\n",
    b"\n.\r\n",
    b"\r.\r\n",
    b"\0",
    b"\r",
    b"\n",
    b".",
    b"BDAT 7\r\nab\r\ncd\n",
    b"BDAT 4 LAST\r\ne\r\nf",
    b"BDAT 0 LAST\r\n",
    b"RSET\r\n",
    b"NOOP\r\n",
    b"\xff\xfe\r\n",
];

/// Greeted and logged in, with bounds far away.
fn driver() -> Driver {
    let wide = crate::smtp::Rules { errors_max: 1000, verbs_max: 1000, messages_max: 1000, ..rules() };
    let mut driver = Driver::with(wide, true, false);
    driver.give(b"EHLO client.test\r\nAUTH PLAIN AGEAc2VjcmV0\r\n");
    driver
}

fn outcome(reads: &[&[u8]]) -> (Vec<String>, String, bool) {
    let mut driver = driver();
    reads.iter().for_each(|read| driver.give(read));
    (driver.said.clone(), format!("{:?}", driver.messages), driver.closed)
}

proptest! {
    #[test]
    fn reads_do_not_matter(numbers in vec(0..PIECES.len(), 1..40), cuts in vec(1..9_usize, 1..40)) {
        let whole: Vec<u8> = numbers.iter().flat_map(|&number| PIECES[number]).copied().collect();
        let mut reads = Vec::new();
        let (mut rest, mut cuts) = (&whole[..], cuts.iter().cycle());
        while !rest.is_empty() {
            let (read, later) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
            reads.push(read);
            rest = later;
        }
        let (one, many) = (outcome(&[&whole]), outcome(&reads));
        prop_assert_eq!(one, many);
    }

    #[test]
    fn octets_of_any_kind_are_borne(reads in vec(vec(any::<u8>(), 0..300), 0..20)) {
        let mut driver = driver();
        reads.iter().for_each(|read| driver.give(read));
        prop_assert!(driver.said.iter().all(|line| line.len() > 3));
    }

    #[test]
    fn content_comes_out_as_it_went_in(lines in vec("[.a-c]{0,5}", 0..20), cut in 1..50_usize) {
        let message: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        let stuffed: String = lines
            .iter()
            .map(|line| if line.starts_with('.') { format!(".{line}\r\n") } else { format!("{line}\r\n") })
            .collect();
        let mut driver = driver();
        driver.give(b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n");
        stuffed.as_bytes().chunks(cut).for_each(|read| driver.give(read));
        driver.give(b".\r\nNOOP\r\n");
        prop_assert_eq!(driver.messages[0].content.as_deref(), Ok(message.as_bytes()));
        prop_assert_eq!(driver.codes().last().copied(), Some(250));
    }
}

#[test]
fn no_trick_ends_a_message_twice() {
    for trick in
        ["\n.\n", "\n.\r\n", "\r.\r\n", "\r\n.\n", "\r\n.\r", "\r.\r", "\r\n\0.\r\n", "\r\n.\0\r\n", "\r\r\n.\r\r\n"]
    {
        let mut driver = driver();
        driver.give(b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n");
        let content =
            format!("one{trick}MAIL FROM:<evil@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\ntwo\r\n.\r\nDATA\r\n");
        driver.give(content.as_bytes());
        assert_eq!(driver.messages.len(), 1, "{trick:?}");
        assert!(driver.messages[0].content.is_err(), "{trick:?}");
        assert_eq!(driver.codes()[5..], [550, 503], "{trick:?}");
    }
}

#[test]
fn a_message_without_end_is_reported_before_the_session_ends() {
    let begin = b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n";
    let lines = "0123456789\r\n".repeat(400);
    for (octets, size) in [
        (format!("DATA\r\n{lines}"), 4_800),
        ("BDAT 5000 LAST\r\n".to_owned(), 5_000),
        ("BDAT 3\r\na\r\nBDAT 4000\r\n".to_owned(), 4_003),
    ] {
        let mut driver = driver();
        driver.give(begin);
        driver.give(octets.as_bytes());
        let [end] = &driver.messages[..] else { panic!("{size}: {} messages", driver.messages.len()) };
        assert_eq!((end.size, &end.content), (size, &Err(Fault::TooLarge { limit: SIZE_MAX })));
        assert_eq!(end.envelope.recipients.len(), 1);
        assert!(driver.closed && driver.codes().last() == Some(&552), "{size}: {:?}", driver.said);
    }
}

#[test]
fn verbs_are_bounded_and_those_of_a_stranger_more_so() {
    const TOO_MANY: &str = "421 4.7.0 too many commands, closing";
    for (network, verbs_max) in [(true, 60), (false, 50)] {
        let mut driver = Driver::with(rules(), true, false);
        if network {
            driver.session.network_user();
        }
        driver.give("NOOP\r\n".repeat(99).as_bytes());
        assert_eq!((driver.said.len(), driver.said.last().map(String::as_str)), (verbs_max + 1, Some(TOO_MANY)));
        assert!(driver.closed);
    }
}
