//! Brings kernel entry points, and the few forms that clang lacks, into what the shim understands.
//!
//! Everything is done by local edits that keep the lines, so the compiler's messages name the original source:
//!
//! - a kernel's parameters become variables at the start of its body, read from one `__msl_thread`;
//! - an instantiation with a `host_name`, and each kernel that is no template, becomes an `extern "C"` entry;
//! - `threadgroup` variables of a kernel become references into memory that the runner lays out;
//! - `[[function_constant(n)]]` variables become constants of the given values;
//! - vector constructors and casts become calls of the shim.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Write;

use crate::lex::{Kind, Token, marker, tokens};
use crate::tokens::{Attribute, Tokens};
use crate::{CompileOptions, Constant};

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

/// A bound argument of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) index: u32,
    pub(crate) kind: ParameterKind,
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

/// A message and the line that it is about.
pub(crate) type Complaint = (u32, String);

/// Rewrites preprocessed text.
pub(crate) fn rewrite(text: &str, options: &CompileOptions) -> Result<Rewritten, Complaint> {
    let tokens = tokens(text);
    let mut rewriter = Rewriter {
        text,
        types: type_names(&tokens),
        plain_types: plain_types(&tokens),
        tokens: Tokens(tokens),
        options,
        edits: Vec::new(),
        templates: Vec::new(),
        entries: Vec::new(),
        statics: 0,
    };
    rewriter.run()?;
    Ok(Rewritten { text: rewriter.apply(), kernels: rewriter.entries })
}

const SPACES: [&str; 4] = ["device", "constant", "threadgroup", "thread"];

/// Position attributes with three components. Metal wants those that a kernel uses to have the same width.
const POSITIONS: [&str; 6] = [
    "thread_position_in_grid",
    "thread_position_in_threadgroup",
    "threadgroup_position_in_grid",
    "threads_per_threadgroup",
    "threadgroups_per_grid",
    "threads_per_grid",
];

const INDICES: [&str; 5] = [
    "thread_index_in_threadgroup",
    "thread_index_in_simdgroup",
    "simdgroup_index_in_threadgroup",
    "simdgroups_per_threadgroup",
    "threads_per_simdgroup",
];

struct Rewriter<'a> {
    text: &'a str,
    tokens: Tokens<'a>,
    options: &'a CompileOptions,
    /// Names that may stand for a vector type: vector types, type parameters and aliases.
    types: HashSet<&'a str>,
    /// Other type names: scalars and structs.
    plain_types: HashSet<&'a str>,
    edits: Vec<(usize, usize, String)>,
    /// Kernels that are templates, by name: what their instantiations take.
    templates: Vec<(String, Vec<Parameter>)>,
    entries: Vec<Entry>,
    statics: u32,
}

