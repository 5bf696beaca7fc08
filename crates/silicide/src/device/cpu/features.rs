//! Instruction sets.

use std::fmt;

/// Instruction sets that kernels may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {}

impl Features {
    /// What this processor has.
    pub fn detect() -> Features {
        Features {}
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("scalar")
    }
}
