//! Answers as table, JSON or CSV.

use std::io::Write;

use clap::ValueEnum;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde_json::Value;

use super::failure::Failure;
use crate::web::csv::escape;

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Output {
    Table,
    Json,
    Csv,
}

impl Output {
    /// A list of objects; `columns` are the keys that table and CSV show (`a.b` = `b` within `a`).
    pub(super) fn list(self, columns: &[&str], list: &Value) -> Result<(), Failure> {
        let rows: Vec<Vec<String>> = list.as_array().map_or_else(Vec::new, |list| {
            list.iter().map(|entry| columns.iter().map(|column| cell(at(entry, column))).collect()).collect()
        });
        match self {
            Self::Json => json(list),
            Self::Csv => csv(columns, &rows),
            Self::Table => print(&table(columns, rows)),
        }
    }

    /// One object; table and CSV show a line for each key.
    pub(super) fn one(self, object: &Value) -> Result<(), Failure> {
        let mut rows = Vec::new();
        flatten("", object, &mut rows);
        match self {
            Self::Json => json(object),
            Self::Csv => csv(&["key", "value"], &rows),
            Self::Table => print(&table(&["key", "value"], rows)),
        }
    }
}

impl Output {
    /// After a change: JSON tells what holds now, the other forms keep silent.
    pub(super) fn changed(self, now: &Value) -> Result<(), Failure> {
        match self {
            Self::Json if now.is_null() => json(&serde_json::json!({})),
            Self::Json => json(now),
            Self::Table | Self::Csv => Ok(()),
        }
    }
}

/// Writes to stdout; a reader that has gone away (`| head`) is no error.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    print_bytes(text.as_bytes())
}

pub(super) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("cannot write the answer: {error}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Beside the answer, on stderr.
pub(super) fn remark(text: &str) -> Result<(), Failure> {
    match writeln!(std::io::stderr(), "outgate: {text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::failed(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn json(value: &Value) -> Result<(), Failure> {
    print(&format!("{value:#}\n"))
}

fn csv(columns: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
    let failed = |error: ::csv::Error| Failure::failed(format!("cannot write CSV: {error}"));
    let mut writer = ::csv::Writer::from_writer(Vec::new());
    writer.write_record(columns).map_err(failed)?;
    for row in rows {
        writer.write_record(row.iter().map(|cell| escape(cell))).map_err(failed)?;
    }
    let bytes = writer.into_inner().map_err(|error| Failure::failed(format!("cannot write CSV: {error}")))?;
    print_bytes(&bytes)
}

fn table(columns: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(columns.iter().map(|column| column.to_uppercase()));
    for row in rows {
        table.add_row(row.into_iter().map(|cell| printable(&cell)));
    }
    let lines: Vec<_> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    format!("{}\n", lines.join("\n"))
}

/// Subjects and addresses come from strangers: no control character of theirs reaches the terminal, and none that shows
/// text in another order than it has. Line ends and tabs are what they are.
pub(super) fn printable(text: &str) -> String {
    let harmful = |c: char| (c.is_control() && !matches!(c, '\n' | '\t')) || is_bidi(c);
    text.replace("\r\n", "\n").chars().map(|c| if harmful(c) { '\u{fffd}' } else { c }).collect()
}

/// Embeddings, overrides and isolates of the bidirectional algorithm (UAX 9).
const fn is_bidi(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn at<'a>(entry: &'a Value, column: &str) -> &'a Value {
    column.split('.').fold(entry, |value, key| &value[key])
}

/// A value as one cell.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(cell).collect::<Vec<_>>().join(", "),
        Value::Object(object) => match (object.get("value"), object.get("from")) {
            (Some(value), Some(from)) => format!("{} ({})", cell(value), cell(from)),
            (Some(_), None) | (None, Some(_)) | (None, None) => {
                object.iter().map(|(key, value)| format!("{key}={}", cell(value))).collect::<Vec<_>>().join(" ")
            }
        },
    }
}

/// Objects within objects become keys with dots; lists of objects a row for each entry.
fn flatten(prefix: &str, value: &Value, rows: &mut Vec<Vec<String>>) {
    let Value::Object(object) = value else { return };
    for (key, value) in object {
        let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Value::Object(inner) if !inner.contains_key("from") => flatten(&key, value, rows),
            Value::Array(list) if list.iter().any(Value::is_object) => {
                rows.extend(list.iter().map(|entry| vec![key.clone(), cell(entry)]));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {
                rows.push(vec![key, cell(value)]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nested_values_become_readable_cells() {
        let mut rows = Vec::new();
        flatten(
            "",
            &json!({"login": "a", "lock": {"state": "unlocked"}, "settings": {"x": {"value": [1, 2], "from": "user"}}, "windows": [{"used": 1}]}),
            &mut rows,
        );
        rows.sort();
        assert_eq!(
            rows,
            [["lock.state", "unlocked"], ["login", "a"], ["settings.x", "1, 2 (user)"], ["windows", "used=1"]]
        );
    }

    #[test]
    fn a_table_shows_no_control_characters() {
        assert!(!table(&["subject"], vec![vec!["a\u{1b}[2Jb".to_owned()]]).contains('\u{1b}'));
        assert_eq!(printable("From: a\r\nTo: b\r\n\tc"), "From: a\nTo: b\n\tc", "line ends and tabs are shown as such");
        assert_eq!(printable("a\rb"), "a\u{fffd}b", "a bare CR would overwrite its line");
        for bidi in ['\u{202a}', '\u{202e}', '\u{2066}', '\u{2069}'] {
            assert_eq!(printable(&format!("a{bidi}b")), "a\u{fffd}b", "nothing is shown in another order");
        }
    }
}
