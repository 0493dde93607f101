//! Changes of settings, and the values that a level has of its own.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::table::{Settings, TABLE, find};
use super::value::Value;

/// Changes of settings by key; `None` = `inherit` from the level above.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
pub struct Patch(pub Vec<(String, Option<Value>)>);

/// A setting as it holds for a User, with the level that set it.
#[derive(Clone, Debug)]
pub struct Effective {
    pub key: &'static str,
    pub value: Value,
    /// `cluster`, `domain` or `user`.
    pub from: &'static str,
}

/// At which level a patch is meant to be used: some settings exist only for the cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    Cluster,
    Domain,
    User,
}

#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum SettingError {
    #[error("`{0}` is not a setting: `outgate settings show` lists them")]
    Unknown(String),
    #[error("{key}: `{given}` does not fit: give {expected}")]
    Value { key: &'static str, given: String, expected: String },
    #[error("{0} is a setting of the cluster: use `outgate settings set`")]
    ClusterOnly(&'static str),
    #[error("{0} is a setting of a whole domain: use `outgate domain set`")]
    DomainOnly(&'static str),
    #[error("`{0}` is not KEY=VALUE")]
    NoValue(String),
}

/// The values that one level has of its own; nothing for what it inherits. Rows in rising order.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Overrides(Vec<(usize, Value)>);

impl Patch {
    /// Reads `KEY=VALUE` texts as the CLI, CSV and API give them; `VALUE` may be `inherit`.
    /// Lists are separated by commas; `identification_headers` is JSON.
    pub fn parse(pairs: &[impl AsRef<str>], level: Level) -> Result<Self, SettingError> {
        pairs.iter().map(|pair| parse_pair(pair.as_ref(), level)).collect::<Result<_, _>>().map(Self)
    }

    /// The first fault that keeps the patch from being used at `level`.
    pub(crate) fn check(&self, level: Level) -> Result<(), SettingError> {
        for (key, value) in &self.0 {
            let row = row_at(key, level)?;
            if let Some(value) = value.as_ref().filter(|value| !TABLE[row].kind.fits(value)) {
                return Err(misfit(row, value.to_json().to_string()));
            }
        }
        Ok(())
    }
}

fn parse_pair(pair: &str, level: Level) -> Result<(String, Option<Value>), SettingError> {
    let (key, text) = pair.split_once('=').ok_or_else(|| SettingError::NoValue(pair.to_owned()))?;
    let (key, text) = (key.trim(), text.trim());
    let row = row_at(key, level)?;
    if text == "inherit" {
        return Ok((key.to_owned(), None));
    }
    match TABLE[row].kind.parse(text) {
        Some(value) => Ok((key.to_owned(), Some(value))),
        None => Err(misfit(row, text.to_owned())),
    }
}

fn row_at(key: &str, level: Level) -> Result<usize, SettingError> {
    let row = find(key).ok_or_else(|| SettingError::Unknown(key.to_owned()))?;
    let entry = &TABLE[row];
    match entry.lowest {
        Level::Cluster if level > Level::Cluster => Err(SettingError::ClusterOnly(entry.key)),
        Level::Domain if level > Level::Domain => Err(SettingError::DomainOnly(entry.key)),
        Level::Cluster | Level::Domain | Level::User => Ok(row),
    }
}

fn misfit(row: usize, given: String) -> SettingError {
    SettingError::Value { key: TABLE[row].key, given, expected: TABLE[row].kind.expects() }
}

impl Overrides {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes over a patch that was checked; keys without a row are skipped.
    pub(crate) fn change(&mut self, patch: Patch) {
        for (key, value) in patch.0 {
            let Some(row) = find(&key) else { continue };
            match (self.0.binary_search_by_key(&row, |(row, _)| *row), value) {
                (Ok(place), Some(value)) => self.0[place].1 = value,
                (Ok(place), None) => drop(self.0.remove(place)),
                (Err(place), Some(value)) => self.0.insert(place, (row, value)),
                (Err(_), None) => {}
            }
        }
        self.0.shrink_to_fit();
    }

    /// These values over those of the level above.
    pub(crate) fn over(&self, above: &Settings) -> Settings {
        let mut settings = above.clone();
        for (row, value) in &self.0 {
            (TABLE[*row].set)(&mut settings, value);
        }
        settings
    }

    fn has(&self, row: usize) -> bool {
        self.0.binary_search_by_key(&row, |(row, _)| *row).is_ok()
    }
}

impl Effective {
    /// All rows that `level` may set, as they hold in `settings`; the levels' own values tell where each comes from.
    pub(crate) fn list(settings: &Settings, level: Level, domain: &Overrides, user: &Overrides) -> Vec<Self> {
        let origin = |row| match (user.has(row), domain.has(row)) {
            (true, _) => "user",
            (false, true) => "domain",
            (false, false) => "cluster",
        };
        let rows = TABLE.iter().enumerate().filter(|(_, entry)| entry.lowest >= level);
        rows.map(|(row, entry)| Self { key: entry.key, value: (entry.get)(settings), from: origin(row) }).collect()
    }
}

impl Serialize for Overrides {
    /// By key, so that the table may be sorted anew without a change of the format.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|(row, value)| (TABLE[*row].key, value)))
    }
}

impl<'de> Deserialize<'de> for Overrides {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let values = Vec::<(String, Value)>::deserialize(deserializer)?;
        let mut overrides = Self::default();
        overrides.change(Patch(values.into_iter().map(|(key, value)| (key, Some(value))).collect()));
        Ok(overrides)
    }
}
