//! The parameters of MAIL and RCPT: SIZE (RFC 1870), BODY (RFC 6152), SMTPUTF8 (RFC 6531), AUTH (RFC 4954),
//! RET, ENVID, NOTIFY and ORCPT (RFC 3461).

use crate::mail::{Address, Body, Notify, Recipient, Return, ReversePath};

use super::path;
use super::reply::Reply;
use super::transaction::Transaction;

/// RFC 3461 section 4.4 and 4.2.
const ENVID_LENGTH_MAX: usize = 100;
const ORCPT_LENGTH_MAX: usize = 500;

const MAIL_SYNTAX: &str = "MAIL FROM:<address>";
const RCPT_SYNTAX: &str = "RCPT TO:<address>";

/// Why RCPT was refused: an address that is none is counted.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum RecipientFault {
    Malformed,
    Other(Reply),
}

impl From<Reply> for RecipientFault {
    fn from(reply: Reply) -> Self {
        Self::Other(reply)
    }
}

/// Reads what follows `MAIL`.
pub(super) fn mail(arguments: &str) -> Result<Transaction, Reply> {
    let rest = strip_word(arguments, "FROM:").ok_or_else(|| Reply::syntax(MAIL_SYNTAX))?;
    let (path, parameters) = path::split(rest).ok_or_else(|| Reply::syntax(MAIL_SYNTAX))?;
    let reverse_path = match path {
        "" => ReversePath::Null,
        path => ReversePath::Address(Address::new(path).map_err(|_| Reply::sender_malformed())?),
    };
    let mut transaction = Transaction::new(reverse_path);
    let mut seen = Seen::default();
    for parameter in parameters.split_ascii_whitespace() {
        let (name, value) = seen.once(parameter)?;
        set_mail_parameter(&mut transaction, &name, value)?;
    }
    if !transaction.smtputf8 && transaction.reverse_path().address().is_some_and(Address::needs_smtputf8) {
        return Err(Reply::non_ascii());
    }
    Ok(transaction)
}

fn set_mail_parameter(transaction: &mut Transaction, name: &str, value: Option<&str>) -> Result<(), Reply> {
    let wrong = |expected: &str| Reply::syntax(expected);
    match (name, value) {
        ("SIZE", Some(value)) => {
            transaction.declared_size = Some(parse_number(value).ok_or_else(|| wrong("SIZE=octets"))?);
        }
        ("BODY", Some(value)) => transaction.body = parse_body(value).ok_or_else(|| wrong("BODY=7BIT|8BITMIME"))?,
        ("SMTPUTF8", None) => transaction.smtputf8 = true,
        // RFC 4954 section 5: whom the client names here has no say, the login has.
        ("AUTH", Some(value)) => {
            utf8_xtext(value).ok_or_else(|| wrong("AUTH=xtext"))?;
        }
        ("RET", Some(value)) => transaction.ret = Some(parse_return(value).ok_or_else(|| wrong("RET=FULL|HDRS"))?),
        ("ENVID", Some(value)) => {
            let envid = Some(value).filter(|value| value.len() <= ENVID_LENGTH_MAX).and_then(xtext);
            transaction.envid = Some(envid.ok_or_else(|| wrong("ENVID=xtext"))?);
        }
        ("SIZE" | "BODY" | "SMTPUTF8" | "AUTH" | "RET" | "ENVID", _) => return Err(wrong("a parameter's value")),
        _ => return Err(Reply::unknown_parameter()),
    }
    Ok(())
}

/// Reads what follows `RCPT`; `smtputf8` is whether MAIL said so, `postmaster` who is meant by `<postmaster>` without a
/// domain (RFC 5321 section 4.5.1).
pub(super) fn recipient(
    arguments: &str,
    smtputf8: bool,
    postmaster: Option<&Address>,
) -> Result<Recipient, RecipientFault> {
    let rest = strip_word(arguments, "TO:").ok_or_else(|| Reply::syntax(RCPT_SYNTAX))?;
    let (path, parameters) = path::split(rest).ok_or_else(|| Reply::syntax(RCPT_SYNTAX))?;
    let address = match postmaster {
        Some(postmaster) if path.eq_ignore_ascii_case("postmaster") => postmaster.clone(),
        _ => Address::new(path).map_err(|_| RecipientFault::Malformed)?,
    };
    if address.needs_smtputf8() && !smtputf8 {
        return Err(Reply::non_ascii().into());
    }
    let mut recipient = Recipient { address, notify: Notify::default(), original: None };
    let mut seen = Seen::default();
    for parameter in parameters.split_ascii_whitespace() {
        let (name, value) = seen.once(parameter)?;
        match (name.as_str(), value) {
            ("NOTIFY", Some(value)) => {
                recipient.notify =
                    parse_notify(value).ok_or_else(|| Reply::syntax("NOTIFY=NEVER|SUCCESS,FAILURE,DELAY"))?;
            }
            ("ORCPT", Some(value)) => {
                let original = parse_original(value).ok_or_else(|| Reply::syntax("ORCPT=type;xtext"))?;
                // RFC 6533 section 3: UTF-8 as it is needs SMTPUTF8.
                if !value.is_ascii() && !smtputf8 {
                    return Err(Reply::non_ascii().into());
                }
                recipient.original = Some(original);
            }
            ("NOTIFY" | "ORCPT", None) => return Err(Reply::syntax("a parameter's value").into()),
            _ => return Err(Reply::unknown_parameter().into()),
        }
    }
    Ok(recipient)
}

