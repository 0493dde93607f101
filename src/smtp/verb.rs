//! The verbs of a line; arguments are read where they are needed (RFC 5321 section 4.1.1).

use super::parameter::parse_number;
use super::reply::Reply;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verb<'a> {
    Ehlo(&'a str),
    Helo(&'a str),
    StartTls,
    Auth { mechanism: &'a str, initial: Option<&'a str> },
    Mail(&'a str),
    Rcpt(&'a str),
    Data,
    Bdat { size: u64, last: bool },
    Rset,
    Noop,
    Help,
    Vrfy,
    Expn,
    Quit,
}

/// Why a line is no verb.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum VerbFault {
    Refused(Reply),
    /// How many octets follow cannot be told, so nothing that follows can be trusted.
    Lost(Reply),
}

impl<'a> Verb<'a> {
    pub(super) fn parse(line: &'a [u8]) -> Result<Self, VerbFault> {
        let line = std::str::from_utf8(line).map_err(|_| VerbFault::Refused(Reply::syntax("UTF-8")))?;
        let line = line.trim_end_matches([' ', '\t']);
        let (word, arguments) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        let arguments = arguments.trim_start_matches([' ', '\t']);
        match word.to_ascii_uppercase().as_str() {
            "EHLO" => client_name(arguments, "EHLO name").map(Self::Ehlo),
            "HELO" => client_name(arguments, "HELO name").map(Self::Helo),
            "STARTTLS" => alone(Self::StartTls, arguments, "STARTTLS"),
            "AUTH" => auth(arguments),
            "MAIL" => Ok(Self::Mail(arguments)),
            "RCPT" => Ok(Self::Rcpt(arguments)),
            "DATA" => alone(Self::Data, arguments, "DATA"),
            "BDAT" => bdat(arguments),
            "RSET" => alone(Self::Rset, arguments, "RSET"),
            "NOOP" => Ok(Self::Noop),
            "HELP" => Ok(Self::Help),
            "VRFY" if !arguments.is_empty() => Ok(Self::Vrfy),
            "VRFY" => Err(VerbFault::Refused(Reply::syntax("VRFY name"))),
            "EXPN" => Ok(Self::Expn),
            "QUIT" => alone(Self::Quit, arguments, "QUIT"),
            _ => Err(VerbFault::Refused(Reply::unknown_verb())),
        }
    }
}

fn alone<'a>(verb: Verb<'a>, arguments: &str, expected: &str) -> Result<Verb<'a>, VerbFault> {
    if arguments.is_empty() { Ok(verb) } else { Err(VerbFault::Refused(Reply::syntax(expected))) }
}

/// Clients give all kinds of names; ours must be one printable word that Received can carry.
fn client_name<'a>(arguments: &'a str, expected: &str) -> Result<&'a str, VerbFault> {
    let printable = |c: char| !c.is_control() && !c.is_whitespace() && !"()<>\"\\;,".contains(c);
    if arguments.is_empty() || arguments.len() > 255 || !arguments.chars().all(printable) {
        return Err(VerbFault::Refused(Reply::syntax(expected)));
    }
    Ok(arguments)
}

fn auth(arguments: &str) -> Result<Verb<'_>, VerbFault> {
    let mut words = arguments.split_ascii_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some(mechanism), initial, None) => Ok(Verb::Auth { mechanism, initial }),
        _ => Err(VerbFault::Refused(Reply::syntax("AUTH mechanism [response]"))),
    }
}

fn bdat(arguments: &str) -> Result<Verb<'_>, VerbFault> {
    let mut words = arguments.split_ascii_whitespace();
    let size = words.next().and_then(parse_number);
    let last = match words.next() {
        None => Some(false),
        Some(word) => word.eq_ignore_ascii_case("LAST").then_some(true),
    };
    match (size, last, words.next()) {
        (Some(size), Some(last), None) => Ok(Verb::Bdat { size, last }),
        _ => Err(VerbFault::Lost(Reply::syntax("BDAT octets [LAST]"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_are_read_in_any_case() {
        for (line, verb) in [
            ("ehlo  client.test ", Verb::Ehlo("client.test")),
            ("HELO [192.0.2.1]", Verb::Helo("[192.0.2.1]")),
            ("Auth PLAIN AGEAYg==", Verb::Auth { mechanism: "PLAIN", initial: Some("AGEAYg==") }),
            ("AUTH LOGIN", Verb::Auth { mechanism: "LOGIN", initial: None }),
            ("MAIL FROM:<a@b>", Verb::Mail("FROM:<a@b>")),
            ("BDAT 0 last", Verb::Bdat { size: 0, last: true }),
            ("BDAT 10", Verb::Bdat { size: 10, last: false }),
            ("NOOP what ever", Verb::Noop),
            ("VRFY me", Verb::Vrfy),
            ("quit", Verb::Quit),
        ] {
            assert_eq!(Verb::parse(line.as_bytes()), Ok(verb), "{line}");
        }
    }

    #[test]
    fn other_lines_are_refused() {
        let refused =
            |code: u16| move |fault: &VerbFault| matches!(fault, VerbFault::Refused(reply) if reply.code == code);
        for line in ["EHLO", "EHLO a b", "DATA now", "RSET x", "STARTTLS x", "AUTH", "AUTH a b c", "VRFY", "QUIT x"] {
            assert!(Verb::parse(line.as_bytes()).is_err_and(|fault| refused(501)(&fault)), "{line}");
        }
        for line in ["", "GET / HTTP/1.1", "MAILFROM:<a@b>"] {
            assert!(Verb::parse(line.as_bytes()).is_err_and(|fault| refused(500)(&fault)), "{line}");
        }
        assert!(Verb::parse(b"NOOP \xff").is_err_and(|fault| refused(501)(&fault)));
        for line in ["BDAT", "BDAT x", "BDAT -1", "BDAT 1 FIRST", "BDAT 1 LAST 2"] {
            assert!(matches!(Verb::parse(line.as_bytes()), Err(VerbFault::Lost(_))), "{line}");
        }
    }
}
