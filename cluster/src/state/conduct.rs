//! How a User or identity has behaved lately: what it sent, how its messages were judged, and
//! whether that is abuse.
//!
//! Strikes are single messages of the classes spam, phish and virus, kept with their message ids
//! as evidence. Scores of all judged messages are kept for the mean rules in windows of 10
//! minutes, an hour and a day, of 20 buckets each with the oldest counted fully.
//!
//! Bounds: 100 strikes per class (no rule can ask for more), 21 buckets per score window.
//! Strikes and scores are dropped when they have led to a lock, so that the same messages do not
//! lock again after it.

use serde::{Deserialize, Serialize};

use super::meter::{Counter, Meter};
use super::settings::Settings;
use crate::command::{Class, LockCause};
use crate::name::Timestamp;

const MINUTE: u64 = 60_000;
const STRIKES_PER_CLASS_MAX: usize = 100;
/// Message ids in a [`crate::LockChange`].
const EVIDENCE_MAX: usize = 20;
const VIRUS_MINUTES: u64 = 1_440;
const SPAN_MINUTES: [u32; 3] = [10, 60, 1_440];
const SPAN_BUCKETS: u64 = 20;
/// Messages in one bucket of scores; more change a mean no longer.
const BUCKET_COUNT_MAX: u32 = 4_000_000;
const SCORE_MAX: u16 = 1_000;

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
pub(super) struct Conduct {
    pub(super) meter: Meter,
    scores: Vec<ScoreBucket>,
    strikes: Vec<Strike>,
}

/// A message as the rules look at it.
#[derive(Clone, Copy)]
pub(super) struct Judged<'a> {
    pub(super) class: Class,
    /// Thousandths.
    pub(super) score: u16,
    pub(super) message: &'a str,
}

/// Abuse that was found, with the messages that prove it, newest last.
pub(super) struct Abuse {
    pub(super) cause: LockCause,
    pub(super) messages: Vec<String>,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Debug)]
struct ScoreBucket {
    /// Position in [`SPAN_MINUTES`].
    span: u8,
    number: u32,
    count: u32,
    sum: u32,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
struct Strike {
    at: Timestamp,
    class: Class,
    message: Box<str>,
}

impl Conduct {
    pub(super) fn is_empty(&self) -> bool {
        self.meter.is_empty() && self.scores.is_empty() && self.strikes.is_empty()
    }

    /// Forgets what led to a lock.
    pub(super) fn forgive(&mut self) {
        self.strikes = Vec::new();
        self.scores = Vec::new();
        self.meter.clear(Counter::Invalid);
    }

    /// Records the message and says whether it is one too many.
    pub(super) fn judge(&mut self, at: Timestamp, judged: Judged<'_>, rules: &Settings) -> Option<Abuse> {
        self.add_score(at, judged.score.min(SCORE_MAX));
        self.by_class(at, judged, rules).or_else(|| self.by_mean(at, judged, rules))
    }

    fn by_class(&mut self, at: Timestamp, judged: Judged<'_>, rules: &Settings) -> Option<Abuse> {
        let (count, minutes) = match judged.class {
            Class::Virus => (rules.abuse_virus_count, VIRUS_MINUTES),
            Class::Phish => (rules.abuse_phish_count, rules.abuse_phish_minutes),
            Class::Spam => (rules.abuse_spam_count, rules.abuse_spam_minutes),
            Class::Clean | Class::Unsure | Class::Blocked | Class::Locked | Class::Limit | Class::Oversize => {
                return None;
            }
        };
        let kept = |strike: &Strike| strike.class != judged.class || at.millis_since(strike.at) <= minutes * MINUTE;
        self.strikes.retain(kept);
        if self.strikes.iter().filter(|strike| strike.class == judged.class).count() >= STRIKES_PER_CLASS_MAX
            && let Some(oldest) = self.strikes.iter().position(|strike| strike.class == judged.class)
        {
            self.strikes.remove(oldest);
        }
        self.strikes.push(Strike { at, class: judged.class, message: judged.message.into() });
        let found = self.strikes.iter().filter(|strike| strike.class == judged.class).count();
        let found = u32::try_from(found).unwrap_or(u32::MAX);
        if count == 0 || u64::from(found) < count {
            return None;
        }
        let minutes = u32::try_from(minutes).unwrap_or(u32::MAX);
        let cause = match judged.class {
            Class::Virus => LockCause::Virus,
            Class::Phish => LockCause::Phish { count: found, minutes },
            Class::Spam
            | Class::Clean
            | Class::Unsure
            | Class::Blocked
            | Class::Locked
            | Class::Limit
            | Class::Oversize => LockCause::Spam { count: found, minutes },
        };
        Some(Abuse { cause, messages: self.evidence(Some(judged.class)) })
    }

