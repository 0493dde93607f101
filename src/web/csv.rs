//! Users as CSV: `user,domain,password`. Pure: text in, rows and faults out.
//!
//! The file may begin with a byte order mark and with the header line; fields may be quoted; empty lines are
//! passed over. An empty user is the domain user, an IP address or range in the user column a network, whose
//! owner is the domain column. Spreadsheets run cells that begin with `= + - @`, a tab or a CR as formulas,
//! so export puts `'` before them, and import takes it away again.

use std::collections::BTreeMap;

use outgate_cluster::{DomainName, Login};

use super::password;

/// Columns in order; also the header line.
pub const COLUMNS: [&str; 3] = ["user", "domain", "password"];

const FORMULA_STARTS: [char; 6] = ['=', '+', '-', '@', '\t', '\r'];

/// A line that names a user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    pub line: u64,
    pub login: Login,
    /// The owner of a network.
    pub owner: Option<DomainName>,
    /// A password, or an argon2id hash in PHC form; `None` only for a network.
    pub password: Option<String>,
}

/// Why a line is not taken.
#[derive(serde::Serialize, Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    pub line: u64,
    /// `user`, `domain` or `password`.
    pub column: &'static str,
    pub reason: String,
}

/// The file as a whole is not CSV of three columns: nothing of it can be trusted.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum CsvError {
    #[error("line {0}: not UTF-8: save the file as UTF-8")]
    Encoding(u64),
    #[error("line {line}: {found} columns instead of user,domain,password: quote a field that holds a comma")]
    Columns { line: u64, found: usize },
    #[error("line {0}: a quote that is opened here is never closed")]
    Quote(u64),
    #[error("the file has more than {MAX_LINES} lines: split it")]
    TooManyLines,
}

/// Users in one file: as many as the replicated state takes in one import.
pub const MAX_LINES: usize = 1_000_000;

/// Reads a whole file; faults of single lines stand beside the rows that are fine.
pub fn parse(bytes: &[u8]) -> Result<(Vec<Row>, Vec<Fault>), CsvError> {
    let text = decode(bytes)?;
    let (mut rows, mut faults) = (Vec::new(), Vec::new());
    for (at, record) in records(text)?.into_iter().enumerate() {
        if at == 0 && is_header(&record.fields) {
            continue;
        }
        match row(&record) {
            Ok(row) => rows.push(row),
            Err(fault) => faults.push(fault),
        }
    }
    refuse_repeated(&mut rows, &mut faults);
    faults.sort_by_key(|fault| fault.line);
    Ok((rows, faults))
}

/// One user as a line of CSV without its end; the third column is the password hash.
pub fn line(login: &Login, owner: &DomainName, password_hash: Option<&str>) -> [String; 3] {
    let user = match login {
        Login::Mailbox { local, .. } => local.clone(),
        Login::Domain(_) => String::new(),
        Login::Network(network) => network.to_string(),
    };
    [escape(&user), escape(owner.as_str()), password_hash.unwrap_or_default().to_owned()]
}

/// Guards a cell against being run as a formula.
pub fn escape(cell: &str) -> String {
    if cell.starts_with(FORMULA_STARTS) || cell.starts_with('\'') { format!("'{cell}") } else { cell.to_owned() }
}

fn unescape(cell: &str) -> &str {
    match cell.strip_prefix('\'') {
        Some(rest) if rest.starts_with(FORMULA_STARTS) || rest.starts_with('\'') => rest,
        Some(_) | None => cell,
    }
}

struct Record {
    line: u64,
    fields: Vec<String>,
}

fn decode(bytes: &[u8]) -> Result<&str, CsvError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|error| CsvError::Encoding(lines_in(&bytes[..error.valid_up_to()]) + 1))
}

fn lines_in(bytes: &[u8]) -> u64 {
    bytes.iter().map(|&b| u64::from(b == b'\n')).sum()
}

