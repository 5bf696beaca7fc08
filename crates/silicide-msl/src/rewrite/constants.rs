//! Function constants become constants of the values that they are given.

use super::{Complaint, Rewriter};
use crate::Constant;
use crate::lex::Kind;

impl Rewriter<'_> {
    /// `constant bool x [[function_constant(0)]];`. Other uses of `constant` are left alone.
    pub(super) fn function_constant(&mut self, at: usize) -> Result<usize, Complaint> {
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
            Some(Constant::Float(v)) => self.float(v),
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
    pub(super) fn constant_index(&self, name: &str) -> Option<u32> {
        let at = self.tokens.windows(4).position(|w| {
            w[0].text == name && w[1].text == "[" && w[2].text == "[" && w[3].text == "function_constant"
        })?;
        self.tokens.get(at + 5)?.text.parse().ok()
    }

    pub(super) fn constant(&self, index: u32) -> Option<Constant> {
        self.constants.iter().find(|(i, _)| *i == index).map(|(_, value)| *value)
    }
}