/// The names seen so far, in upper case: none may come twice.
#[derive(Default)]
struct Seen(Vec<String>);

impl Seen {
    fn once<'a>(&mut self, parameter: &'a str) -> Result<(String, Option<&'a str>), Reply> {
        let (name, value) = match parameter.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (parameter, None),
        };
        let name = name.to_ascii_uppercase();
        if self.0.contains(&name) {
            return Err(Reply::syntax("each parameter once"));
        }
        self.0.push(name.clone());
        Ok((name, value))
    }
}

fn strip_word<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let (head, rest) = text.split_at_checked(word.len())?;
    head.eq_ignore_ascii_case(word).then_some(rest)
}

/// At most 20 digits (RFC 1870 section 3).
pub(super) fn parse_number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.len() <= 20 && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

fn parse_body(text: &str) -> Option<Body> {
    match text.to_ascii_uppercase().as_str() {
        "7BIT" => Some(Body::SevenBit),
        "8BITMIME" => Some(Body::EightBitMime),
        _ => None,
    }
}

fn parse_return(text: &str) -> Option<Return> {
    match text.to_ascii_uppercase().as_str() {
        "FULL" => Some(Return::Full),
        "HDRS" => Some(Return::Headers),
        _ => None,
    }
}

fn parse_notify(text: &str) -> Option<Notify> {
    let mut notify = Notify { success: false, failure: false, delay: false, explicit: true };
    if text.eq_ignore_ascii_case("NEVER") {
        return Some(notify);
    }
    for word in text.split(',') {
        let flag = match word.to_ascii_uppercase().as_str() {
            "SUCCESS" => &mut notify.success,
            "FAILURE" => &mut notify.failure,
            "DELAY" => &mut notify.delay,
            _ => return None,
        };
        *flag = true;
    }
    Some(notify)
}

fn parse_original(text: &str) -> Option<String> {
    let (kind, address) = text.split_once(';')?;
    let kind_ok = !kind.is_empty() && kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if !kind_ok || address.is_empty() || text.len() > ORCPT_LENGTH_MAX {
        return None;
    }
    let decoded = if kind.eq_ignore_ascii_case("utf-8") { utf8_xtext(address)? } else { xtext(address)? };
    Some(format!("{kind};{decoded}"))
}

/// Decodes xtext (RFC 3461 section 4): `+` and two hexadecimal digits for one octet. What comes out is printable.
fn xtext(text: &str) -> Option<String> {
    if text.is_ascii() { utf8_xtext(text) } else { None }
}

