//! A kernel's parameters become variables at the start of its body.

use std::fmt::Write;
use std::ops::Range;

use super::{Complaint, Dialect, Parameter, ParameterKind, Rewriter, SPACES};
use crate::Constant;
use crate::lex::Kind;
use crate::tokens::Attribute;

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

/// A parameter list, as far as it is read.
#[derive(Default)]
pub(super) struct Signature<'a> {
    /// The numbers of buffers that are written down. A buffer without one takes the first that is free.
    numbers: Vec<u32>,
    /// What is bound.
    pub(super) parameters: Vec<Parameter>,
    /// Statements that answer a query for the sizes of referenced types.
    sizes: String,
    /// Declarations of the variables that stand for the parameters.
    locals: String,
    /// How many components the position attributes have, and one of them.
    width: Option<(char, &'a str)>,
}

impl Signature<'_> {
    /// What begins the body.
    pub(super) fn prologue(&self, dialect: Dialect<'_>, waits: bool) -> String {
        match dialect {
            Dialect::OpenCl => format!(" if (__msl_t.query) {{ {}return; }} {}", self.sizes, self.locals),
            // Nothing is read before the launches before are done, unless the kernel says when it waits for them.
            Dialect::Cuda { .. } => format!(" {}{}", self.locals, if waits { "" } else { "wait_for_inputs(); " }),
        }
    }
}

/// One parameter as it is written.
struct Declaration<'a> {
    name: &'a str,
    ty: String,
    /// The tokens of the type.
    words: Range<usize>,
    attributes: Vec<Attribute<'a>>,
}

