//! Plays `tests/dialogs/*.smtp`.
//!
//! `#` begins a comment. The first line that is none may hold `? tls`, `? clear_text`, `? network` for the kind of
//! connection. `C: ` is a line of the client, which gets a CRLF; `C+ ` is sent without one, with `\r \n \0 \\` as in C.
//! Client lines that follow each other are sent at once. `S: ` is a line of the server, where a final `*` stands for
//! any rest; what the server says between two lines of the client must be exactly the lines given. `S! ` at the end
//! says that the server closes.

use std::fs;
use std::path::Path;

use super::driver::{Driver, rules};

fn unescape(text: &str) -> Vec<u8> {
    let mut octets = Vec::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let plain = match c {
            '\\' => match chars.next() {
                Some('r') => '\r',
                Some('n') => '\n',
                Some('0') => '\0',
                Some('\\') => '\\',
                other => panic!("unknown escape {other:?} in {text}"),
            },
            _ => c,
        };
        octets.extend_from_slice(plain.encode_utf8(&mut [0; 4]).as_bytes());
    }
    octets
}

fn fits(pattern: &str, line: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == line, |start| line.starts_with(start))
}

fn play(file: &Path, text: &str) {
    let option =
        |name: &str| text.lines().any(|line| line.strip_prefix("? ").is_some_and(|given| given.contains(name)));
    let mut driver = Driver::with(rules(), option("tls"), option("clear_text"));
    if option("network") {
        driver.session.network_user();
    }
    driver.said.push(driver.session.greeting().wire().trim_end().to_owned());
    let (mut at, mut sending) = (0, Vec::new());
    for (number, line) in text.lines().enumerate() {
        let place = format!("{}:{}", file.display(), number + 1);
        let (kind, rest) = line.split_at_checked(2).unwrap_or((line, ""));
        let rest = rest.strip_prefix(' ').unwrap_or(rest);
        match kind {
            "C:" => sending.extend([unescape(rest), b"\r\n".to_vec()].concat()),
            "C+" => sending.extend(unescape(rest)),
            "S:" => {
                driver.give(&std::mem::take(&mut sending));
                let said = driver.said.get(at).unwrap_or_else(|| panic!("{place}: the server is silent"));
                assert!(fits(rest, said), "{place}: {said}");
                at += 1;
            }
            "S!" => {
                driver.give(&std::mem::take(&mut sending));
                assert!(driver.closed, "{place}: still open");
            }
            "# " | "? " | "#" | "" => {}
            _ => panic!("{place}: what is {line}?"),
        }
        if kind.starts_with('C') {
            assert_eq!(driver.said.get(at), None, "{place}: the server has said more");
        }
    }
    assert!(sending.is_empty(), "{}: ends with the client", file.display());
    assert_eq!(driver.said.get(at), None, "{}: the server has said more", file.display());
}

#[test]
fn dialogues_go_as_written() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dialogs");
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 10, "{files:?}");
    files.iter().for_each(|file| play(file, &fs::read_to_string(file).unwrap()));
}
