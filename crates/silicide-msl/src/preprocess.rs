//! Expands the macros of a kernel source where there is no clang to do it.
//!
//! What kernel sources use of the C preprocessor: object-like and function-like macros, variadic ones, `#`, `##`,
//! conditions on whether a macro is defined. Lines stay where they are.

use std::collections::HashMap;

use crate::lex::{Kind, marker, tokens};
use crate::rewrite::Complaint;

/// A token apart from the text that it came from.
#[derive(Clone, Debug, PartialEq)]
struct Word {
    text: String,
    kind: Kind,
    /// White space comes before it.
    space: bool,
}

struct Macro {
    /// None for an object-like macro.
    parameters: Option<Vec<String>>,
    variadic: bool,
    body: Vec<Word>,
}

/// Expands `source`, before whose first line `defines` stand.
pub(crate) fn preprocess(source: &str, defines: &str) -> Result<String, Complaint> {
    let mut preprocessor = Preprocessor { macros: HashMap::new(), out: String::with_capacity(source.len() * 2) };
    preprocessor.run(defines)?;
    preprocessor.out.clear();
    preprocessor.run(source)?;
    Ok(preprocessor.out)
}

struct Preprocessor {
    macros: HashMap<String, Macro>,
    out: String,
}

impl Preprocessor {
    fn run(&mut self, source: &str) -> Result<(), Complaint> {
        let text = without_comments(source);
        // Whether each open condition holds, and whether any branch of it has.
        let mut conditions: Vec<(bool, bool)> = Vec::new();
        let (mut pending, mut number) = (String::new(), 0);
        let mut lines = text.split('\n').peekable();
        while let Some(line) = lines.next() {
            number += 1;
            let live = conditions.iter().all(|(holds, _)| *holds);
            let Some(directive) = line.trim_start().strip_prefix('#') else {
                pending.push_str(if live { line } else { "" });
                pending.push('\n');
                continue;
            };
            self.flush(&mut pending);
            let (mut directive, mut ends) = (directive.trim().to_owned(), 1);
            while directive.ends_with('\\') {
                directive.pop();
                directive.push_str(lines.next().unwrap_or_default());
                ends += 1;
            }
            let at = number;
            number += ends - 1;
            let (name, rest) =
                directive.split_at(directive.find(|c: char| !c.is_alphabetic()).unwrap_or(directive.len()));
            let rest = rest.trim();
            let complaint = |message: String| Err((at as u32, message));
            match name {
                "ifdef" | "ifndef" => {
                    let holds = live && (self.macros.contains_key(rest) == (name == "ifdef"));
                    conditions.push((holds, holds || !live));
                }
                "else" | "endif" => {
                    let Some((_, had)) = conditions.pop() else { return complaint(format!("#{name} without #ifdef")) };
                    if name == "else" {
                        conditions.push((!had, true));
                    }
                }
                _ if !live => {}
                "define" => self.define(rest).or_else(complaint)?,
                "undef" => drop(self.macros.remove(rest)),
                "pragma" => self.out.push_str(line),
                // The Metal headers are the shim.
                "include" if rest.starts_with("<metal_") || rest.starts_with("<simd/") => {}
                "error" => return complaint(format!("#error {rest}")),
                "line" | "" => match marker(line.trim_start()) {
                    Some(line) => number = line as usize - 1,
                    None => return complaint(format!("line marker {line:?} is not understood")),
                },
                _ => return complaint(format!("#{name} is not supported")),
            }
            if matches!(name, "line" | "") {
                self.out.push_str(line.trim_start());
            }
            self.out.extend(std::iter::repeat_n('\n', ends));
        }
        match conditions.is_empty() {
            true => {
                // The last line has no newline.
                pending.pop();
                self.flush(&mut pending);
                Ok(())
            }
            false => Err((number as u32, "a condition is not closed by #endif".into())),
        }
    }

    fn define(&mut self, text: &str) -> Result<(), String> {
        let words = words(text);
        let [name, rest @ ..] = &words[..] else { return Err("#define without a name".into()) };
        let (mut parameters, mut variadic, mut body) = (None, false, rest);
        if let [open, rest @ ..] = rest
            && open.text == "("
            && !open.space
        {
            let close = rest.iter().position(|w| w.text == ")").ok_or("a macro's parameters are not closed")?;
            let names = rest[..close].iter().filter(|w| w.text != ",").map(|w| w.text.clone());
            // `...` is three tokens.
            let mut names: Vec<String> = names.collect();
            variadic = names.iter().any(|n| n == ".");
            names.retain(|n| n != ".");
            if variadic {
                names.push("__VA_ARGS__".into());
            }
            (parameters, body) = (Some(names), &rest[close + 1..]);
        }
        self.macros.insert(name.text.clone(), Macro { parameters, variadic, body: body.to_vec() });
        Ok(())
    }

