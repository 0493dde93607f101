//! EICAR, the string that every virus scanner must call a virus, in the body or in any decoded attachment.

use memchr::memmem;

use super::{Check, Effect, Finding};
use crate::mail::Message;

/// In two pieces, or scanners would object to this very file.
const EICAR: &[u8] = concat!(r"X5O!P%@AP[4\PZX54(P^)7CC)7}$EI", "CAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*").as_bytes();

pub(super) fn check(message: &Message, decoded: &[Vec<u8>]) -> Option<Finding> {
    let finder = memmem::Finder::new(EICAR);
    let found = finder.find(message.body()).is_some() || decoded.iter().any(|bytes| finder.find(bytes).is_some());
    let text = "the EICAR virus test file".to_owned();
    found.then_some(Finding { check: Check::Eicar, effect: Effect::Virus, text })
}
