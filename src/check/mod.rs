//! Checks: a message and the facts around it in, findings out. Pure: no clock, no I/O, no replicated state.
//!
//! One file a check, one finding a check. A finding says what was seen and what it weighs; it never says what is done
//! about it: that is policy's alone.
//!
//! Invariant: the work is linear in the size of the message, whatever it holds (ten thousand levels of MIME, a
//! hundred thousand parts or fields): walks stop at the first bound that is passed.
//!
//! Never here: settings, replies, the User.

pub mod date;
mod decode;
pub mod eicar;
pub mod from;
pub mod gtube;
mod mime;
pub mod size;
pub mod structure;

use std::fmt;

use crate::mail::Message;

pub use from::{HeaderFrom, header_from};
pub use structure::Fault;

/// What a check may know beside the message.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Seconds since the Unix epoch.
    pub now_s: i64,
    pub max_message_size: u64,
}

/// Every check, in the order in which they run.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Check {
    Authentication,
    SenderRules,
    /// All checks of the content together, where they failed.
    Content,
    Size,
    Structure,
    Date,
    Gtube,
    Eicar,
}

/// What a finding weighs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// For the log alone.
    Note,
    /// Adds to the spam score, in thousandths.
    Score(u16),
    Virus,
    /// The message cannot be taken, whatever else was found.
    Refuse(Refusal),
}

/// Why a message cannot be taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    TooLarge {
        limit: u64,
    },
    Structure(Fault),
    HeaderFrom,
    /// Not now: nobody could look into it.
    ScannerFailure,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    pub check: Check,
    pub effect: Effect,
    /// One line for the operator.
    pub text: String,
}

impl Check {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Authentication => "authentication",
            Self::SenderRules => "sender rules",
            Self::Content => "content",
            Self::Size => "size",
            Self::Structure => "structure",
            Self::Date => "date",
            Self::Gtube => "gtube",
            Self::Eicar => "eicar",
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.check.name(), self.text)
    }
}

/// Runs the checks of the content.
pub fn run(facts: &Facts, message: &Message) -> Vec<Finding> {
    if let Some(finding) = size::check(facts, message) {
        return vec![finding];
    }
    let parts = mime::walk(message);
    let decoded = decode::leaves(&parts);
    let findings = [
        structure::check(message, &parts),
        date::check(facts, message),
        gtube::check(message, &decoded),
        eicar::check(message, &decoded),
    ];
    findings.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests;