    /// Writes a run of lines without directives, expanded.
    fn flush(&mut self, pending: &mut String) {
        let text = std::mem::take(pending);
        let tokens = tokens(&text);
        let all: Vec<Word> = tokens.iter().map(|t| word(&text, t.start, t.text, t.kind)).collect();
        let (mut at, mut copied) = (0, 0);
        while at < all.len() {
            let Some((expanded, end)) = self.expand_at(&all, at, &[]) else {
                at += 1;
                continue;
            };
            self.out.push_str(&text[copied..tokens[at].start]);
            spell(&expanded, &mut self.out);
            copied = tokens[end - 1].end();
            let lines = text[tokens[at].start..copied].matches('\n').count();
            self.out.extend(std::iter::repeat_n('\n', lines));
            // Nothing that follows sticks to the expansion.
            self.out.push(' ');
            at = end;
        }
        self.out.push_str(&text[copied..]);
    }

    /// What the macro at `at` becomes, and the index after it; None where there is no macro.
    fn expand_at(&self, words: &[Word], at: usize, active: &[&str]) -> Option<(Vec<Word>, usize)> {
        let name = words[at].text.as_str();
        let (name, found) = self.macros.get_key_value(name).filter(|_| words[at].kind == Kind::Identifier)?;
        if active.contains(&name.as_str()) {
            return None;
        }
        let active = &[active, &[name.as_str()]].concat()[..];
        let Some(parameters) = &found.parameters else {
            return Some((self.expand(&found.body, active), at + 1));
        };
        let (arguments, end) = arguments(words, at + 1, found.variadic.then_some(parameters.len()))?;
        let substituted = self.substitute(found, parameters, &arguments, active);
        Some((self.expand(&substituted, active), end))
    }

    fn expand(&self, words: &[Word], active: &[&str]) -> Vec<Word> {
        let mut out = Vec::new();
        let mut at = 0;
        while at < words.len() {
            match self.expand_at(words, at, active) {
                Some((mut expanded, end)) => {
                    if let Some(first) = expanded.first_mut() {
                        first.space = true;
                    }
                    out.append(&mut expanded);
                    at = end;
                }
                None => {
                    out.push(words[at].clone());
                    at += 1;
                }
            }
        }
        out
    }

    fn substitute(&self, found: &Macro, parameters: &[String], arguments: &[Vec<Word>], active: &[&str]) -> Vec<Word> {
        let argument = |word: &Word| {
            let index = parameters.iter().position(|p| *p == word.text)?;
            Some(arguments.get(index).map_or(&[][..], Vec::as_slice))
        };
        let body = &found.body;
        let is = |at: usize, text: &str| body.get(at).is_some_and(|w| w.text == text);
        let mut out: Vec<Word> = Vec::new();
        let mut at = 0;
        while at < body.len() {
            let word = &body[at];
            if word.text == "#" && is(at + 1, "#") {
                // The right side joins the last word.
                let right = body.get(at + 2);
                let words = right.map(|w| argument(w).map_or_else(|| vec![w.clone()], <[Word]>::to_vec));
                let mut words = words.unwrap_or_default().into_iter();
                match (out.last_mut(), words.next()) {
                    (Some(last), Some(first)) => last.text.push_str(&first.text),
                    (None, Some(first)) => out.push(first),
                    _ => {}
                }
                out.extend(words);
                at += 3;
            } else if word.text == "#" {
                let mut text = String::new();
                body.get(at + 1).and_then(argument).into_iter().for_each(|words| spell(words, &mut text));
                let text = format!("\"{}\"", text.trim().replace('\\', "\\\\").replace('"', "\\\""));
                out.push(Word { text, kind: Kind::Literal, space: word.space });
                at += 2;
            } else if let Some(words) = argument(word) {
                let pasted = is(at + 1, "#") && is(at + 2, "#");
                let mut words = if pasted { words.to_vec() } else { self.expand(words, active) };
                if let Some(first) = words.first_mut() {
                    first.space = true;
                }
                out.append(&mut words);
                at += 1;
            } else {
                out.push(word.clone());
                at += 1;
            }
        }
        out
    }
}

/// The arguments of a call whose parenthesis is at `open`, and the index after it. Of a variadic macro with so many
/// parameters the last takes all that is left, commas included.
fn arguments(words: &[Word], open: usize, variadic: Option<usize>) -> Option<(Vec<Vec<Word>>, usize)> {
    words.get(open).filter(|w| w.text == "(")?;
    let mut all = vec![Vec::new()];
    let mut depth = 0;
    for (i, word) in words.iter().enumerate().skip(open + 1) {
        match word.text.as_str() {
            ")" if depth == 0 => return Some((all, i + 1)),
            "," if depth == 0 && variadic.is_none_or(|n| all.len() < n) => {
                all.push(Vec::new());
                continue;
            }
            "(" => depth += 1,
            ")" => depth -= 1,
            _ => {}
        }
        all.last_mut()?.push(word.clone());
    }
    None
}

fn word(text: &str, start: usize, spelled: &str, kind: Kind) -> Word {
    let space = text[..start].ends_with(|c: char| c.is_whitespace());
    Word { text: spelled.to_owned(), kind, space }
}

fn words(text: &str) -> Vec<Word> {
    // A `#` at the start would be taken for a directive.
    let text = format!("; {text}");
    tokens(&text).iter().skip(1).map(|t| word(&text, t.start, t.text, t.kind)).collect()
}

