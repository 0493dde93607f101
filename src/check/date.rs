//! A Date field that is far off, or none at all. A note: a client with a wrong clock must not lose its mail.

use mail_parser::DateTime;

use super::{Check, Effect, Facts, Finding};
use crate::mail::Message;

const OFF_MAX_S: u64 = 7 * 24 * 3600;
/// Longer values are no date.
const LENGTH_MAX: usize = 256;

pub(super) fn check(facts: &Facts, message: &Message) -> Option<Finding> {
    let field = message.named("Date").next()?;
    let value = if field.value.len() <= LENGTH_MAX { field.text() } else { String::new() };
    let text = match DateTime::parse_rfc822(&format!("{value}\n")).filter(DateTime::is_valid) {
        None => "the Date field cannot be read".to_owned(),
        Some(date) => {
            let off_s = date.to_timestamp().abs_diff(facts.now_s);
            if off_s <= OFF_MAX_S {
                return None;
            }
            format!("the Date field is off by {} days", off_s / (24 * 3600))
        }
    };
    Some(Finding { check: Check::Date, effect: Effect::Note, text })
}
