//! Kernels and their instantiations become entries.

use super::{Complaint, Dialect, Entry, Parameter, ParameterKind, Rewriter, Template};
use crate::lex::Kind;
use crate::tokens::Attribute;

impl<'a> Rewriter<'a> {
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
    pub(super) fn kernel(&mut self, start: usize) -> Result<(usize, usize), Complaint> {
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
        let signature = self.parameters(&name, open + 1, close - 1)?;

        self.edit(start, name_at, "__msl_kernel".into());
        self.edit(open, close, "(const __msl_thread &__msl_t)".into());
        let waits = self.tokens[body..body_end].iter().any(|t| t.text == "wait_for_inputs");
        self.insert_after(body, signature.prologue(self.dialect, waits));
        let limit = attributes.iter().find(|a| a.name == "max_total_threads_per_threadgroup");
        let limit = limit.map(|a| self.tokens.spell(a.arguments.0, a.arguments.1));
        let template = start > 0 && self.tokens.is(start - 1, ">");
        if template {
            self.templates.push(Template { name, parameters: signature.parameters, limit });
        } else {
            let host = self.host_name(&attributes).unwrap_or_else(|| name.clone());
            let entry = self.entry(line, host, &name, signature.parameters, limit)?;
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
        limit: Option<String>,
    ) -> Result<String, Complaint> {
        if self.entries.iter().any(|entry| entry.name == name) {
            return Err((line, format!("two kernels are named \"{name}\"")));
        }
        let number = self.entries.len();
        let text = match self.dialect {
            Dialect::OpenCl => {
                format!(" __msl_entry __msl_kernel_{number}(const __msl_thread &t) {{ {function}(t); }}")
            }
            Dialect::Cuda { entry } if entry.is_some_and(|entry| entry != name) => String::new(),
            Dialect::Cuda { .. } => {
                let constants = parameters.iter().find(|p| p.is_inline()).and_then(|p| p.base.as_deref());
                let (slots, constants) = (slots(&parameters), constants.unwrap_or("__msl_none"));
                // Its most threads, not those of this launch, say how many registers a thread may have.
                let threads = "__msl_threads";
                let limit =
                    limit.map_or(threads.into(), |limit| format!("{threads} > ({limit}) ? {threads} : ({limit})"));
                format!(
                    " __msl_entry({limit}) {}(const __grid_constant__ __msl_arguments< {slots} , {constants} > a) \
                     {{ __msl_begin(); {function}(__msl_thread(a.buffers, &a.constants)); }}",
                    symbol(&name)
                )
            }
        };
        self.entries.push(Entry { name, line, parameters });
        Ok(text)
    }

    /// `template [[host_name("n")]] [[kernel]] decltype(f<float>) f<float>;` or with `void f<float>(...)`.
    pub(super) fn instantiation(&mut self, start: usize) -> Result<usize, Complaint> {
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
        let Some(template) = self.templates.iter().find(|template| template.name == simple).cloned() else {
            return Err((line, format!("kernel \"{host}\": `{simple}` is no kernel template defined above")));
        };
        let entry = self.entry(line, host, &function, template.parameters, template.limit)?;
        self.edit(start, semicolon + 1, entry);
        Ok(semicolon + 1)
    }
}

/// What a profiler shows.
pub(crate) fn symbol(name: &str) -> String {
    let word = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    format!("msl_{}", name.chars().map(word).collect::<String>())
}

/// How many places a table of the bound tensors has.
pub(crate) fn slots(parameters: &[Parameter]) -> u32 {
    let bound = parameters.iter().filter(|p| p.kind != ParameterKind::Threadgroup && !p.is_inline());
    bound.map(|p| p.index + 1).max().unwrap_or(0)
}
