//! `KEY=VALUE` arguments.

use serde_json::{Map, Value};

use super::failure::Failure;
use crate::web::echo::excerpt;

/// Splits `KEY=VALUE`; the value may be empty and may hold further `=`.
fn split(pair: &str) -> Result<(String, String), Failure> {
    match pair.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        Some(_) | None => Err(Failure::wrong(format!("`{}` is not KEY=VALUE", excerpt(pair)))),
    }
}

/// The `settings` object of a request. A key that is given twice is a mistake.
pub(super) fn settings(pairs: &[String]) -> Result<Map<String, Value>, Failure> {
    let mut settings = Map::new();
    for pair in pairs {
        let (key, value) = split(pair)?;
        if settings.contains_key(&key) {
            return Err(Failure::wrong(format!("{} is given twice", excerpt(&key))));
        }
        settings.insert(key, Value::String(value));
    }
    Ok(settings)
}

/// Takes the `names` out of the settings into fields of their own.
pub(super) fn with_fields(pairs: &[String], names: &[&str]) -> Result<Map<String, Value>, Failure> {
    let mut settings = settings(pairs)?;
    let mut body = Map::new();
    for name in names {
        if let Some(value) = settings.remove(*name) {
            body.insert((*name).to_owned(), value);
        }
    }
    body.insert("settings".to_owned(), Value::Object(settings));
    Ok(body)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn values_keep_their_equal_signs_and_keys_come_once() {
        let given = |pairs: &[&str]| settings(&pairs.iter().map(|pair| (*pair).to_owned()).collect::<Vec<_>>());
        assert_eq!(
            given(&["a=b=c", "d="]).unwrap(),
            serde_json::json!({"a": "b=c", "d": ""}).as_object().unwrap().clone()
        );
        for wrong in [&["a"][..], &["=b"], &["a=1", "a=2"]] {
            assert_eq!(given(wrong).unwrap_err().code(), 2);
        }
    }
}
