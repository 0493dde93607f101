//! What a client may do to become somebody: EHLO's offer, STARTTLS, AUTH (RFC 3207, RFC 4954).

use crate::smtp::reply::Reply;
use crate::smtp::sasl::{self, Progress};
use crate::smtp::step::{Question, Step};

use super::{Pending, Phase, Proof, Rules, Session};

impl Session {
    /// The answer to EHLO, one keyword a line.
    pub(super) fn capabilities(&self) -> Reply {
        let Rules { hostname, recipients_max, messages_max, .. } = &*self.rules;
        let mut text = format!(
            "{hostname}\nPIPELINING\nSIZE {}\n8BITMIME\nSMTPUTF8\nCHUNKING\nDSN\nENHANCEDSTATUSCODES\n\
             LIMITS MAILMAX={messages_max} RCPTMAX={recipients_max}",
            self.size_max
        );
        if !self.tls {
            text.push_str("\nSTARTTLS");
        }
        if self.tls || self.clear_text {
            text.push_str("\nAUTH PLAIN LOGIN");
        }
        Reply::hello(&text)
    }

    pub(super) fn start_tls(&mut self) -> Step {
        if self.tls {
            return self.reply(Reply::bad_sequence("TLS is active"));
        }
        if self.transaction.is_some() || self.proof == Proof::Password {
            return self.reply(Reply::bad_sequence("STARTTLS before AUTH and MAIL"));
        }
        Step::StartTls
    }

    pub(super) fn auth(&mut self, mechanism: &str, initial: Option<&str>) -> Step {
        if self.hello.is_none() {
            return self.reply(Reply::bad_sequence("EHLO first"));
        }
        if !self.tls && !self.clear_text {
            return self.reply(Reply::auth_needs_tls());
        }
        if self.proof == Proof::Password {
            return self.reply(Reply::bad_sequence("already authenticated"));
        }
        if self.transaction.is_some() {
            return self.reply(Reply::bad_sequence("AUTH before MAIL"));
        }
        match sasl::begin(mechanism, initial) {
            Some(progress) => self.progress(progress),
            None => self.reply(Reply::auth_unknown_mechanism()),
        }
    }

    pub(super) fn progress(&mut self, progress: Progress) -> Step {
        match progress {
            Progress::Challenge(exchange, challenge) => {
                self.phase = Phase::Exchange(exchange);
                Step::Reply(Reply::challenge(challenge))
            }
            Progress::Credentials { login, password } => self.ask(Pending::Login, Question::Login { login, password }),
            Progress::Malformed => self.reply(Reply::auth_malformed()),
            Progress::Cancelled => self.reply(Reply::auth_cancelled()),
            Progress::Invalid => self.reply(Reply::auth_failed()),
        }
    }
}