fn spell(words: &[Word], out: &mut String) {
    for word in words {
        if word.space {
            out.push(' ');
        }
        out.push_str(&word.text);
    }
}

/// The text with a space for each comment; newlines in comments stay.
fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['/', '"', '\'']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(comment) = rest.strip_prefix("//") {
            rest = &comment[comment.find('\n').unwrap_or(comment.len())..];
        } else if let Some(comment) = rest.strip_prefix("/*") {
            let end = comment.find("*/").map_or(comment.len(), |end| end + 2);
            out.push(' ');
            out.extend(comment[..end].chars().filter(|&c| c == '\n'));
            rest = &comment[end..];
        } else {
            let quote = rest.chars().next().filter(|&c| c != '/');
            let mut end = 1;
            if let Some(quote) = quote {
                let mut escaped = false;
                let close = rest[1..].find(|c| {
                    let ends = (c == quote && !escaped) || c == '\n';
                    escaped = c == '\\' && !escaped;
                    ends
                });
                end = close.map_or(rest.len(), |close| close + 2);
            }
            out.push_str(&rest[..end]);
            rest = &rest[end..];
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(source: &str) -> String {
        let text = preprocess(source, "#define ONE 1\n").expect("expands");
        assert_eq!(text.matches('\n').count(), source.matches('\n').count(), "{text:?}");
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn macros_expand_as_in_c() {
        for (source, want) in [
            ("ONE + TWO", "1 + TWO"),
            ("#define F(a, b) a + b * ONE\nF(x, (y, z)) F", "x + (y, z) * 1 F"),
            ("#define V(name, ...) name<__VA_ARGS__>;\nV(f, int, 2) V(g,\n h)", "f< int, 2>; g< h>;"),
            ("#define S(x) #x \"_f32\"\nS(a\"b\") // no", "\"a\\\"b\\\"\" \"_f32\""),
            ("#define P(a, b) a##b a ## _ ## b\nP(x, 1) P(ONE, y)", "x1 x_1 ONEy ONE_y"),
            ("#define A B\n#define B A x\nA", "A x"),
            ("#define L(x) \\\n  x x \\\n  y\nL(1 >> 2)", "1 >> 2 1 >> 2 y"),
            ("#ifdef ONE\na\n#ifndef ONE\nb\n#else\nc\n#endif\n#else\n#error no\n#endif\nd", "a c d"),
            ("#undef ONE\nONE /* x\n y */ z", "ONE z"),
            ("\"// not /* a comment\" 'x' // but this", "\"// not /* a comment\" 'x'"),
            ("#include <metal_stdlib>\n#pragma unroll\n#line 7 \"k\"\nx", "#pragma unroll #line 7 \"k\" x"),
        ] {
            assert_eq!(expanded(source), want, "{source}");
        }
    }

    #[test]
    fn macros_expand_as_clang_has_it() {
        let source = r#"
#define kernels(name, f, ...) template [[host_name(name "_f32")]] [[kernel]] decltype(f<__VA_ARGS__>) f<__VA_ARGS__>;
#define both(name, T) \
  kernels(name, add, T)  /* one */ \
  kernels(name "_x", add, T, 4)
both("a", float) both("b", half2)
#define BUFFER(I, AT) device const T* codes##I [[buffer(AT)]], device T* out ## I
void f(BUFFER(0, 1), BUFFER(1, FLT_MAX));
#define PICK(at) pick(at, {{a, b}, p.n[0]}, (x, y))
#define OUTER(x) PICK(x + INFINITY)
OUTER(group.x)(1 >> 2, "no, /* comment */ here")
#ifndef WHOLE
#define WHOLE false
#else
#error WHOLE is there
#endif
#define SELF SELF + WHOLE
float h = SELF * 1.5e-3h; // end
"#;
        let clang = match crate::compile::clang() {
            Ok(clang) => clang,
            Err(e) if std::env::var_os("SILICIDE_REQUIRE_CLANG").is_some() => panic!("{e}"),
            Err(_) => return,
        };
        let options = crate::CompileOptions::default();
        let theirs = crate::compile::preprocess(clang.program, source, &options).expect("clang expands");
        let ours = preprocess(source, include_str!("../shim/macros.h")).expect("expands");
        let spelled = |text: &str| tokens(text).iter().map(|t| t.text.to_owned()).collect::<Vec<_>>().join(" ");
        assert_eq!(spelled(&ours), spelled(&theirs));
    }

    #[test]
    fn what_is_not_understood_is_named_by_its_line() {
        for (source, line, what) in [
            ("\n#if 1\n#endif", 2, "#if is not supported"),
            ("#line 40 \"k\"\n\n#error stop here", 41, "#error stop here"),
            ("#ifdef X\n", 2, "not closed"),
            ("#endif", 1, "without"),
            ("#include \"other.h\"", 1, "#include is not supported"),
        ] {
            let (at, message) = preprocess(source, "").expect_err(source);
            assert!(at == line && message.contains(what), "{source}: {at} {message}");
        }
    }
}
