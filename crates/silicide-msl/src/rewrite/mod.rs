//! Brings kernel entry points, and the few forms that clang lacks, into what the shim understands.
//!
//! Everything is done by local edits that keep the lines, so the compiler's messages name the original source:
//!
//! - a kernel's parameters become variables at the start of its body, read from one `__msl_thread`;
//! - an instantiation with a `host_name`, and each kernel that is no template, becomes an `extern "C"` entry;
//! - `threadgroup` variables of a kernel become references into memory that the runner lays out;
//! - `[[function_constant(n)]]` variables become constants of the given values;
//! - vector constructors and casts become calls of the shim.

mod constants;
mod kernels;
mod literals;
mod parameters;
mod spaces;
mod vectors;

pub(crate) use self::kernels::{slots, symbol};

use std::collections::HashSet;

use self::vectors::{plain_types, type_names};
use crate::Constant;
use crate::lex::{Kind, marker, tokens};
use crate::tokens::Tokens;

/// A kernel source that the shim can be put before.
pub(crate) struct Rewritten {
    pub(crate) text: String,
    pub(crate) kernels: Vec<Entry>,
}

/// One entry point, `__msl_kernel_N` for the Nth.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) line: u32,
    pub(crate) parameters: Vec<Parameter>,
}

/// A kernel that is a template: what its instantiations take.
#[derive(Clone)]
struct Template {
    name: String,
    parameters: Vec<Parameter>,
    /// The most threads of its threadgroups.
    limit: Option<String>,
}

/// A bound argument of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) index: u32,
    pub(crate) kind: ParameterKind,
    /// The type that a reference is to.
    pub(crate) base: Option<String>,
}

/// The kind letter is also what the compiled library carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ParameterKind {
    /// `device T*` or `device T&`.
    Device = b'd' as isize,
    /// `device const T*`.
    DeviceConst = b'r' as isize,
    /// `constant T*` or `constant T&`.
    Constant = b'c' as isize,
    /// `threadgroup T*`.
    Threadgroup = b't' as isize,
}

impl Parameter {
    /// Whether its bytes come with the launch and not in a buffer, where the device has a place for them.
    pub(crate) fn is_inline(&self) -> bool {
        self.kind == ParameterKind::Constant && self.base.is_some()
    }
}

/// A message and the line that it is about.
pub(crate) type Complaint = (u32, String);

/// The language that the text is brought to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect<'a> {
    /// C++ for OpenCL, run by the emulator.
    OpenCl,
    /// CUDA C++, with this entry or all. Vectors are classes of the shim and need no edits; address spaces are dropped.
    Cuda { entry: Option<&'a str> },
}

/// Rewrites preprocessed text, with these values of function constants.
pub(crate) fn rewrite(text: &str, dialect: Dialect<'_>, constants: &[(u32, Constant)]) -> Result<Rewritten, Complaint> {
    let tokens = tokens(text);
    let mut rewriter = Rewriter {
        text,
        types: type_names(&tokens),
        plain_types: plain_types(&tokens),
        tokens: Tokens(tokens),
        dialect,
        constants,
        edits: Vec::new(),
        templates: Vec::new(),
        entries: Vec::new(),
        statics: 0,
    };
    rewriter.run()?;
    Ok(Rewritten { text: rewriter.apply(), kernels: rewriter.entries })
}

const SPACES: [&str; 4] = ["device", "constant", "threadgroup", "thread"];

struct Rewriter<'a> {
    text: &'a str,
    tokens: Tokens<'a>,
    dialect: Dialect<'a>,
    constants: &'a [(u32, Constant)],
    /// Names that may stand for a vector type: vector types, type parameters and aliases.
    types: HashSet<&'a str>,
    /// Other type names: scalars and structs.
    plain_types: HashSet<&'a str>,
    edits: Vec<(usize, usize, String)>,
    templates: Vec<Template>,
    entries: Vec<Entry>,
    statics: u32,
}

