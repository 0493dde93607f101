//! Every sequence of two and three verbs from every state that matters, against a model that knows only four facts.

use super::driver::{Driver, rules};

/// The facts that decide which verb is in order.
#[derive(Clone, Copy, Default, Debug)]
struct Model {
    tls: bool,
    network: bool,
    greeted: bool,
    authenticated: bool,
    /// Recipients of the open transaction.
    transaction: Option<u32>,
    quit: bool,
}

const VERBS: [(&str, &str); 12] = [
    ("EHLO", "EHLO client.test\r\n"),
    ("HELO", "HELO client.test\r\n"),
    ("MAIL", "MAIL FROM:<a@b.test>\r\n"),
    ("RCPT", "RCPT TO:<c@d.test>\r\n"),
    ("DATA", "DATA\r\n"),
    ("BDAT", "BDAT 3 LAST\r\na\r\n"),
    ("RSET", "RSET\r\n"),
    ("NOOP", "NOOP\r\n"),
    ("QUIT", "QUIT\r\n"),
    ("AUTH", "AUTH PLAIN AGEAc2VjcmV0\r\n"),
    ("STARTTLS", "STARTTLS\r\n"),
    ("VRFY", "VRFY c\r\n"),
];

impl Model {
    fn replies(&mut self, verb: &str) -> &'static [u16] {
        let ready = self.transaction.is_some_and(|recipients| recipients > 0);
        match verb {
            _ if self.quit => &[],
            "QUIT" => {
                self.quit = true;
                &[221]
            }
            "NOOP" => &[250],
            "VRFY" => &[252],
            "RSET" => {
                self.transaction = None;
                &[250]
            }
            "EHLO" | "HELO" => {
                (self.greeted, self.transaction) = (true, None);
                &[250]
            }
            "STARTTLS" if self.tls || self.transaction.is_some() || self.authenticated => &[503],
            "STARTTLS" => {
                (self.tls, self.greeted) = (true, false);
                &[220]
            }
            "AUTH" if !self.greeted => &[503],
            "AUTH" if !self.tls => &[538],
            "AUTH" if self.authenticated || self.transaction.is_some() => &[503],
            "AUTH" => {
                self.authenticated = true;
                &[235]
            }
            "MAIL" if !self.greeted => &[503],
            "MAIL" if !self.authenticated && !self.network => &[530],
            "MAIL" if self.transaction.is_some() => &[503],
            "MAIL" => {
                self.transaction = Some(0);
                &[250]
            }
            "RCPT" => match &mut self.transaction {
                Some(recipients) => {
                    *recipients += 1;
                    &[250]
                }
                None => &[503],
            },
            "DATA" if ready => {
                self.transaction = None;
                &[354, 250]
            }
            "BDAT" if ready => {
                self.transaction = None;
                &[250]
            }
            // A refused chunk spoils its transaction, a refused DATA does not.
            "BDAT" => {
                self.transaction = None;
                &[503]
            }
            "DATA" => &[503],
            other => panic!("{other}"),
        }
    }
}

/// Sends one verb, and the message where 354 asks for it.
fn send(driver: &mut Driver, octets: &str) {
    let before = driver.codes().len();
    driver.give(octets.as_bytes());
    if driver.codes().get(before) == Some(&354) {
        driver.give(b"a\r\n.\r\n");
    }
}

fn check(start: Model, prefix: &[&str], verbs: &[usize]) {
    let wide = crate::smtp::Rules { errors_max: 99, recipients_max: 99, messages_max: 99, ..rules() };
    let mut driver = Driver::with(wide, start.tls, false);
    if start.network {
        driver.session.network_user();
    }
    let mut model = start;
    let mut expected = Vec::new();
    let prefix = prefix.iter().map(|name| *VERBS.iter().find(|(verb, _)| verb == name).unwrap());
    let sequence: Vec<_> = prefix.chain(verbs.iter().map(|&number| VERBS[number])).collect();
    for (name, octets) in &sequence {
        expected.extend_from_slice(model.replies(name));
        send(&mut driver, octets);
    }
    let names: Vec<_> = sequence.iter().map(|(name, _)| *name).collect();
    assert_eq!(driver.codes(), expected, "{start:?} {names:?}");
}

#[test]
fn all_sequences_of_two_and_three_verbs_agree_with_the_model() {
    let plain = Model::default();
    let tls = Model { tls: true, ..plain };
    let network = Model { network: true, ..plain };
    let starts: [(Model, &[&str]); 8] = [
        (plain, &[]),
        (tls, &[]),
        (network, &[]),
        (tls, &["EHLO"]),
        (tls, &["EHLO", "AUTH"]),
        (tls, &["EHLO", "AUTH", "MAIL"]),
        (tls, &["EHLO", "AUTH", "MAIL", "RCPT"]),
        (network, &["HELO", "MAIL", "RCPT"]),
    ];
    let all = 0..VERBS.len();
    for (start, prefix) in starts {
        for first in all.clone() {
            for second in all.clone() {
                check(start, prefix, &[first, second]);
                all.clone().for_each(|third| check(start, prefix, &[first, second, third]));
            }
        }
    }
}