    fn by_mean(&self, at: Timestamp, judged: Judged<'_>, rules: &Settings) -> Option<Abuse> {
        let thresholds = [rules.abuse_mean_10_minutes, rules.abuse_mean_hour, rules.abuse_mean_day];
        for ((span, minutes), threshold) in SPAN_MINUTES.into_iter().enumerate().zip(thresholds) {
            let (count, sum) = self.scores_within(at, span);
            if threshold > 0 && count > 0 && count >= rules.abuse_mean_messages && sum >= threshold * count {
                let mean = u16::try_from(sum / count).unwrap_or(SCORE_MAX);
                let count = u32::try_from(count).unwrap_or(u32::MAX);
                let mut messages = self.evidence(None);
                if messages.last().is_none_or(|last| last != judged.message) {
                    messages.push(judged.message.to_owned());
                }
                messages.drain(..messages.len().saturating_sub(EVIDENCE_MAX));
                return Some(Abuse { cause: LockCause::MeanScore { mean, count, minutes }, messages });
            }
        }
        None
    }

    fn evidence(&self, class: Option<Class>) -> Vec<String> {
        let mine = self.strikes.iter().filter(|strike| class.is_none_or(|class| strike.class == class));
        let mut messages: Vec<String> =
            mine.rev().take(EVIDENCE_MAX).map(|strike| strike.message.to_string()).collect();
        messages.reverse();
        messages
    }

    fn add_score(&mut self, at: Timestamp, score: u16) {
        let now = score_buckets(at);
        let mut missing = [true; SPAN_MINUTES.len()];
        self.scores.retain_mut(|bucket| {
            let span = usize::from(bucket.span);
            let age = now[span].saturating_sub(bucket.number);
            if age == 0 {
                missing[span] = false;
                if bucket.count < BUCKET_COUNT_MAX {
                    bucket.count += 1;
                    bucket.sum += u32::from(score);
                }
            }
            u64::from(age) <= SPAN_BUCKETS
        });
        for ((span, missing), number) in (0_u8..).zip(missing).zip(now) {
            if missing {
                if self.scores.len() == self.scores.capacity() {
                    self.scores.reserve_exact(SPAN_MINUTES.len());
                }
                self.scores.push(ScoreBucket { span, number, count: 1, sum: u32::from(score) });
            }
        }
    }

    /// Count and sum of a window's scores.
    fn scores_within(&self, at: Timestamp, span: usize) -> (u64, u64) {
        let now = score_buckets(at)[span];
        let mine = self.scores.iter().filter(|bucket| usize::from(bucket.span) == span);
        let live = mine.filter(|bucket| u64::from(now.saturating_sub(bucket.number)) <= SPAN_BUCKETS);
        live.fold((0, 0), |(count, sum), bucket| (count + u64::from(bucket.count), sum + u64::from(bucket.sum)))
    }
}

/// The number of the present bucket, per span. Saturates in the year 6000.
fn score_buckets(at: Timestamp) -> [u32; 3] {
    SPAN_MINUTES.map(|minutes| u32::try_from(at.0 / (u64::from(minutes) * MINUTE / SPAN_BUCKETS)).unwrap_or(u32::MAX))
}
