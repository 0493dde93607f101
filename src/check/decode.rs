//! The content of parts behind base64 and quoted-printable, read as leniently as the laxest receiver does.

use super::mime::{Encoding, Parts};

/// The decoded bytes of every part that was encoded, each at most as long as it was before.
pub(super) fn leaves(parts: &Parts<'_>) -> Vec<Vec<u8>> {
    let decode = |leaf: &super::mime::Leaf<'_>| match leaf.encoding {
        Encoding::Identity => None,
        Encoding::Base64 => Some(base64(leaf.bytes)),
        Encoding::QuotedPrintable => Some(quoted_printable(leaf.bytes)),
    };
    parts.leaves.iter().filter_map(decode).collect()
}

/// Ignores everything outside of the alphabet, padding included (RFC 2045 section 6.8).
fn base64(encoded: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(encoded.len() / 4 * 3 + 3);
    let (mut group, mut digits) = (0u32, 0u8);
    for value in encoded.iter().filter_map(|&byte| base64_digit(byte)) {
        group = group << 6 | u32::from(value);
        digits += 1;
        if digits == 4 {
            decoded.extend_from_slice(&group.to_be_bytes()[1..]);
            (group, digits) = (0, 0);
        }
    }
    let rest = (group << (6 * (4 - u32::from(digits)))).to_be_bytes();
    decoded.extend_from_slice(&rest[1..1 + usize::from(digits.saturating_sub(1))]);
    decoded
}

const fn base64_digit(byte: u8) -> Option<u8> {
    match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

/// RFC 2045 section 6.7; what is no valid escape stays as it is.
fn quoted_printable(encoded: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(encoded.len());
    let mut rest = encoded;
    while let Some(at) = memchr::memchr(b'=', rest) {
        decoded.extend_from_slice(&rest[..at]);
        rest = &rest[at + 1..];
        match rest {
            [b'\r', b'\n', tail @ ..] => rest = tail,
            [high, low, tail @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                decoded.push(hex_digit(*high) << 4 | hex_digit(*low));
                rest = tail;
            }
            _ => decoded.push(b'='),
        }
    }
    decoded.extend_from_slice(rest);
    decoded
}

const fn hex_digit(byte: u8) -> u8 {
    match byte {
        b'0'..=b'9' => byte - b'0',
        b'a'..=b'f' => byte - b'a' + 10,
        _ => byte - b'A' + 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_whatever_a_receiver_would() {
        assert_eq!(base64(b"aGVs\r\nbG8="), b"hello");
        assert_eq!(base64(b"a G!V s b G 8"), b"hello");
        assert_eq!(base64(b"aGVsbA"), b"hell");
        assert_eq!(base64(b"a"), b"");
        assert_eq!(quoted_printable(b"a=3Db=\r\nc=zz=4"), b"a=bc=zz=4");
    }
}