impl<'a> Rewriter<'a> {
    fn run(&mut self) -> Result<(), Complaint> {
        let mut at = 0;
        let mut body_end = 0;
        while at < self.tokens.len() {
            let token = self.tokens[at];
            let cuda = self.dialect != Dialect::OpenCl;
            if token.kind != Kind::Identifier && token.text != "[" {
                at = match token.kind {
                    Kind::Number if cuda => self.literal(at),
                    _ if token.text == "(" && !cuda => self.c_cast(at),
                    _ => at + 1,
                };
                continue;
            }
            match token.text {
                "double" => return Err((token.line, "Metal has no `double`: use float".into())),
                "template" if self.tokens.is(at + 1, "<") => {
                    // A header has no constructor calls worth an edit.
                    at = self.tokens.skip_angles(at + 1);
                }
                "template" => at = self.instantiation(at)?,
                "kernel" => (at, body_end) = self.kernel(at)?,
                "[" if self.tokens.is(at + 1, "[") => {
                    let (attributes, end) = self.tokens.attributes(at)?;
                    if attributes.iter().any(|a| a.name == "kernel" || a.name == "host_name") {
                        (at, body_end) = self.kernel(at)?;
                    } else {
                        at = end;
                    }
                }
                "constant" => at = self.function_constant(at)?,
                "threadgroup" if at < body_end => at = self.threadgroup_variable(at),
                "device" if !cuda && self.is_method_qualifier(at) => {
                    self.edit(at, at + 1, "__global".into());
                    at += 1;
                }
                "is_function_constant_defined" if self.tokens.is(at + 1, "(") => {
                    let end = self.tokens.skip_group(at + 1);
                    let name = self.tokens.get(at + 2).map_or("", |t| t.text);
                    let defined = self.constant_index(name).is_some_and(|i| self.constant(i).is_some());
                    self.edit(at, end, defined.to_string());
                    at = end;
                }
                _ if cuda => at += 1,
                "static_cast" => at = self.static_cast(at),
                "struct" | "class" | "union" => {
                    self.methods(at);
                    at += 1;
                }
                _ => {
                    self.check_qualified(at)?;
                    at = self.constructor(at);
                }
            }
        }
        Ok(())
    }

    fn apply(&mut self) -> String {
        self.edits.sort_by_key(|edit| edit.0);
        let mut out = String::with_capacity(self.text.len() * 2);
        let mut at = 0;
        for (start, end, new) in &self.edits {
            if *start < at {
                continue; // Inside a range that another edit replaced.
            }
            out.push_str(&self.text[at..*start]);
            out.push_str(new);
            // Lines stay where they were: newlines and line markers of the replaced range are kept.
            for line in self.text[*start..*end].split('\n').skip(1) {
                out.push('\n');
                if marker(line).is_some() {
                    out.push_str(line);
                }
            }
            at = *end;
        }
        out.push_str(&self.text[at..]);
        out
    }

    fn edit(&mut self, from: usize, to: usize, new: String) {
        let end = self.tokens[to - 1].end();
        self.edits.push((self.tokens[from].start, end, new));
    }