impl<'a> Rewriter<'a> {
    /// Reads the parameter list between two tokens.
    pub(super) fn parameters(&self, kernel: &str, from: usize, to: usize) -> Result<Signature<'a>, Complaint> {
        let list = self.tokens.get(from..to).unwrap_or_default();
        let numbers = list.windows(3).filter(|w| w[0].text == "buffer" && w[1].text == "(");
        let numbers = numbers.filter_map(|w| w[2].text.parse().ok()).collect();
        let mut signature = Signature { numbers, ..Signature::default() };
        let mut at = from;
        while at < to {
            let start = at;
            let complaint = |message| (self.tokens.line(start), format!("kernel `{kernel}`: {message}"));
            let (end, attributes) = self.extent(start, to);
            let declaration = self.declaration(start, end, attributes).map_err(complaint)?;
            self.parameter(&declaration, &mut signature).map_err(complaint)?;
            at = end + 1;
        }
        Ok(signature)
    }

    /// Where the parameter that begins at `at` ends, and where its attributes begin.
    fn extent(&self, mut at: usize, to: usize) -> (usize, Option<usize>) {
        let mut attributes = None;
        while at < to && !self.tokens.is(at, ",") {
            if self.tokens.is(at, "[") && self.tokens.is(at + 1, "[") && attributes.is_none() {
                attributes = Some(at);
            }
            at = match self.tokens[at].text {
                "(" | "[" | "{" => self.tokens.skip_group(at),
                "<" => self.tokens.skip_angles(at).max(at + 1),
                _ => at + 1,
            };
        }
        (at, attributes)
    }

    fn declaration(&self, start: usize, end: usize, attributes: Option<usize>) -> Result<Declaration<'a>, String> {
        let type_end = attributes.unwrap_or(end).saturating_sub(1);
        if type_end <= start || self.tokens[type_end].kind != Kind::Identifier {
            return Err("a parameter has no plain name and type".into());
        }
        let name = self.tokens[type_end].text;
        let words = start..type_end;
        let attributes = match attributes {
            Some(at) => self.tokens.attributes(at).map_err(|(_, message)| message)?.0,
            None if self.kind("buffer", words.clone()).is_some() => Vec::new(),
            None => return Err(format!("parameter `{name}` has no attribute such as [[buffer(0)]]")),
        };
        Ok(Declaration { name, ty: self.tokens.spell(start, type_end), words, attributes })
    }

    fn parameter(&self, declaration: &Declaration<'a>, signature: &mut Signature<'a>) -> Result<(), String> {
        let Declaration { name, ty, words, attributes } = declaration;
        let find = |names: &[&str]| attributes.iter().find(|a| names.contains(&a.name));
        if attributes.is_empty() {
            let free = (0..).find(|n| !signature.numbers.contains(n)).unwrap_or(u32::MAX);
            signature.numbers.push(free);
            return self.bound(declaration, "buffer", free, signature);
        }
        if let Some(attribute) = find(&["buffer", "threadgroup"]) {
            let index = self
                .tokens
                .number(attribute)
                .ok_or_else(|| format!("parameter `{name}` needs a plain number in [[{}(n)]]", attribute.name))?;
            return self.bound(declaration, attribute.name, index, signature);
        }
        if let Some(Attribute { name: position, .. }) = find(&POSITIONS) {
            let last = self.tokens[words.end - 1].text.chars().last().unwrap_or('1');
            let this = if last.is_ascii_digit() && last < '5' { last } else { '1' };
            if let Some((other, what)) = signature.width.filter(|w| w.0 != this) {
                return Err(format!(
                    "{what} has {other} component(s) and {position} has {this}: Metal wants the same width"
                ));
            }
            signature.width = Some((this, position));
            let _ = write!(signature.locals, "{ty} {name} = __msl_position<{ty}>(__msl_at({position})); ");
        } else if let Some(Attribute { name: index, .. }) = find(&INDICES) {
            let bare = ty.trim_start_matches("const ");
            let _ = write!(signature.locals, "{ty} {name} = __msl_index<{bare}>(__msl_at({index})); ");
        } else {
            let spelled = attributes.first().map_or("", |a| a.name);
            return Err(format!("parameter `{name}`: attribute [[{spelled}]] is not supported"));
        }
        Ok(())
    }

    /// A parameter that the launch binds something to.
    fn bound(
        &self,
        Declaration { name, ty, words, attributes }: &Declaration<'a>,
        attribute: &str,
        index: u32,
        signature: &mut Signature<'a>,
    ) -> Result<(), String> {
        if index > 30 {
            return Err(format!("[[{attribute}({index})]]: indices are 0 to 30"));
        }
        let kind = self.kind(attribute, words.clone()).ok_or_else(|| {
            format!(
                "parameter `{name}` of type `{ty}` cannot be [[{attribute}({index})]]: \
                 buffers are device or constant, the others threadgroup"
            )
        })?;
        if let Some(condition) = attributes.iter().find(|a| a.name == "function_constant") {
            let (from, _) = condition.arguments;
            let value = self.constant_index(self.tokens[from].text).and_then(|i| self.constant(i));
            if !matches!(value, Some(Constant::Bool(true))) {
                // Nothing is there, as Metal has it. A kernel that looks all the same must be found out, so the address is
                // none that the compiler knows to be wrong, whose loads it would drop.
                let _ = match ty.strip_suffix('&') {
                    Some(base) => write!(signature.locals, "{ty} {name} = *({base} *)4096ul; "),
                    None => write!(signature.locals, "{ty} {name} = ({ty})4096ul; "),
                };
                return Ok(());
            }
        }
        let shared = kind == ParameterKind::Threadgroup;
        let same = |p: &&Parameter| p.index == index && (p.kind == ParameterKind::Threadgroup) == shared;
        if let Some(other) = signature.parameters.iter().find(same) {
            return Err(format!("`{}` and `{name}` have the same index {index}", other.name));
        }
        let base = ty.strip_suffix('&');
        let table = match kind {
            ParameterKind::Threadgroup => "shared",
            ParameterKind::Constant if base.is_some() => "constants",
            _ => "buffers",
        };
        if let Some(base) = base {
            let slot = signature.parameters.len();
            let _ = write!(signature.locals, "{ty} {name} = *({base} *)__msl_bound({table}, {index}); ");
            let _ = write!(signature.sizes, "__msl_t.query[{slot}] = sizeof({base}); ");
        } else if kind == ParameterKind::Threadgroup && self.dialect != Dialect::OpenCl {
            if index > 0 {
                return Err(format!("[[threadgroup({index})]]: an NVIDIA GPU has one such argument, 0"));
            }
            let _ = write!(
                signature.locals,
                "extern __shared__ uint4 __msl_dynamic[]; {ty} {name} = ({ty})__msl_dynamic; "
            );
        } else if self.tokens[words.clone()].iter().any(|t| t.text == "*") {
            let _ = write!(signature.locals, "{ty} {name} = ({ty})__msl_bound({table}, {index}); ");
        } else {
            return Err(format!("parameter `{name}` is neither a pointer nor a reference"));
        }
        let base = base.map(|base| base.trim().to_owned());
        signature.parameters.push(Parameter { name: (*name).to_owned(), index, kind, base });
        Ok(())
    }

    /// The kind of a bound parameter, by the words of its type; `None` where they do not go with the attribute.
    fn kind(&self, attribute: &str, words: Range<usize>) -> Option<ParameterKind> {
        let words = &self.tokens[words];
        let pointee = words.split(|t| t.text == "*" || t.text == "&").next().unwrap_or_default();
        let read_only = pointee.iter().any(|t| t.text == "const");
        let space = SPACES.iter().find(|space| words.iter().any(|t| t.text == **space))?;
        match (attribute, *space) {
            ("buffer", "device") if read_only => Some(ParameterKind::DeviceConst),
            ("buffer", "device") => Some(ParameterKind::Device),
            ("buffer", "constant") => Some(ParameterKind::Constant),
            ("threadgroup", "threadgroup") => Some(ParameterKind::Threadgroup),
            _ => None,
        }
    }
}