/// The same, with UTF-8 as it is (RFC 6533 section 3).
fn utf8_xtext(text: &str) -> Option<String> {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(octet) = rest.next() {
        match octet {
            b'+' => octets.push(hex(rest.next()?)? << 4 | hex(rest.next()?)?),
            b'=' => return None,
            _ => octets.push(octet),
        }
    }
    String::from_utf8(octets).ok().filter(|decoded| !decoded.chars().any(char::is_control))
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used, reason = "tests")]

    use super::*;

    fn code(result: Result<Transaction, Reply>) -> u16 {
        result.map_or_else(|reply| reply.code, |_| 250)
    }

    #[test]
    fn mail_parameters_are_read() {
        let transaction =
            mail("from:<a@b.test> SIZE=10 body=8bitmime SMTPUTF8 RET=hdrs ENVID=a+2Bb AUTH=<>").expect("all known");
        assert_eq!(transaction.declared_size, Some(10));
        assert_eq!((transaction.body, transaction.smtputf8), (Body::EightBitMime, true));
        assert_eq!((transaction.ret, transaction.envid.as_deref()), (Some(Return::Headers), Some("a+b")));
        assert_eq!(mail("FROM:<a@b.test> SIZE=99999999999999999999").expect("huge").declared_size, Some(u64::MAX));
        assert!(mail("FROM:<>").expect("null").reverse_path().is_null());
    }

    #[test]
    fn wrong_mail_parameters_are_refused() {
        for (arguments, expected) in [
            ("FROM a@b.test", 501),
            ("TO:<a@b.test>", 501),
            ("FROM:a@b.test", 501),
            ("FROM:<a>", 553),
            ("FROM:<ä@b.test>", 553),
            ("FROM:<ä@b.test> SMTPUTF8", 250),
            ("FROM:<a@b.test> SIZE=x", 501),
            ("FROM:<a@b.test> SIZE", 501),
            ("FROM:<a@b.test> SIZE=1 size=2", 501),
            ("FROM:<a@b.test> BODY=BINARYMIME", 501),
            ("FROM:<a@b.test> SMTPUTF8=1", 501),
            ("FROM:<a@b.test> ENVID=a+0D+0A", 501),
            ("FROM:<a@b.test> ENVID=ä SMTPUTF8", 501),
            ("FROM:<a@b.test> RET=ALL", 501),
            ("FROM:<a@b.test> AUTH=a=b", 501),
            ("FROM:<a@b.test> XYZ=1", 555),
            ("FROM:<a@b.test>SIZE=1", 501),
        ] {
            assert_eq!(code(mail(arguments)), expected, "{arguments}");
        }
    }

    #[test]
    fn recipient_parameters_are_read() {
        let given = recipient("TO:<a@b.test> NOTIFY=success,DELAY ORCPT=rfc822;x+40y", false, None).expect("valid");
        assert_eq!(given.notify, Notify { success: true, failure: false, delay: true, explicit: true });
        assert_eq!(given.original.as_deref(), Some("rfc822;x@y"));
        let never = recipient("TO:<a@b.test> NOTIFY=NEVER", false, None).expect("valid").notify;
        assert_eq!(never, Notify { success: false, failure: false, delay: false, explicit: true });
    }

    #[test]
    fn utf8_in_orcpt_needs_its_type_and_smtputf8() {
        let original = |value: &str, smtputf8| {
            recipient(&format!("TO:<a@b.test> ORCPT={value}"), smtputf8, None).map(|given| given.original)
        };
        let refused = |value: &str, smtputf8| match original(value, smtputf8) {
            Err(RecipientFault::Other(reply)) => reply.code,
            Err(RecipientFault::Malformed) | Ok(_) => 0,
        };
        assert_eq!(original("utf-8;grüß@x.y", true), Ok(Some("utf-8;grüß@x.y".to_owned())));
        assert_eq!(original("utf-8;gr+C3+BC@x.y", false), Ok(Some("utf-8;grü@x.y".to_owned())));
        assert_eq!(refused("utf-8;grüß@x.y", false), 553);
        assert_eq!(refused("rfc822;grüß@x.y", true), 501);
    }

    #[test]
    fn postmaster_needs_no_domain() {
        let postmaster = Address::new("admin@b.test").expect("valid");
        for path in ["postmaster", "Postmaster", "POSTMASTER"] {
            let given = recipient(&format!("TO:<{path}>"), false, Some(&postmaster)).expect("known");
            assert_eq!(given.address, postmaster);
        }
        let other = recipient("TO:<postmaster@c.test>", false, Some(&postmaster)).expect("valid");
        assert_eq!(other.address.as_str(), "postmaster@c.test");
        assert_eq!(recipient("TO:<postmaster>", false, None), Err(RecipientFault::Malformed));
    }

    #[test]
    fn wrong_recipients_are_refused() {
        assert_eq!(recipient("TO:<nobody>", false, None), Err(RecipientFault::Malformed));
        assert_eq!(recipient("TO:<>", false, None), Err(RecipientFault::Malformed));
        for arguments in [
            "TO:a@b.test",
            "TO:<a@b.test> NOTIFY=NEVER,DELAY",
            "TO:<a@b.test> NOTIFY",
            "TO:<a@b.test> ORCPT=rfc822",
            "TO:<a@b.test> ORCPT=rfc822;a+4",
            "TO:<a@b.test> SIZE=1",
            "TO:<ä@b.test>",
        ] {
            assert!(matches!(recipient(arguments, false, None), Err(RecipientFault::Other(_))), "{arguments}");
        }
    }
}
