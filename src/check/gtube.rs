//! GTUBE, the string that every spam filter must call spam, so that an operator can try the whole path.

use memchr::memmem;

use super::{Check, Effect, Finding};
use crate::mail::Message;

const GTUBE: &[u8] = b"XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X";
const SCORE: u16 = 1000;

pub(super) fn check(message: &Message, decoded: &[Vec<u8>]) -> Option<Finding> {
    let finder = memmem::Finder::new(GTUBE);
    let found = finder.find(message.body()).is_some() || decoded.iter().any(|bytes| finder.find(bytes).is_some());
    let text = "the body holds the spam test string".to_owned();
    found.then_some(Finding { check: Check::Gtube, effect: Effect::Score(SCORE), text })
}
