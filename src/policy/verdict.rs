//! All findings of a message → one class and one score.

use outgate_cluster::Class;
use outgate_cluster::state::settings::Settings;

use crate::check::{Effect, Finding, Refusal};

const SCORE_MAX: u16 = 1000;

/// From which score on a message is unsure or spam, in thousandths.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bands {
    pub unsure: u64,
    pub spam: u64,
}

/// The sum of the findings. Only [`super::intent`] says what follows from it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    pub class: Class,
    /// In thousandths.
    pub score: u16,
    /// The first refusal, where there is one.
    pub refusal: Option<Refusal>,
}

impl From<&Settings> for Bands {
    fn from(settings: &Settings) -> Self {
        Self { unsure: settings.unsure_score, spam: settings.spam_score }
    }
}

/// Scores add up to 1.0 at most. A virus outweighs everything, a refusal outweighs a score.
pub fn judge(findings: &[Finding], bands: Bands) -> Verdict {
    let (mut score, mut virus, mut refusal) = (0u16, false, None);
    for finding in findings {
        match &finding.effect {
            Effect::Note => {}
            Effect::Score(more) => score = score.saturating_add(*more).min(SCORE_MAX),
            Effect::Virus => virus = true,
            Effect::Refuse(why) => refusal = refusal.or_else(|| Some(why.clone())),
        }
    }
    let class = if virus { Class::Virus } else { class(refusal.as_ref(), score, bands) };
    Verdict { class, score, refusal }
}

fn class(refusal: Option<&Refusal>, score: u16, bands: Bands) -> Class {
    match refusal {
        Some(Refusal::TooLarge { .. }) => Class::Oversize,
        Some(Refusal::Structure(_) | Refusal::HeaderFrom | Refusal::ScannerFailure) => Class::Blocked,
        None if u64::from(score) >= bands.spam => Class::Spam,
        None if u64::from(score) >= bands.unsure => Class::Unsure,
        None => Class::Clean,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Check, Fault};

    const BANDS: Bands = Bands { unsure: 500, spam: 900 };

    fn judged(effects: &[Effect]) -> (Class, u16) {
        let finding = |effect: &Effect| Finding { check: Check::Gtube, effect: effect.clone(), text: String::new() };
        let findings: Vec<_> = effects.iter().map(finding).collect();
        let verdict = judge(&findings, BANDS);
        (verdict.class, verdict.score)
    }

    #[test]
    fn findings_add_up() {
        let fault = Effect::Refuse(Refusal::Structure(Fault::Partial));
        let large = Effect::Refuse(Refusal::TooLarge { limit: 1 });
        for (effects, expected) in [
            (vec![], (Class::Clean, 0)),
            (vec![Effect::Note], (Class::Clean, 0)),
            (vec![Effect::Score(499)], (Class::Clean, 499)),
            (vec![Effect::Score(500)], (Class::Unsure, 500)),
            (vec![Effect::Score(400), Effect::Score(499)], (Class::Unsure, 899)),
            (vec![Effect::Score(400), Effect::Score(500)], (Class::Spam, 900)),
            (vec![Effect::Score(1000), Effect::Score(1000)], (Class::Spam, 1000)),
            (vec![Effect::Score(1000), Effect::Virus], (Class::Virus, 1000)),
            (vec![fault.clone(), Effect::Virus], (Class::Virus, 0)),
            (vec![fault.clone(), Effect::Score(1000)], (Class::Blocked, 1000)),
            (vec![large.clone(), fault], (Class::Oversize, 0)),
            (vec![Effect::Refuse(Refusal::HeaderFrom), large], (Class::Blocked, 0)),
        ] {
            assert_eq!(judged(&effects), expected, "{effects:?}");
        }
    }
}
