//! The path behind `MAIL FROM:` and `RCPT TO:` (RFC 5321 section 4.1.2).

/// Splits `<path> parameters` into path and parameters; `None` where there is no such path.
pub(super) fn split(text: &str) -> Option<(&str, &str)> {
    let inner = text.trim_start_matches(' ').strip_prefix('<')?;
    let end = closing_bracket(inner)?;
    let rest = &inner[end + 1..];
    let apart = rest.is_empty() || rest.starts_with(' ');
    apart.then(|| (without_route(&inner[..end]), rest))
}

/// Position of the `>` that is not within a quoted local part.
fn closing_bracket(inner: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, octet) in inner.bytes().enumerate() {
        match octet {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'>' if !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

/// Source routes `@a,@b:` are ignored as RFC 5321 appendix C says.
fn without_route(path: &str) -> &str {
    match path.split_once(':') {
        Some((route, path)) if route.starts_with('@') => path,
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_path_and_parameters() {
        assert_eq!(split("<a@b>"), Some(("a@b", "")));
        assert_eq!(split(" <> SIZE=1"), Some(("", " SIZE=1")));
        assert_eq!(split(r#"<"a\">b"@c> X"#), Some((r#""a\">b"@c"#, " X")));
        assert_eq!(split("<@a,@b:c@d>"), Some(("c@d", "")));
        for wrong in ["a@b", "<a@b", "<a@b>SIZE=1", "", "<\"a>"] {
            assert_eq!(split(wrong), None, "{wrong}");
        }
    }
}
