//! The real size against the User's `max_message_size`.

use super::{Check, Effect, Facts, Finding, Refusal};
use crate::mail::Message;

pub(super) fn check(facts: &Facts, message: &Message) -> Option<Finding> {
    let (size, limit) = (message.size() as u64, facts.max_message_size);
    let text = format!("{size} octets, {limit} are allowed");
    let finding = Finding { check: Check::Size, effect: Effect::Refuse(Refusal::TooLarge { limit }), text };
    (size > limit).then_some(finding)
}