fn records(text: &str) -> Result<Vec<Record>, CsvError> {
    if let Some(line) = unclosed_quote(text) {
        return Err(CsvError::Quote(line));
    }
    let mut reader = ::csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes());
    let mut records = Vec::new();
    for record in reader.records() {
        // The text is UTF-8 and in memory, and lengths may differ: nothing is left that could fail.
        let record = record.map_err(|_| CsvError::Encoding(0))?;
        let line = record.position().map_or(0, ::csv::Position::line);
        let fields: Vec<String> = record.iter().map(str::to_owned).collect();
        if fields.len() > COLUMNS.len() {
            return Err(CsvError::Columns { line, found: fields.len() });
        }
        if !fields.iter().all(String::is_empty) {
            records.push(Record { line, fields });
        }
        if records.len() > MAX_LINES {
            return Err(CsvError::TooManyLines);
        }
    }
    Ok(records)
}

/// Where a reader of quoted fields is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    FieldStart,
    Plain,
    Quoted,
    /// Behind a quote within a quoted field: its end, or the first half of a doubled quote.
    Quote,
}

/// The line of a quote that is never closed: the reader would take the rest of the file for one field.
fn unclosed_quote(text: &str) -> Option<u64> {
    let (mut at, mut line, mut opened) = (At::FieldStart, 1, 1);
    for byte in text.bytes() {
        at = match (at, byte) {
            (At::FieldStart, b'"') => {
                opened = line;
                At::Quoted
            }
            (At::Quote, b'"') => At::Quoted,
            (At::Quoted, b'"') => At::Quote,
            (At::Quoted, _) => At::Quoted,
            (At::FieldStart | At::Plain | At::Quote, b',' | b'\n' | b'\r') => At::FieldStart,
            (At::FieldStart | At::Plain | At::Quote, _) => At::Plain,
        };
        line += u64::from(byte == b'\n');
    }
    (at == At::Quoted).then_some(opened)
}

fn is_header(fields: &[String]) -> bool {
    fields.iter().zip(COLUMNS).all(|(field, column)| field.trim().eq_ignore_ascii_case(column)) && fields.len() >= 2
}

fn row(record: &Record) -> Result<Row, Fault> {
    let fault = |column, reason: String| Fault { line: record.line, column, reason };
    let field = |at: usize| record.fields.get(at).map_or("", String::as_str);
    let (user, domain, secret) = (unescape(field(0).trim()), unescape(field(1).trim()), field(2));
    if domain.is_empty() {
        return Err(fault("domain", "empty: every user belongs to a domain".to_owned()));
    }
    let domain = DomainName::new(domain).map_err(|error| fault("domain", error.to_string()))?;
    let login = login(user, &domain).map_err(|reason| fault("user", reason))?;
    let is_network = matches!(login, Login::Network(_));
    let password = (!secret.is_empty()).then(|| secret.to_owned());
    match &password {
        Some(given) => password::check(given).map_err(|error| fault("password", error.to_string()))?,
        None if is_network => {}
        None => return Err(fault("password", "empty: only a network may be without one".to_owned())),
    }
    Ok(Row { line: record.line, login, owner: is_network.then_some(domain), password })
}

/// The user column: nothing, a local part, a whole address of this domain, or a network.
fn login(user: &str, domain: &DomainName) -> Result<Login, String> {
    if user.is_empty() {
        return Ok(Login::Domain(domain.clone()));
    }
    let whole = if is_network(user) || user.contains('@') { user.to_owned() } else { format!("{user}@{domain}") };
    let login: Login = whole.parse().map_err(|error: outgate_cluster::NameError| error.to_string())?;
    match &login {
        Login::Mailbox { domain: own, .. } if own != domain => Err(format!("`{user}` is not in the domain {domain}")),
        Login::Domain(_) => Err(format!("`{user}` is not a local part, an address of {domain} or a network")),
        Login::Mailbox { .. } | Login::Network(_) => Ok(login),
    }
}

fn is_network(user: &str) -> bool {
    let address = user.split_once('/').map_or(user, |(address, _)| address);
    address.parse::<std::net::IpAddr>().is_ok()
}

