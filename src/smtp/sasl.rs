//! PLAIN (RFC 4616) and LOGIN as exchanges of lines (RFC 4954 section 4).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::step::Password;

/// The name asked for by LOGIN, `Username:` and `Password:` in base64.
const USERNAME_CHALLENGE: &str = "VXNlcm5hbWU6";
const PASSWORD_CHALLENGE: &str = "UGFzc3dvcmQ6";

/// What the next line of the client will be.
#[derive(Debug)]
pub(super) enum Exchange {
    Plain,
    LoginName,
    LoginPassword { login: String },
}

/// Where an exchange stands after a line.
#[derive(Debug)]
pub(super) enum Progress {
    Challenge(Exchange, &'static str),
    Credentials {
        login: String,
        password: Password,
    },
    /// Not base64, or not what the mechanism wants.
    Malformed,
    Cancelled,
    /// A well-formed proof that can never be valid: acting for somebody else, a name that is no text.
    Invalid,
}

/// Begins an exchange; `None` for a mechanism that we have not.
pub(super) fn begin(mechanism: &str, initial: Option<&str>) -> Option<Progress> {
    let (exchange, challenge) = match mechanism.to_ascii_uppercase().as_str() {
        "PLAIN" => (Exchange::Plain, ""),
        "LOGIN" => (Exchange::LoginName, USERNAME_CHALLENGE),
        _ => return None,
    };
    Some(match initial {
        None => Progress::Challenge(exchange, challenge),
        // An initial response of no octets is written as `=`.
        Some("=") => exchange.receive(b""),
        Some(response) => exchange.receive(response.as_bytes()),
    })
}

impl Exchange {
    pub(super) fn receive(self, line: &[u8]) -> Progress {
        if line == b"*" {
            return Progress::Cancelled;
        }
        let Ok(octets) = STANDARD.decode(line) else { return Progress::Malformed };
        match self {
            Self::Plain => plain(&octets),
            Self::LoginName => match String::from_utf8(octets) {
                Ok(login) => Progress::Challenge(Self::LoginPassword { login }, PASSWORD_CHALLENGE),
                Err(_) => Progress::Invalid,
            },
            Self::LoginPassword { login } => Progress::Credentials { login, password: Password(octets) },
        }
    }
}

/// `[authzid] NUL authcid NUL passwd`; nobody may act for another.
fn plain(octets: &[u8]) -> Progress {
    let mut parts = octets.splitn(3, |&octet| octet == 0);
    let (Some(authzid), Some(authcid), Some(password)) = (parts.next(), parts.next(), parts.next()) else {
        return Progress::Malformed;
    };
    if password.contains(&0) {
        return Progress::Malformed;
    }
    match std::str::from_utf8(authcid) {
        Ok(login) if authzid.is_empty() || authzid == authcid => {
            Progress::Credentials { login: login.to_owned(), password: Password(password.to_vec()) }
        }
        _ => Progress::Invalid,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used, reason = "tests")]

    use super::*;

    fn plain_of(text: &str) -> Progress {
        begin("plain", Some(&STANDARD.encode(text))).expect("known")
    }

    #[test]
    fn plain_gives_login_and_password() {
        for text in ["\0alice\0secret", "alice\0alice\0secret"] {
            let Progress::Credentials { login, password } = plain_of(text) else { panic!("{text}") };
            assert_eq!((login.as_str(), &password.0[..]), ("alice", &b"secret"[..]));
        }
        assert!(matches!(plain_of("bob\0alice\0secret"), Progress::Invalid));
        assert!(matches!(plain_of("alice\0secret"), Progress::Malformed));
        assert!(matches!(plain_of("\0a\0b\0c"), Progress::Malformed));
        assert!(matches!(begin("PLAIN", Some("=")), Some(Progress::Malformed)));
        assert!(matches!(begin("PLAIN", Some("%%%")), Some(Progress::Malformed)));
        assert!(begin("CRAM-MD5", None).is_none());
    }

    #[test]
    fn login_asks_twice() {
        let Some(Progress::Challenge(name, USERNAME_CHALLENGE)) = begin("LOGIN", None) else { panic!() };
        let Progress::Challenge(password, PASSWORD_CHALLENGE) = name.receive(b"YWxpY2U=") else { panic!() };
        let Progress::Credentials { login, .. } = password.receive(b"c2VjcmV0") else { panic!() };
        assert_eq!(login, "alice");
        assert!(matches!(Exchange::LoginName.receive(b"*"), Progress::Cancelled));
        assert!(matches!(Exchange::LoginName.receive(b"/w=="), Progress::Invalid));
    }
}
