//! Literals of types that CUDA C++ has no suffix for.

use super::{Dialect, Rewriter};

impl Rewriter<'_> {
    /// `1.5h`, and `1.5`, which is a float in Metal.
    pub(super) fn literal(&mut self, at: usize) -> usize {
        let text = self.tokens[at].text;
        let hexadecimal = text.starts_with("0x") || text.starts_with("0X");
        let (digits, suffix) = text.split_at(text.trim_end_matches(['h', 'H', 'f', 'F']).len());
        let fraction = text.contains('.') || (!hexadecimal && text.contains(['e', 'E'])) || text.contains(['p', 'P']);
        if suffix.eq_ignore_ascii_case("h") {
            self.edit(at, at + 1, format!("half({digits}f)"));
        } else if fraction && !text.ends_with(['f', 'F']) {
            self.edit(at, at + 1, format!("{text}f"));
        }
        at + 1
    }

    /// A float as the dialect writes it in a constant expression.
    pub(super) fn float(&self, value: f32) -> String {
        match self.dialect {
            Dialect::OpenCl => format!("__builtin_bit_cast(float, {}u)", value.to_bits()),
            Dialect::Cuda { .. } if value.is_finite() => format!("{value:?}f"),
            Dialect::Cuda { .. } if value.is_nan() => "NAN".into(),
            Dialect::Cuda { .. } => if value > 0.0 { "INFINITY" } else { "(-INFINITY)" }.into(),
        }
    }
}