/// Of equal logins only the first is taken.
fn refuse_repeated(rows: &mut Vec<Row>, faults: &mut Vec<Fault>) {
    let mut seen: BTreeMap<Login, u64> = BTreeMap::new();
    rows.retain(|row| match seen.get(&row.login) {
        None => {
            seen.insert(row.login.clone(), row.line);
            true
        }
        Some(first) => {
            let reason = format!("{} is in line {first} already", row.login);
            faults.push(Fault { line: row.line, column: "user", reason });
            false
        }
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]
    use super::*;

    fn logins(text: &str) -> Vec<String> {
        parse(text.as_bytes()).unwrap().0.iter().map(|row| row.login.to_string()).collect()
    }

    fn faults(text: &str) -> Vec<(u64, &'static str)> {
        parse(text.as_bytes()).unwrap().1.iter().map(|fault| (fault.line, fault.column)).collect()
    }

    #[test]
    fn every_kind_of_user_is_read() {
        let text = "\u{feff}User,Domain,Password\r\nalice,example.com,secret\r\n,example.com,secret\r\n\r\n192.0.2.1,example.com,\r\n\"2001:db8::/32\", example.com ,pw\r\nbob@example.com,example.com,\"a,\"\"b\"\"\"\r\n";
        assert_eq!(
            logins(text),
            ["alice@example.com", "example.com", "192.0.2.1/32", "2001:db8::/32", "bob@example.com"]
        );
        let (rows, faults) = parse(text.as_bytes()).unwrap();
        assert_eq!((faults, rows[4].password.as_deref(), rows[2].password.as_deref()), (vec![], Some("a,\"b\""), None));
        assert_eq!(rows[3].owner.as_ref().unwrap().as_str(), "example.com");
    }

    #[test]
    fn a_fault_names_line_and_column_and_spares_the_other_lines() {
        let text = "alice,example.com,pw\na b,example.com,pw\nbob,,pw\ncarol,example.com,\nalice@other.example,example.com,pw\n192.0.2.1/24,example.com,\nALICE,example.com,pw\ndave,example.com,$argon2id$x\neve\n";
        assert_eq!(logins(text), ["alice@example.com"]);
        assert_eq!(
            faults(text),
            [
                (2, "user"),
                (3, "domain"),
                (4, "password"),
                (5, "user"),
                (6, "user"),
                (7, "user"),
                (8, "password"),
                (9, "domain")
            ]
        );
    }

    #[test]
    fn a_broken_file_is_refused_as_a_whole() {
        assert_eq!(parse(b"a,example.com,x\nb,example.com,x,y\n"), Err(CsvError::Columns { line: 2, found: 4 }));
        assert_eq!(parse(b"a,example.com,x\n\"b,example.com,x\nc,example.com,x\n"), Err(CsvError::Quote(2)));
        assert_eq!(parse(b"a,example.com,x\nb,example.com,\xff\n"), Err(CsvError::Encoding(2)));
        assert_eq!(parse(b"a,example.com,x\nb,example.com,\"x\n"), Err(CsvError::Quote(2)));
    }

    #[test]
    fn an_apostrophe_guards_formulas_and_goes_away_again() {
        for cell in ["=a", "+a", "-a", "@a", "'a", "'=a", "a", ""] {
            let escaped = escape(cell);
            assert!(!escaped.starts_with(['=', '+', '-', '@']), "{cell}");
            assert_eq!(unescape(&escaped), cell);
        }
    }

    #[test]
    fn what_is_exported_is_imported_alike() {
        let domain = DomainName::new("example.com").unwrap();
        let hash = password::to_hash("secret").unwrap();
        for text in ["=cmd@example.com", "example.com", "192.0.2.0/24", "o'neil@example.com"] {
            let login: Login = text.parse().unwrap();
            let mut writer = ::csv::Writer::from_writer(Vec::new());
            writer.write_record(line(&login, &domain, Some(&hash))).unwrap();
            let (rows, faults) = parse(&writer.into_inner().unwrap()).unwrap();
            assert_eq!(faults, []);
            assert_eq!((&rows[0].login, rows[0].password.as_ref()), (&login, Some(&hash)));
            assert_eq!(password::to_hash(rows[0].password.as_ref().unwrap()).unwrap(), hash);
        }
    }
}
