//! Header fields that outgate writes: folded, ASCII, free of injection.

/// Octets after which a line is folded at the next space (RFC 5322 section 2.1.1).
const LINE_LENGTH: usize = 76;
/// Octets at which a word without spaces is cut in two.
const WORD_LENGTH_MAX: usize = 900;

/// Writes `name: value` with folds and CRLF.
pub(super) fn append_field(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    out.push(b':');
    let mut length = name.len() + 1;
    for word in printable(value).split(' ').filter(|word| !word.is_empty()) {
        for piece in word.as_bytes().chunks(WORD_LENGTH_MAX) {
            if length + 1 + piece.len() > LINE_LENGTH && length > name.len() + 1 {
                out.extend_from_slice(b"\r\n\t");
                length = 1;
            } else {
                out.push(b' ');
                length += 1;
            }
            out.extend_from_slice(piece);
            length += piece.len();
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Control characters as spaces, everything outside of ASCII as `?`.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() {
                ' '
            } else if c.is_ascii() {
                c
            } else {
                '?'
            }
        })
        .collect()
}
