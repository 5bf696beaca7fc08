//! The tokens of preprocessed kernel text.

/// What a token is; spelling decides the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Identifier,
    Number,
    /// A string or character literal.
    Literal,
    /// One character, or `::` or `->`. `>>` is two tokens, so that template lists balance.
    Punctuation,
}

/// A token: its bytes in the text and the line of the file that it came from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token<'a> {
    pub(crate) kind: Kind,
    pub(crate) text: &'a str,
    pub(crate) start: usize,
    pub(crate) line: u32,
}

impl Token<'_> {
    pub(crate) fn end(&self) -> usize {
        self.start + self.text.len()
    }
}

/// Splits preprocessor output, which has no comments. Line markers (`# 12 "file"`) set the line; other directives are skipped.
pub(crate) fn tokens(text: &str) -> Vec<Token<'_>> {
    let bytes = text.as_bytes();
    let mut out = Vec::new();
    let (mut at, mut line, mut line_start) = (0, 1, true);
    while at < bytes.len() {
        let start = at;
        let byte = bytes[at];
        if byte == b'\n' {
            (line, line_start) = (line + 1, true);
            at += 1;
            continue;
        }
        if byte.is_ascii_whitespace() {
            at += 1;
            continue;
        }
        if byte == b'#' && line_start {
            let end = text[at..].find('\n').map_or(bytes.len(), |n| at + n);
            if let Some(number) = marker(&text[at..end]) {
                // The newline that ends the marker adds one.
                line = number.wrapping_sub(1);
            }
            at = end;
            continue;
        }
        line_start = false;
        let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_' || c >= 0x80;
        let kind = if byte == b'"' || byte == b'\'' {
            at += 1;
            while at < bytes.len() && bytes[at] != byte && bytes[at] != b'\n' {
                at += if bytes[at] == b'\\' { 2 } else { 1 };
            }
            at = (at + 1).min(bytes.len());
            Kind::Literal
        } else if byte.is_ascii_digit() || (byte == b'.' && bytes.get(at + 1).is_some_and(u8::is_ascii_digit)) {
            at += 1;
            while at < bytes.len()
                && (word(bytes[at])
                    || bytes[at] == b'.'
                    || (matches!(bytes[at], b'+' | b'-') && matches!(bytes[at - 1], b'e' | b'E' | b'p' | b'P')))
            {
                at += 1;
            }
            Kind::Number
        } else if word(byte) {
            while at < bytes.len() && word(bytes[at]) {
                at += 1;
            }
            Kind::Identifier
        } else {
            at += if text[at..].starts_with("::") || text[at..].starts_with("->") { 2 } else { 1 };
            Kind::Punctuation
        };
        // An escape at the very end may have stepped past it or into a character.
        while !text.is_char_boundary(at.min(bytes.len())) {
            at += 1;
        }
        at = at.min(bytes.len());
        out.push(Token { kind, text: &text[start..at], start, line });
    }
    out
}

/// The line number of a line marker, `# 12 "file" 2` or `#line 12`.
pub(crate) fn marker(directive: &str) -> Option<u32> {
    let rest = directive.strip_prefix('#')?.trim_start();
    rest.strip_prefix("line").unwrap_or(rest).split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_numbers_and_lines() {
        let text = "# 7 \"k\"\nfloat x = 1.5e-3f; // no\n#pragma unroll\n\"a\\\"b\" a->b::c >> 0x1p-2f";
        let all: Vec<_> = tokens(text).iter().map(|t| (t.text, t.line)).collect();
        assert_eq!(&all[..5], &[("float", 7), ("x", 7), ("=", 7), ("1.5e-3f", 7), (";", 7)]);
        let tail: Vec<_> = all[8..].iter().map(|t| t.0).collect();
        assert_eq!(tail, ["\"a\\\"b\"", "a", "->", "b", "::", "c", ">", ">", "0x1p-2f"]);
        assert!(all[8..].iter().all(|t| t.1 == 9));
    }

    #[test]
    fn unfinished_literals_do_not_panic() {
        for text in ["\"abc", "'\\", "\"\\é", "é\"", "1.", "#", "# x"] {
            tokens(text);
        }
    }
}