impl<'a> Rewriter<'a> {
    fn run(&mut self) -> Result<(), Complaint> {
        let mut at = 0;
        let mut body_end = 0;
        while at < self.tokens.len() {
            let token = self.tokens[at];
            if token.kind != Kind::Identifier && token.text != "[" {
                at = if token.text == "(" { self.c_cast(at) } else { at + 1 };
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
                "device" if self.is_method_qualifier(at) => {
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

    fn host_name(&self, attributes: &[Attribute<'_>]) -> Option<String> {
        let (from, to) = attributes.iter().find(|a| a.name == "host_name")?.arguments;
        Some(self.tokens[from..to].iter().map(|t| t.text.trim_matches('"')).collect())
    }

    /// Reads attributes and words before a kernel's return type.
    fn prefix(&self, mut at: usize) -> Result<(Vec<Attribute<'a>>, bool, usize), Complaint> {
        let mut all = Vec::new();
        let mut kernel = false;
        loop {
            if self.tokens.is(at, "[") && self.tokens.is(at + 1, "[") {
                let (attributes, end) = self.tokens.attributes(at)?;
                kernel |= attributes.iter().any(|a| a.name == "kernel");
                all.extend(attributes);
                at = end;
            } else if self.tokens.is(at, "kernel") {
                kernel = true;
                at += 1;
            } else {
                return Ok((all, kernel, at));
            }
        }
    }

    /// A kernel's definition. Gives the index of its body and that of the body's end.
    fn kernel(&mut self, start: usize) -> Result<(usize, usize), Complaint> {
        let (attributes, kernel, at) = self.prefix(start)?;
        if !kernel {
            return Ok((at, 0));
        }
        let line = self.tokens.line(start);
        if !self.tokens.is(at, "void") {
            return Err((line, "a kernel function returns `void`".into()));
        }
        let name_at = at + 1;
        let open = at + 2;
        let named = self.tokens.get(name_at).is_some_and(|t| t.kind == Kind::Identifier);
        if !named || !self.tokens.is(open, "(") {
            return Err((line, "a kernel function has a name and a parameter list".into()));
        }
        let name = self.tokens[name_at].text.to_owned();
        let close = self.tokens.skip_group(open);
        let body = close;
        if !self.tokens.is(body, "{") {
            return Err((
                self.tokens.line(close),
                format!("kernel `{name}` has no body: declarations are not supported"),
            ));
        }
        let body_end = self.tokens.skip_group(body);
        let mut prologue = String::new();
        let parameters = self.parameters(&name, open + 1, close - 1, &mut prologue)?;

        self.edit(start, name_at, "__msl_kernel".into());
        self.edit(open, close, "(const __msl_thread &__msl_t)".into());
        self.insert_after(body, prologue);
        let template = start > 0 && self.tokens.is(start - 1, ">");
        if template {
            self.templates.push((name, parameters));
        } else {
            let host = self.host_name(&attributes).unwrap_or_else(|| name.clone());
            let entry = self.entry(line, host, &name, parameters)?;
            self.insert_after(body_end - 1, entry);
        }
        Ok((body, body_end))
    }

    /// Text of an entry that calls `function`, and its place in the list.
    fn entry(
        &mut self,
        line: u32,
        name: String,
        function: &str,
        parameters: Vec<Parameter>,
    ) -> Result<String, Complaint> {
        if self.entries.iter().any(|entry| entry.name == name) {
            return Err((line, format!("two kernels are named \"{name}\"")));
        }
        let number = self.entries.len();
        self.entries.push(Entry { name, line, parameters });
        Ok(format!(" __msl_entry __msl_kernel_{number}(const __msl_thread &t) {{ {function}(t); }}"))
    }

    /// `template [[host_name("n")]] [[kernel]] decltype(f<float>) f<float>;` or with `void f<float>(...)`.
    fn instantiation(&mut self, start: usize) -> Result<usize, Complaint> {
        let (attributes, kernel, mut at) = self.prefix(start + 1)?;
        let Some(host) = self.host_name(&attributes) else {
            if kernel {
                let message = "an instantiation of a kernel needs [[host_name(\"...\")]]: its symbol is not specified";
                return Err((self.tokens.line(start), message.into()));
            }
            return Ok(start + 1);
        };
        let line = self.tokens.line(start);
        let broken = || (line, format!("kernel \"{host}\": this form of instantiation is not understood"));
        if self.tokens.is(at, "decltype") {
            at = self.tokens.skip_group(at + 1);
        } else if self.tokens.is(at, "void") {
            at += 1;
        } else {
            return Err(broken());
        }
        let name_at = at;
        while self.tokens.get(at).is_some_and(|t| t.kind == Kind::Identifier) && self.tokens.is(at + 1, "::") {
            at += 2;
        }
        let simple = self.tokens.get(at).ok_or_else(broken)?.text;
        let mut end = at + 1;
        if self.tokens.is(end, "<") {
            end = self.tokens.skip_angles(end);
        }
        let function = self.tokens.spell(name_at, end);
        let mut semicolon = end;
        if self.tokens.is(semicolon, "(") {
            semicolon = self.tokens.skip_group(semicolon);
        }
        if end == at + 1 || !self.tokens.is(semicolon, ";") {
            return Err(broken());
        }
        let found = self.templates.iter().find(|(name, _)| name == simple);
        let Some(parameters) = found.map(|(_, parameters)| parameters.clone()) else {
            return Err((line, format!("kernel \"{host}\": `{simple}` is no kernel template defined above")));
        };
        let entry = self.entry(line, host, &function, parameters)?;
        self.edit(start, semicolon + 1, entry);
        Ok(semicolon + 1)
    }

    /// Reads a parameter list and writes what replaces it at the start of the body.
    fn parameters(
        &mut self,
        kernel: &str,
        from: usize,
        to: usize,
        prologue: &mut String,
    ) -> Result<Vec<Parameter>, Complaint> {
        let mut parameters: Vec<Parameter> = Vec::new();
        let mut sizes = String::new();
        let mut locals = String::new();
        let mut width: Option<(char, &str)> = None;
        let mut at = from;
        while at < to {
            let start = at;
            let mut attribute_at = None;
            while at < to && !self.tokens.is(at, ",") {
                if self.tokens.is(at, "[") && self.tokens.is(at + 1, "[") && attribute_at.is_none() {
                    attribute_at = Some(at);
                }
                at = match self.tokens[at].text {
                    "(" | "[" | "{" => self.tokens.skip_group(at),
                    "<" => self.tokens.skip_angles(at).max(at + 1),
                    _ => at + 1,
                };
            }
            let line = self.tokens.line(start);
            let type_end = attribute_at.unwrap_or(at).saturating_sub(1);
            at += 1;
            if type_end <= start || self.tokens[type_end].kind != Kind::Identifier {
                return Err((line, format!("kernel `{kernel}`: a parameter has no plain name and type")));
            }
            let name = self.tokens[type_end].text.to_owned();
            let Some(attribute_at) = attribute_at else {
                return Err((
                    line,
                    format!("kernel `{kernel}`: parameter `{name}` has no attribute such as [[buffer(0)]]"),
                ));
            };
            let (attributes, _) = self.tokens.attributes(attribute_at)?;
            let ty = self.tokens.spell(start, type_end);
            let words: BTreeSet<&str> = self.tokens[start..type_end].iter().map(|t| t.text).collect();

            if let Some(attribute) = attributes.iter().find(|a| a.name == "buffer" || a.name == "threadgroup") {
                let number = self.tokens.number(attribute).ok_or_else(|| {
                    (
                        line,
                        format!(
                            "kernel `{kernel}`: parameter `{name}` needs a plain number in [[{}(n)]]",
                            attribute.name
                        ),
                    )
                })?;
                if number > 30 {
                    return Err((
                        line,
                        format!("kernel `{kernel}`: [[{}({number})]]: indices are 0 to 30", attribute.name),
                    ));
                }
                let pointee_end =
                    (start..type_end).find(|&i| self.tokens.is(i, "*") || self.tokens.is(i, "&")).unwrap_or(type_end);
                let read_only = self.tokens[start..pointee_end].iter().any(|t| t.text == "const");
                let kind = match (attribute.name, SPACES.iter().find(|s| words.contains(**s))) {
                    ("buffer", Some(&"device")) if read_only => ParameterKind::DeviceConst,
                    ("buffer", Some(&"device")) => ParameterKind::Device,
                    ("buffer", Some(&"constant")) => ParameterKind::Constant,
                    ("threadgroup", Some(&"threadgroup")) => ParameterKind::Threadgroup,
                    _ => {
                        let message = format!(
                            "kernel `{kernel}`: parameter `{name}` of type `{ty}` cannot be [[{}({number})]]: \
                             buffers are device or constant, the others threadgroup",
                            attribute.name
                        );
                        return Err((line, message));
                    }
                };
                if let Some(condition) = attributes.iter().find(|a| a.name == "function_constant") {
                    let (from, _) = condition.arguments;
                    let index = self.constant_index(self.tokens[from].text);
                    if !matches!(index.and_then(|i| self.constant(i)), Some(Constant::Bool(true))) {
                        // Nothing is there, as Metal has it: the kernel must not look.
                        let null = match ty.strip_suffix('&') {
                            Some(base) => format!("{ty} {name} = *({base} *)0ul; "),
                            None => format!("{ty} {name} = ({ty})0ul; "),
                        };
                        locals.push_str(&null);
                        continue;
                    }
                }
                let same = |p: &&Parameter| {
                    p.index == number && (p.kind == ParameterKind::Threadgroup) == (kind == ParameterKind::Threadgroup)
                };
                if let Some(other) = parameters.iter().find(same) {
                    let message =
                        format!("kernel `{kernel}`: `{}` and `{name}` have the same index {number}", other.name);
                    return Err((line, message));
                }
                let table = if kind == ParameterKind::Threadgroup { "shared" } else { "buffers" };
                let slot = parameters.len();
                if let Some(base) = ty.strip_suffix('&') {
                    let _ = write!(locals, "{ty} {name} = *({base} *)__msl_t.{table}[{number}]; ");
                    let _ = write!(sizes, "__msl_t.query[{slot}] = sizeof({base}); ");
                } else if words.contains("*") {
                    let _ = write!(locals, "{ty} {name} = ({ty})__msl_t.{table}[{number}]; ");
                } else {
                    return Err((
                        line,
                        format!("kernel `{kernel}`: parameter `{name}` is neither a pointer nor a reference"),
                    ));
                }
                parameters.push(Parameter { name, index: number, kind });
            } else if let Some(attribute) = attributes.iter().find(|a| POSITIONS.contains(&a.name)) {
                let last = self.tokens[type_end - 1].text.chars().last().unwrap_or('1');
                let this = if last.is_ascii_digit() && last < '5' { last } else { '1' };
                if let Some((other, what)) = width.filter(|w| w.0 != this) {
                    let message = format!(
                        "kernel `{kernel}`: {what} has {other} component(s) and {} has {this}: Metal wants the same width",
                        attribute.name
                    );
                    return Err((line, message));
                }
                width = Some((this, attribute.name));
                let _ = write!(locals, "{ty} {name} = __msl_position<{ty}>(__msl_t.{}); ", attribute.name);
            } else if let Some(attribute) = attributes.iter().find(|a| INDICES.contains(&a.name)) {
                let bare = ty.trim_start_matches("const ");
                let _ = write!(locals, "{ty} {name} = __msl_index<{bare}>(__msl_t.{}); ", attribute.name);
            } else {
                let spelled = attributes.first().map_or("", |a| a.name);
                return Err((
                    line,
                    format!("kernel `{kernel}`: parameter `{name}`: attribute [[{spelled}]] is not supported"),
                ));
            }
        }
        let _ = write!(prologue, " if (__msl_t.query) {{ {sizes}return; }} {locals}");
        Ok(parameters)
    }

    /// `constant bool x [[function_constant(0)]];`. Other uses of `constant` are left alone.
    fn function_constant(&mut self, at: usize) -> Result<usize, Complaint> {
        let mut end = at + 1;
        while self.tokens.get(end).is_some_and(|t| t.kind == Kind::Identifier) {
            end += 1;
        }
        if !(self.tokens.is(end, "[") && self.tokens.is(end + 1, "[")) || end < at + 3 {
            return Ok(at + 1);
        }
        let (attributes, after) = self.tokens.attributes(end)?;
        let Some(attribute) = attributes.iter().find(|a| a.name == "function_constant") else { return Ok(at + 1) };
        let line = self.tokens.line(at);
        let name = self.tokens[end - 1].text;
        let Some(index) = self.tokens.number(attribute) else {
            return Err((line, format!("`{name}`: function_constant takes a plain number")));
        };
        let ty = self.tokens.spell(at + 1, end - 1);
        let value = match self.constant(index) {
            Some(Constant::Bool(v)) => v.to_string(),
            Some(Constant::Int(v)) => format!("({v}l)"),
            Some(Constant::Uint(v)) => format!("{v}u"),
            Some(Constant::Float(v)) => format!("__builtin_bit_cast(float, {}u)", v.to_bits()),
            None if self.asks_whether_defined(name) => String::new(),
            None => {
                let hint = "set it in CompileOptions::function_constants";
                return Err((line, format!("function constant {index} (`{name}`) has no value: {hint}")));
            }
        };
        self.edit(at, after, format!("constexpr constant {ty} {name} = {ty}({value})"));
        Ok(after)
    }

    fn asks_whether_defined(&self, name: &str) -> bool {
        self.tokens.windows(3).any(|w| w[0].text == "is_function_constant_defined" && w[2].text == name)
    }

    /// The index of the function constant of this name.
    fn constant_index(&self, name: &str) -> Option<u32> {
        let at = self.tokens.windows(4).position(|w| {
            w[0].text == name && w[1].text == "[" && w[2].text == "[" && w[3].text == "function_constant"
        })?;
        self.tokens.get(at + 5)?.text.parse().ok()
    }

    fn constant(&self, index: u32) -> Option<Constant> {
        self.options.function_constants.iter().find(|(i, _)| *i == index).map(|(_, value)| *value)
    }

    /// `threadgroup T a[N], b;` in a kernel. Pointers into threadgroup memory are left alone.
    fn threadgroup_variable(&mut self, at: usize) -> usize {
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
    fn methods(&mut self, class: usize) {
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
    fn is_method_qualifier(&self, at: usize) -> bool {
        let before = at.checked_sub(1).map_or("", |i| self.tokens[i].text);
        let after = self.tokens.get(at + 1).map_or("", |t| t.text);
        (before == ")" || (before == "const" && at > 1 && self.tokens.is(at - 2, ")")))
            && matches!(after, "{" | ";" | "const" | "=")
    }

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
    fn constructor(&mut self, at: usize) -> usize {
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

    /// Metal wants an address space in each pointer and reference. C++ for OpenCL would take one without for generic.
    fn check_qualified(&self, at: usize) -> Result<(), Complaint> {
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

    fn static_cast(&mut self, at: usize) -> usize {
        if let Some(end) =
            self.vector_type(at + 2).filter(|&end| self.tokens.is(at + 1, "<") && self.tokens.is(end, ">"))
        {
            self.edit(at, at + 1, "__msl_convert".into());
            return end;
        }
        at + 1
    }

    /// `(float4)x`.
    fn c_cast(&mut self, at: usize) -> usize {
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

fn plain_types<'a>(tokens: &[Token<'a>]) -> HashSet<&'a str> {
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

fn type_names<'a>(tokens: &[Token<'a>]) -> HashSet<&'a str> {
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

    fn options() -> CompileOptions {
        CompileOptions { function_constants: vec![(0, Constant::Bool(true))], ..Default::default() }
    }

    #[test]
    fn entries_and_lines() {
        let rewritten = rewrite(SOURCE, &options()).expect("rewrites");
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
    fn methods_are_for_thread_memory() {
        let text = "struct S { float a[2] = {1, 2}; int b = (3); S(int x) : b(x), c{x} { f(); } static int g(int x) { return x; }\n\
                    inline __attribute__((always_inline)) float f() const { return h(1); } void operator()(int i);\n\
                    float k() const device { return 0; } template <typename T> T m(T x) { return T(x); } };";
        let got = rewrite(text, &options()).expect("rewrites").text;
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
            let _ = rewrite(&without, &options());
            let _ = rewrite(&SOURCE[..word.end()], &options());
            let _ = rewrite(&SOURCE[word.start..], &options());
            let other = words[(i * 7 + 3) % words.len()].text;
            let _ = rewrite(&format!("{} {other} {}", &SOURCE[..word.start], &SOURCE[word.end()..]), &options());
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
            assert_eq!(rewrite(text, &options()).is_ok(), accepted, "{text}");
        }
    }
}
