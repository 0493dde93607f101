//! Input of strangers within our own lines: short, and without anything that a terminal obeys.

use std::fmt::Display;

/// Characters of an input that are shown.
const SHOWN_MAX: usize = 60;
/// Characters of a whole line; of a longer one the middle is left out.
const LINE_MAX: usize = 400;
const LINE_HEAD: usize = 120;
const LINE_TAIL: usize = 250;

/// The beginning of an input, control characters escaped.
pub fn excerpt(input: &str) -> String {
    let mut shown = escaped(input.chars().take(SHOWN_MAX));
    if input.chars().nth(SHOWN_MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// An error that repeats `input`, with its excerpt instead.
pub fn about(error: impl Display, input: &str) -> String {
    let text = error.to_string();
    if input.is_empty() { text } else { text.replace(input, &excerpt(input)) }
}

/// A line for stderr or for an answer, whatever it repeats.
pub fn line(text: &str) -> String {
    let length = text.chars().count();
    if length <= LINE_MAX {
        return escaped(text.chars());
    }
    let (head, tail) = (text.chars().take(LINE_HEAD), text.chars().skip(length - LINE_TAIL));
    format!("{} … {}", escaped(head), escaped(tail))
}

fn escaped(text: impl Iterator<Item = char>) -> String {
    let mut shown = String::new();
    for c in text {
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_repeated_is_short_and_harmless() {
        assert_eq!(excerpt("a\u{1b}[2J\nb"), "a\\u{1b}[2J\\nb");
        assert_eq!(excerpt(&"ü".repeat(61)), format!("{}…", "ü".repeat(60)));
        assert_eq!(about("`a\tb` is wrong", "a\tb"), "`a\\tb` is wrong");
        assert_eq!(about("nothing is wrong", ""), "nothing is wrong");
        let long = line(&format!("`{}\u{7}` is not a login", "x".repeat(10_000_000)));
        assert!(long.len() < 500 && long.ends_with("\\u{7}` is not a login"), "{long}");
    }
}
