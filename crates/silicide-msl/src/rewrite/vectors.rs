//! Vector constructors and casts become calls of the shim.

use std::collections::HashSet;

use super::{Rewriter, SPACES};
use crate::lex::{Kind, Token};

impl Rewriter<'_> {
    /// The end of a vector type's name that begins at `at`, qualified or with template arguments; `None` if it is none.
    fn vector_type(&self, at: usize) -> Option<usize> {
        let mut end = at;
        while self.tokens.get(end)?.kind == Kind::Identifier && self.tokens.is(end + 1, "::") {
            end += 2;
        }
        let name = self.tokens.get(end)?.text;
        if !self.types.contains(name) {
            return None;
        }
        end += 1;
        if self.tokens.is(end, "<") {
            let after = self.tokens.skip_angles(end);
            return (after > end).then_some(after);
        }
        (name != "vec").then_some(end)
    }

    /// `float4(...)` where a value is meant.
    pub(super) fn constructor(&mut self, at: usize) -> usize {
        let before = at.checked_sub(1).map_or("", |i| self.tokens[i].text);
        let Some(end) = self.vector_type(at).filter(|_| !matches!(before, "operator" | "::" | "." | "->" | "~")) else {
            return at + 1;
        };
        if !self.tokens.is(end, "(") {
            return end;
        }
        // `T (&a)[4]` and `T (*f)(int)` declare.
        let close = self.tokens.skip_group(end);
        let declares = (self.tokens.is(end + 1, "&") || self.tokens.is(end + 1, "*"))
            && close == end + 4
            && (self.tokens.is(close, "[") || self.tokens.is(close, "("));
        if !declares {
            let ty = self.tokens.spell(at, end);
            self.edit(at, end, format!("__msl_make<{ty}>"));
        }
        end
    }

    pub(super) fn static_cast(&mut self, at: usize) -> usize {
        if let Some(end) =
            self.vector_type(at + 2).filter(|&end| self.tokens.is(at + 1, "<") && self.tokens.is(end, ">"))
        {
            self.edit(at, at + 1, "__msl_convert".into());
            return end;
        }
        at + 1
    }

    /// `(float4)x`.
    pub(super) fn c_cast(&mut self, at: usize) -> usize {
        let Some(end) = self.vector_type(at + 1).filter(|&end| self.tokens.is(end, ")")) else { return at + 1 };
        let before = at.checked_sub(1).map(|i| self.tokens[i]);
        let after = self.tokens.get(end + 1);
        let expression = after.is_some_and(|t| {
            matches!(t.kind, Kind::Identifier | Kind::Number) && !SPACES.contains(&t.text) && t.text != "const"
                || matches!(t.text, "(" | "-" | "*" | "+")
        });
        let operand = before
            .is_some_and(|t| (t.kind == Kind::Identifier && t.text != "return") || matches!(t.text, ")" | "]" | ">"));
        if expression && !operand {
            let ty = self.tokens.spell(at + 1, end);
            self.edit(at, end + 1, format!("__msl_cast<{ty}>() ->* "));
        }
        end + 1
    }
}

/// Type names that stand for no vector: scalars and structs.
pub(super) fn plain_types<'a>(tokens: &[Token<'a>]) -> HashSet<&'a str> {
    const SCALARS: [&str; 17] = [
        "void",
        "bool",
        "char",
        "uchar",
        "short",
        "ushort",
        "int",
        "uint",
        "long",
        "ulong",
        "half",
        "bfloat",
        "float",
        "size_t",
        "unsigned",
        "signed",
        "ptrdiff_t",
    ];
    let declared = tokens
        .windows(2)
        .filter(|w| matches!(w[0].text, "struct" | "class" | "union") && w[1].kind == Kind::Identifier);
    SCALARS.into_iter().chain(declared.map(|w| w[1].text)).collect()
}

/// Names that may stand for a vector type: vector types, type parameters and aliases.
pub(super) fn type_names<'a>(tokens: &[Token<'a>]) -> HashSet<&'a str> {
    let mut names: HashSet<&str> = HashSet::from(["vec"]);
    for element in ["char", "uchar", "short", "ushort", "int", "uint", "long", "ulong", "half", "bfloat", "float"] {
        names.extend(tokens.iter().map(|t| t.text).filter(|text| {
            let text = text.strip_prefix("packed_").unwrap_or(text);
            text.strip_prefix(element).is_some_and(|n| matches!(n, "2" | "3" | "4"))
        }));
    }
    for window in tokens.windows(4) {
        let [before, word, name, after] = [window[0].text, window[1].text, window[2].text, window[3].text];
        let parameter =
            matches!(before, "<" | ",") && matches!(word, "typename" | "class") && matches!(after, ">" | "," | "=");
        if parameter || (word == "using" && after == "=") {
            names.insert(name);
        }
    }
    let mut i = 0;
    while i < tokens.len() {
        if tokens[i].text == "typedef" {
            while i < tokens.len() && tokens[i].text != ";" {
                i += 1;
            }
            if i < tokens.len() && tokens[i - 1].kind == Kind::Identifier {
                names.insert(tokens[i - 1].text);
            }
        }
        i += 1;
    }
    names
}
