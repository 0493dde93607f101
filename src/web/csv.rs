//! Users as CSV: `user,domain,password`. Pure: text in, rows and faults out.
//!
//! The file may begin with a byte order mark and with the header line; fields may be quoted; empty lines are
//! passed over. A line that cannot be read is a fault of that line alone; a line is numbered as an editor does it. An empty user is the domain user, an IP address or range in the user column a network, whose
//! owner is the domain column. Spreadsheets run cells that begin with `= + - @`, a tab or a CR as formulas,
//! so export puts `'` before them, and import takes it away again.

use std::collections::BTreeMap;

use outgate_cluster::{DomainName, Login};

use super::echo::{about, excerpt};
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

/// Nothing of the file is taken.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum CsvError {
    #[error("the file has more than {MAX_LINES} lines: split it")]
    TooManyLines,
}

/// Users in one file: as many as the replicated state takes in one import.
pub const MAX_LINES: usize = 1_000_000;

/// Reads a whole file; faults of single lines stand beside the rows that are fine.
pub fn parse(bytes: &[u8]) -> Result<(Vec<Row>, Vec<Fault>), CsvError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let (mut rows, mut faults) = (Vec::new(), Vec::new());
    let (records, unclosed) = records(bytes)?;
    faults.extend(unclosed);
    for (at, record) in records.into_iter().enumerate() {
        if at == 0 && record.is_header() {
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

/// One line, or several where a quoted field holds line ends.
#[derive(Default)]
struct Record {
    /// Where it begins.
    line: u64,
    /// How many fields there are; only those that have a column are kept.
    width: usize,
    fields: Vec<Vec<u8>>,
}

impl Record {
    fn push(&mut self, field: Vec<u8>) {
        self.width += 1;
        if self.fields.len() < COLUMNS.len() {
            self.fields.push(field);
        }
    }

    fn is_header(&self) -> bool {
        let fits = |(field, column): (&Vec<u8>, &str)| field.trim_ascii().eq_ignore_ascii_case(column.as_bytes());
        (2..=COLUMNS.len()).contains(&self.width) && self.fields.iter().zip(COLUMNS).all(fits)
    }

    fn field(&self, at: usize) -> Result<&str, Fault> {
        let bytes = self.fields.get(at).map_or(&b""[..], Vec::as_slice);
        std::str::from_utf8(bytes).map_err(|_| self.fault(COLUMNS[at], "not UTF-8: save the file as UTF-8"))
    }

    fn fault(&self, column: &'static str, reason: impl Into<String>) -> Fault {
        Fault { line: self.line, column, reason: reason.into() }
    }
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

/// Splits at line ends (LF, CRLF or CR) and commas that are not within quotes. A quote without end takes all that follows
/// it with it: what stands before its line is read, and the quote is the fault beside.
fn records(bytes: &[u8]) -> Result<(Vec<Record>, Option<Fault>), CsvError> {
    let (mut at, mut line, mut opened) = (At::FieldStart, 1, 1);
    let (mut records, mut field) = (Vec::new(), Vec::new());
    let mut record = Record { line, ..Record::default() };
    let mut rest = bytes.iter().copied().chain(unended(bytes)).peekable();
    while let Some(byte) = rest.next() {
        let line_ends = byte == b'\n' || (byte == b'\r' && rest.peek() != Some(&b'\n'));
        line += u64::from(line_ends);
        at = match (at, byte) {
            (At::FieldStart, b'"') => {
                opened = line;
                At::Quoted
            }
            (At::Quoted, b'"') => At::Quote,
            (At::Quoted, _) => {
                field.push(byte);
                At::Quoted
            }
            (At::Quote, b'"') => {
                field.push(byte);
                At::Quoted
            }
            (At::FieldStart | At::Plain | At::Quote, b',') => {
                record.push(std::mem::take(&mut field));
                At::FieldStart
            }
            (At::FieldStart | At::Plain | At::Quote, b'\r' | b'\n') if line_ends => {
                if at != At::FieldStart || record.width > 0 {
                    record.push(std::mem::take(&mut field));
                    records.push(std::mem::take(&mut record));
                }
                if records.len() > MAX_LINES {
                    return Err(CsvError::TooManyLines);
                }
                record.line = line;
                At::FieldStart
            }
            // The CR of a CRLF.
            (At::FieldStart | At::Plain | At::Quote, b'\r') => at,
            (At::FieldStart | At::Plain | At::Quote, _) => {
                field.push(byte);
                At::Plain
            }
        };
    }
    let unclosed = (at == At::Quoted).then(|| Fault {
        line: opened,
        column: COLUMNS[record.width.min(COLUMNS.len() - 1)],
        reason: "a quote that is opened here is never closed: no line from here on is taken".to_owned(),
    });
    Ok((records, unclosed))
}

/// The line end that the last line lacks.
fn unended(bytes: &[u8]) -> Option<u8> {
    (!bytes.ends_with(b"\n") && !bytes.ends_with(b"\r")).then_some(b'\n')
}

fn row(record: &Record) -> Result<Row, Fault> {
    if record.width > COLUMNS.len() {
        let reason = "columns instead of user,domain,password: quote a field that holds a comma";
        return Err(record.fault("password", format!("{} {reason}", record.width)));
    }
    let (user, domain, secret) = (record.field(0)?.trim(), record.field(1)?.trim(), record.field(2)?);
    let (user, domain) = (unescape(user), unescape(domain));
    if domain.is_empty() {
        return Err(record.fault("domain", "empty: every user belongs to a domain"));
    }
    let domain = DomainName::new(domain).map_err(|error| record.fault("domain", about(error, domain)))?;
    let login = login(user, &domain).map_err(|reason| record.fault("user", reason))?;
    let is_network = matches!(login, Login::Network(_));
    let password = (!secret.is_empty()).then(|| secret.to_owned());
    match &password {
        Some(given) => password::check(given).map_err(|error| record.fault("password", error.to_string()))?,
        None if is_network => {}
        None => return Err(record.fault("password", "empty: only a network may be without one")),
    }
    Ok(Row { line: record.line, login, owner: is_network.then_some(domain), password })
}

/// The user column: nothing, a local part, a whole address of this domain, or a network.
fn login(user: &str, domain: &DomainName) -> Result<Login, String> {
    if user.is_empty() {
        return Ok(Login::Domain(domain.clone()));
    }
    if looks_like_network(user) && !is_network(user) {
        let user = excerpt(user);
        return Err(format!("`{user}` is no IP address or range; if it is a mailbox, write {user}@{domain}"));
    }
    let whole = if is_network(user) || user.contains('@') { user.to_owned() } else { format!("{user}@{domain}") };
    let login: Login = whole.parse().map_err(|error: outgate_cluster::NameError| about(error, &whole))?;
    match &login {
        Login::Mailbox { domain: own, .. } if own != domain => {
            Err(format!("`{}` is not in the domain {domain}", excerpt(user)))
        }
        Login::Domain(_) => {
            Err(format!("`{}` is not a local part, an address of {domain} or a network", excerpt(user)))
        }
        Login::Mailbox { .. } | Login::Network(_) => Ok(login),
    }
}

fn is_network(user: &str) -> bool {
    let address = user.split_once('/').map_or(user, |(address, _)| address);
    address.parse::<std::net::IpAddr>().is_ok()
}

/// Digits in groups, with or without a prefix length: who writes that means no mailbox.
fn looks_like_network(user: &str) -> bool {
    let address = user.split_once('/').map_or(user, |(address, _)| address);
    let is_v6 = address.contains(':');
    let fits = |c: char| c == '.' || c == ':' || c.is_ascii_digit() || (is_v6 && c.is_ascii_hexdigit());
    (is_v6 || address.contains('.')) && address.chars().all(fits)
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
    fn what_looks_like_an_address_and_is_none_is_no_mailbox() {
        for user in ["300.1.2.3/24", "300.1.2.3", "10.0.0/8", "192.0.2.", "fe80:::1"] {
            let (rows, faults) = parse(format!("{user},demo.test,\n").as_bytes()).unwrap();
            assert!(rows.is_empty() && faults.len() == 1, "{user}");
            let Fault { column, reason, .. } = &faults[0];
            assert!(*column == "user" && reason.contains("no IP address or range"), "{user}: {reason}");
        }
        let text = "12345,demo.test,pw\na.1,demo.test,pw\n12.34@demo.test,demo.test,pw\n";
        assert_eq!(logins(text), ["12345@demo.test", "a.1@demo.test", "12.34@demo.test"]);
    }

    #[test]
    fn a_line_has_the_number_that_an_editor_shows() {
        let bad = "bad one,demo.test,pw";
        for (text, line) in [
            (format!("ok1,demo.test,pw\n\n{bad}\nlast,demo.test,pw"), 3),
            (format!("user,domain,password\nok1,demo.test,pw\n\n{bad}\n"), 4),
            (format!("ok1,demo.test,pw\r\n{bad}\r\n"), 2),
            (format!("ok1,demo.test,pw\r{bad}\r"), 2),
            (format!("\n\n\n{bad}\n"), 4),
            (format!("a,demo.test,\"p\r\nw\"\n{bad}"), 3),
        ] {
            assert_eq!(faults(&text), [(line, "user")], "{text:?}");
        }
    }

    #[test]
    fn a_line_that_cannot_be_read_spares_the_others() {
        let text = b"a,demo.test,x\nb,demo.test,x,y,z\nc\nd,demo.test\ne\xfc,demo.test,x\nf,demo.test,\xe4\n,,\n\"\"\ng,demo.test,x\n";
        let (rows, faults) = parse(text).unwrap();
        assert_eq!(rows.iter().map(|row| row.line).collect::<Vec<_>>(), [1, 9]);
        let found: Vec<_> = faults.iter().map(|fault| (fault.line, fault.column)).collect();
        let (domain, password) = ("domain", "password");
        assert_eq!(
            found,
            [(2, password), (3, domain), (4, password), (5, "user"), (6, password), (7, domain), (8, domain)]
        );
        assert!(faults[0].reason.starts_with("5 columns") && faults[3].reason.contains("UTF-8"), "{faults:?}");
    }

    #[test]
    fn a_quote_without_end_spares_what_stands_before_it() {
        for (text, column) in [
            ("a,example.com,x\n\"b,example.com,x\nc,example.com,x\n", "user"),
            ("a,example.com,x\r\nb,\"example.com,x\r\n", "domain"),
            ("a,example.com,x\r\nb,example.com,\"x\r\n", "password"),
            ("a,example.com,x\nb,example.com,x,\"y\n", "password"),
        ] {
            assert_eq!((logins(text), faults(text)), (vec!["a@example.com".to_owned()], vec![(2, column)]), "{text:?}");
        }
    }

    #[test]
    fn a_fault_repeats_little_of_a_cell_and_no_control_character() {
        let text = format!("{0}\x1b[2J,demo.test,pw\na,{0},pw\n\"b\nc\",demo.test,pw\n", "x".repeat(100_000));
        let (_, faults) = parse(text.as_bytes()).unwrap();
        assert_eq!(faults.len(), 3);
        for fault in faults {
            assert!(fault.reason.len() < 300 && !fault.reason.contains(char::is_control), "{fault:?}");
        }
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
