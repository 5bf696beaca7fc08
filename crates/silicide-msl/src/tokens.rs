//! Walks over tokens: brackets, template lists, attributes.

use crate::lex::{Kind, Token};
use crate::rewrite::Complaint;

/// All tokens of a text.
pub(crate) struct Tokens<'a>(pub(crate) Vec<Token<'a>>);

/// One attribute of a `[[...]]` group.
pub(crate) struct Attribute<'a> {
    pub(crate) name: &'a str,
    /// Token range within the parentheses.
    pub(crate) arguments: (usize, usize),
}

impl<'a> std::ops::Deref for Tokens<'a> {
    type Target = [Token<'a>];

    fn deref(&self) -> &[Token<'a>] {
        &self.0
    }
}

impl<'a> Tokens<'a> {
    pub(crate) fn is(&self, at: usize, text: &str) -> bool {
        self.0.get(at).is_some_and(|t| t.text == text)
    }

    pub(crate) fn line(&self, at: usize) -> u32 {
        self.0.get(at).or(self.0.last()).map_or(1, |t| t.line)
    }

    /// The tokens as text, spaced.
    pub(crate) fn spell(&self, from: usize, to: usize) -> String {
        let mut out = String::new();
        for token in &self.0[from..to] {
            if !out.is_empty() {
                out.push(' ');
            }
            out.push_str(token.text);
        }
        out
    }

    /// The index after the bracket that closes the one at `at`; `at + 1` where there is none.
    pub(crate) fn skip_group(&self, at: usize) -> usize {
        let mut depth = 0usize;
        for (i, token) in self.0.iter().enumerate().skip(at) {
            match token.text {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        return i + 1;
                    }
                }
                _ => {}
            }
        }
        (at + 1).min(self.0.len())
    }

    /// The index after the `>` that closes the `<` at `at`, or `at` if this is no template list.
    pub(crate) fn skip_angles(&self, at: usize) -> usize {
        let mut depth = 0usize;
        let mut i = at;
        while i < self.0.len() {
            match self.0[i].text {
                "<" => depth += 1,
                ">" => {
                    depth -= 1;
                    if depth == 0 {
                        return i + 1;
                    }
                }
                "(" | "[" => {
                    i = self.skip_group(i);
                    continue;
                }
                ";" | "{" | "}" | ")" | "]" => return at,
                _ => {}
            }
            i += 1;
        }
        at
    }

    /// The attributes of `[[...]]` groups from `at` on, and the index after them.
    pub(crate) fn attributes(&self, mut at: usize) -> Result<(Vec<Attribute<'a>>, usize), Complaint> {
        let mut all = Vec::new();
        while self.is(at, "[") && self.is(at + 1, "[") {
            let end = self.skip_group(at);
            let mut i = at + 2;
            while i + 2 < end {
                let name = self.0[i];
                i += 1;
                while self.is(i, "::") {
                    i += 2;
                }
                let mut arguments = (i, i);
                if self.is(i, "(") {
                    let close = self.skip_group(i);
                    arguments = (i + 1, close - 1);
                    i = close;
                }
                if name.kind == Kind::Identifier {
                    all.push(Attribute { name: name.text, arguments });
                }
                if self.is(i, ",") {
                    i += 1;
                }
            }
            if end <= at + 2 {
                return Err((self.line(at), "an attribute is not closed".into()));
            }
            at = end;
        }
        Ok((all, at))
    }

    /// The number in an attribute such as `buffer(3)`.
    pub(crate) fn number(&self, attribute: &Attribute<'_>) -> Option<u32> {
        let (from, to) = attribute.arguments;
        (to == from + 1).then(|| self.0[from].text.trim_end_matches(['u', 'U']).parse().ok())?
    }
}
