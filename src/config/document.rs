//! A configuration document whose values remember where they stand, so that a fault can name its line.

use std::collections::BTreeMap;
use std::path::Path;

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::schema::{self, Key, LISTS};

/// Values by section (`smtp`, `delivery.retry`, `listener.0`) and key, with the place of each.
#[derive(Default)]
pub(super) struct Document {
    pub(super) root: Table,
    /// Path of a value or of a table of a list to `file:line` or to the name of a variable.
    places: BTreeMap<String, String>,
    pub(super) faults: Vec<String>,
}

/// Reads TOML: syntax errors, unknown keys and wrong types become faults.
pub(super) fn read(file: &Path, text: &str) -> Document {
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader { file: file.display().to_string(), text, document: Document::default() };
    for error in &errors {
        let place = reader.place(error.span().map_or(0, |span| span.start));
        let message = error.message().replace('\n', ", ");
        reader.document.faults.push(format!("{place}: not TOML: {message}"));
    }
    if errors.is_empty() {
        let table = reader.table("", root.get_ref());
        reader.document.root = table;
    }
    reader.document
}

struct Reader<'a> {
    file: String,
    text: &'a str,
    document: Document,
}

impl Reader<'_> {
    fn place(&self, offset: usize) -> String {
        let end = offset.min(self.text.len());
        let line = self.text.as_bytes()[..end].iter().filter(|&&b| b == b'\n').count() + 1;
        format!("{}:{line}", self.file)
    }

    /// One table; what is wrong in it is left out and noted.
    fn table(&mut self, path: &str, table: &DeTable<'_>) -> Table {
        let mut values = Table::new();
        // In the order of the file, so that faults are.
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        for (name, value) in entries {
            let place = self.place(name.span().start);
            let name = name.get_ref().as_ref();
            if let Some(value) = self.entry(path, name, value, place) {
                values.insert(name.to_owned(), value);
            }
        }
        values
    }

    fn entry(&mut self, path: &str, name: &str, value: &Spanned<DeValue<'_>>, place: String) -> Option<Value> {
        let full = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        // Tables of a list are numbered in paths, not in the schema.
        let section = schema::list_of(path).unwrap_or(path);
        let list_of_tables = LISTS.iter().find(|(list, _)| *list == full);
        match (value.get_ref(), list_of_tables) {
            (DeValue::Array(list), Some((name, required))) => {
                let tables = list.iter().enumerate();
                return Some(Value::Array(
                    tables.filter_map(|(at, value)| self.listed(name, required, at, value)).collect(),
                ));
            }
            (DeValue::Table(table), None) if schema::is_section(&full) => {
                return Some(Value::Table(self.table(&full, table)));
            }
            _ => {}
        }
        let Some(key) = schema::find(section, name) else {
            self.document.faults.push(format!("{place}: {}", misplaced(section, name, &full)));
            return None;
        };
        let value = to_value(value.get_ref());
        self.document.places.insert(full.clone(), place);
        self.document.checked(key, &full, value)
    }

    /// One table of a list.
    fn listed(
        &mut self,
        list: &str,
        required: &[(&str, &str)],
        at: usize,
        value: &Spanned<DeValue<'_>>,
    ) -> Option<Value> {
        let (path, place) = (format!("{list}.{at}"), self.place(value.span().start));
        self.document.places.insert(path.clone(), place.clone());
        let DeValue::Table(table) = value.get_ref() else {
            self.document.faults.push(format!("{place}: {list}: write each one as [[{list}]]"));
            return None;
        };
        for (key, example) in required {
            if !table.iter().any(|(name, _)| name.get_ref() == key) {
                self.document.faults.push(format!("{place}: {list}.{key}: missing: add {key} = {example}"));
            }
        }
        Some(Value::Table(self.table(&path, table)))
    }
}

impl Document {
    /// Puts the value of an environment variable over the file's.
    pub(super) fn set(&mut self, key: &Key, text: &str) {
        let path = key.path();
        self.places.insert(path.clone(), key.variable());
        let Some(value) = self.checked(key, &path, key.kind.read(text)) else { return };
        let mut table = &mut self.root;
        for part in key.section.split('.') {
            let entry = table.entry(part.to_owned()).or_insert_with(|| Value::Table(Table::new()));
            let Value::Table(inner) = entry else { return };
            table = inner;
        }
        table.insert(key.name.to_owned(), value);
    }

    /// Where the value under `path` came from; the path itself where it is a default.
    pub(super) fn place(&self, path: &str) -> &str {
        self.places.get(path).map_or("default", String::as_str)
    }

    fn checked(&mut self, key: &Key, path: &str, value: Value) -> Option<Value> {
        let Some(fault) = key.kind.fault(&value) else { return Some(value) };
        let place = self.place(path);
        self.faults.push(format!("{place}: {}: {fault}: give {}", key.path(), key.kind.expects()));
        None
    }
}

/// The line for a key that is none.
fn misplaced(section: &str, name: &str, full: &str) -> String {
    if schema::is_section(full) {
        let form = if schema::list_of(full).is_some() { format!("[[{full}]]") } else { format!("[{full}]") };
        return format!("{full} is a section: write it as {form}");
    }
    let here = schema::names_in(section);
    let elsewhere = schema::KEYS.iter().find(|key| key.name == name);
    match (nearest(name, &here), elsewhere) {
        (Some(near), _) => format!("unknown key `{full}`: did you mean `{near}`?"),
        (None, Some(key)) => format!("unknown key `{full}`: `{name}` belongs into [{}]", key.section),
        (None, None) => format!("unknown key `{full}`: known here are {}", here.join(", ")),
    }
}

/// The name that is a few typing errors away, or that only its end sets apart.
pub(super) fn nearest<'a>(name: &str, names: &[&'a str]) -> Option<&'a str> {
    let alike = |known: &&&str| name.len() >= 4 && (name.starts_with(**known) || known.starts_with(name));
    if let Some(known) = names.iter().find(alike) {
        return Some(known);
    }
    let near = names.iter().map(|&known| (distance(name, known), known)).min()?;
    (near.0 <= 3 && near.0 * 2 <= near.1.len()).then_some(near.1)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn to_value(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.clone().into_owned()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| Value::String(number.as_str().to_owned()), Value::Integer),
        DeValue::Float(number) => {
            number.as_str().parse().map_or_else(|_| Value::String(number.as_str().to_owned()), Value::Float)
        }
        DeValue::Boolean(flag) => Value::Boolean(*flag),
        DeValue::Datetime(time) => Value::Datetime(*time),
        DeValue::Array(list) => Value::Array(list.iter().map(|value| to_value(value.get_ref())).collect()),
        DeValue::Table(table) => Value::Table(
            table.iter().map(|(name, value)| (name.get_ref().to_string(), to_value(value.get_ref()))).collect(),
        ),
    }
}