    /// Text after a token.
    fn insert_after(&mut self, at: usize, new: String) {
        let end = self.tokens[at].end();
        self.edits.push((end, end, new));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = r#"
template <typename T, int N = 4>
[[kernel, max_total_threads_per_threadgroup(256)]] void f(
    device const T* x [[buffer(0)]], constant P& p [[buffer(1)]], threadgroup T* s [[threadgroup(0)]],
    uint2 t [[thread_position_in_grid]]) {
    threadgroup vec<T, 4> a[N * 2][3], b;
    using T4 = vec<T, 4>;
    T4 y = T4(x[0]) + (float4)h + static_cast<half4>(z);
}
template [[host_name("a" "b")]] [[kernel]] decltype(f<float>) f<float>;
template [[host_name("c")]] [[kernel]] void f<half, 2>(device const half* x [[buffer(0)]]);
constant bool flag [[function_constant(0)]];
kernel void g(device float* o [[buffer(2), function_constant(flag)]]) { if (is_function_constant_defined(flag)) o[0] = 1; }
"#;

    fn rewrite(text: &str) -> Result<Rewritten, Complaint> {
        super::rewrite(text, Dialect::OpenCl, &[(0, Constant::Bool(true))])
    }

    #[test]
    fn entries_and_lines() {
        let rewritten = rewrite(SOURCE).expect("rewrites");
        let names: Vec<_> = rewritten.kernels.iter().map(|k| (k.name.as_str(), k.line, k.parameters.len())).collect();
        assert_eq!(names, [("ab", 10, 3), ("c", 11, 3), ("g", 13, 1)]);
        assert_eq!(rewritten.text.lines().count(), SOURCE.lines().count());
        for part in [
            "f < half , 2 >(t);",
            "__msl_make<T4>(x[0]) + __msl_cast<float4>() ->* h + __msl_convert<half4>(z)",
            "__msl_static<0, sizeof(threadgroup vec < T , 4 > [ N * 2 ] [ 3 ])>",
            "constexpr constant bool flag = bool(true)",
            "if (true) o[0] = 1;",
        ] {
            assert!(rewritten.text.contains(part), "no {part} in {}", rewritten.text);
        }
    }

    #[test]
    fn a_kernel_says_how_many_threads_it_has_at_most() {
        let cuda =
            super::rewrite(SOURCE, Dialect::Cuda { entry: None }, &[(0, Constant::Bool(true))]).expect("rewrites");
        for part in
            ["__msl_entry(__msl_threads > (256) ? __msl_threads : (256)) msl_ab(", "__msl_entry(__msl_threads) msl_g("]
        {
            assert!(cuda.text.contains(part), "no {part} in {}", cuda.text);
        }
    }

    #[test]
    fn methods_are_for_thread_memory() {
        let text = "struct S { float a[2] = {1, 2}; int b = (3); S(int x) : b(x), c{x} { f(); } static int g(int x) { return x; }\n\
                    inline __attribute__((always_inline)) float f() const { return h(1); } void operator()(int i);\n\
                    float k() const device { return 0; } template <typename T> T m(T x) { return T(x); } };";
        let got = rewrite(text).expect("rewrites").text;
        for part in [
            "S(int x) __private : b(x)",
            "static int g(int x) {",
            "float f() const __private { return h(1); }",
            "void operator()(int i) __private;",
            "float k() const __global {",
            "T m(T x) __private { return __msl_make<T>(x); }",
            "int b = (3);",
        ] {
            assert!(got.contains(part), "no {part} in {got}");
        }
    }

    #[test]
    fn broken_texts_do_not_panic() {
        let words = tokens(SOURCE);
        for (i, word) in words.iter().enumerate() {
            let without = format!("{}{}", &SOURCE[..word.start], &SOURCE[word.end()..]);
            let _ = rewrite(&without);
            let _ = rewrite(&SOURCE[..word.end()]);
            let _ = rewrite(&SOURCE[word.start..]);
            let other = words[(i * 7 + 3) % words.len()].text;
            let _ = rewrite(&format!("{} {other} {}", &SOURCE[..word.start], &SOURCE[word.end()..]));
        }
    }

    #[test]
    fn pointers_need_an_address_space() {
        for (text, accepted) in [
            ("void f(float* p) {}", false),
            ("struct S { int x; }; void f(const S &s) {}", false),
            ("template <typename T> void f(T const* p) {}", false),
            ("void f(vec<float, 4>* p) {}", false),
            ("void f(device float* p, float const thread& q, const device uint4 *r) {}", true),
            ("float x = float(y) * z; bool b = sizeof(float) * n & m;", true),
            ("auto q = (device T*)p + reinterpret_cast<threadgroup half4*>(r);", true),
        ] {
            assert_eq!(rewrite(text).is_ok(), accepted, "{text}");
        }
    }
}
