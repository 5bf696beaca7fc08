//! Address spaces: threadgroup variables, the objects of methods, and pointers without one.

use std::fmt::Write;

use super::{Complaint, Dialect, Rewriter, SPACES};
use crate::lex::{Kind, Token};

impl Rewriter<'_> {
    /// `threadgroup T a[N], b;` in a kernel. Pointers into threadgroup memory are left alone.
    pub(super) fn threadgroup_variable(&mut self, at: usize) -> usize {
        let mut names = Vec::new(); // Name and end of each declarator.
        let mut i = at + 1;
        let mut name = None;
        loop {
            let Some(token) = self.tokens.get(i) else { return at + 1 };
            match token.text {
                "*" | "&" | "(" | ")" | "=" | "{" | "}" | ">" => return at + 1,
                "<" => {
                    let end = self.tokens.skip_angles(i);
                    if end == i {
                        return at + 1;
                    }
                    i = end;
                    continue;
                }
                "[" => {
                    let Some(n) = name else { return at + 1 };
                    let mut end = i;
                    while self.tokens.is(end, "[") {
                        end = self.tokens.skip_group(end);
                    }
                    names.push((n, end));
                    name = None;
                    i = end;
                    continue;
                }
                "," | ";" => {
                    if let Some(n) = name.take() {
                        names.push((n, i));
                    }
                    if token.text == ";" {
                        break;
                    }
                }
                _ if token.kind == Kind::Identifier => name = Some(i),
                _ => {}
            }
            i += 1;
        }
        let Some(&(first, _)) = names.first() else { return at + 1 };
        let ty = self.tokens.spell(at, first);
        let mut out = String::new();
        for (name, end) in names {
            let (id, dims, name) = (self.statics, self.tokens.spell(name + 1, end), self.tokens[name].text);
            self.statics += 1;
            if self.dialect != Dialect::OpenCl {
                let _ = write!(out, "__shared__ {ty} {name} {dims}; ");
                continue;
            }
            let _ = write!(
                out,
                "{ty} (&{name}){dims} = *({ty} (*){dims})__msl_static<{id}, sizeof({ty} {dims})>(__msl_t); "
            );
        }
        self.edit(at, i + 1, out);
        i + 1
    }

    /// Objects of Metal's methods are in thread memory unless the method says otherwise; C++ for OpenCL would take them
    /// for generic, and their members would not do where a `thread` reference is wanted.
    pub(super) fn methods(&mut self, class: usize) {
        let stop = |t: &Token<'_>| matches!(t.text, "{" | ";" | "(" | ")" | "=" | "*" | "&" | ">" | ",");
        let Some(open) = self.tokens.iter().skip(class).position(stop).map(|n| class + n) else { return };
        if !self.tokens.is(open, "{") {
            return;
        }
        let end = self.tokens.skip_group(open) - 1;
        let mut start = open + 1; // Of a member.
        let mut at = start;
        while at < end {
            match self.tokens[at].text {
                ";" | "}" => start = at + 1,
                ":" => {}
                "{" => {
                    at = self.tokens.skip_group(at);
                    // The body of a function has no semicolon. What goes on behind a brace is an initialiser.
                    if !self.tokens.get(at).is_some_and(|t| matches!(t.text, ";" | "," | "{")) {
                        start = at;
                    }
                    continue;
                }
                "<" => {
                    at = self.tokens.skip_angles(at).max(at + 1);
                    continue;
                }
                "(" => {
                    let close = self.tokens.skip_group(at);
                    if self.is_method(start, at) {
                        let last = if self.tokens.is(close, "const") { close } else { close - 1 };
                        let next = self.tokens.get(last + 1).map_or("", |t| t.text);
                        if matches!(next, "{" | ";" | ":") {
                            self.insert_after(last, " __private".into());
                        }
                        // Nothing up to the body is another parameter list.
                        at = close;
                        while at < end && !matches!(self.tokens[at].text, "{" | ";") {
                            at = if self.tokens.is(at, "(") { self.tokens.skip_group(at) } else { at + 1 };
                        }
                        continue;
                    }
                    at = close;
                    continue;
                }
                _ => {}
            }
            at += 1;
        }
    }

    /// The parenthesis at `open` begins the parameters of a member function whose declaration begins at `start`.
    fn is_method(&self, start: usize, open: usize) -> bool {
        let before = open.checked_sub(1).map_or("", |i| self.tokens[i].text);
        let words = self.tokens[start.min(open)..open].iter().map(|t| t.text);
        let plain =
            !matches!(before, "__attribute__" | "alignas" | "decltype" | "static_assert" | "operator" | "sizeof");
        let mut words = words.peekable();
        plain
            && words.peek().is_some()
            && !words.any(|w| matches!(w, "static" | "friend" | "using" | "typedef" | "=" | "~"))
    }

    /// `float f() const device { ... }`: there the word is a plain qualifier, not a type's.
    pub(super) fn is_method_qualifier(&self, at: usize) -> bool {
        let before = at.checked_sub(1).map_or("", |i| self.tokens[i].text);
        let after = self.tokens.get(at + 1).map_or("", |t| t.text);
        (before == ")" || (before == "const" && at > 1 && self.tokens.is(at - 2, ")")))
            && matches!(after, "{" | ";" | "const" | "=")
    }

    /// Metal wants an address space in each pointer and reference. C++ for OpenCL would take one without for generic.
    pub(super) fn check_qualified(&self, at: usize) -> Result<(), Complaint> {
        let mut end = at + 1;
        let name = self.tokens[at].text;
        if !(self.types.contains(name) || self.plain_types.contains(name)) {
            return Ok(());
        }
        if self.tokens.is(end, "<") {
            end = self.tokens.skip_angles(end);
        }
        while self.tokens.is(end, "const") {
            end += 1;
        }
        let Some(sign) = self.tokens.get(end).filter(|t| t.text == "*" || t.text == "&") else { return Ok(()) };
        let before = self.tokens[..at].iter().rev().take_while(|t| t.kind == Kind::Identifier || t.text == "::");
        let after = self.tokens[at..end].iter();
        if before.chain(after).any(|t| SPACES.contains(&t.text)) {
            return Ok(());
        }
        let what = if sign.text == "*" { "pointer" } else { "reference" };
        let hint = "device, constant, threadgroup or thread";
        Err((sign.line, format!("a {what} to `{name}` has no address space: write {hint} before the type")))
    }
}
