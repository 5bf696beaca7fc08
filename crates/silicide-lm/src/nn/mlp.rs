//! The gated feed-forward network.

use silicide::Tensor;
use silicide::ops::Gate;

use super::{Linear, Step};
use crate::error::Result;

/// `down(activation(gate(x)) * up(x))`.
pub(crate) struct Mlp {
    pub(crate) gate_proj: Linear,
    pub(crate) up_proj: Linear,
    pub(crate) down_proj: Linear,
    pub(crate) activation: Gate,
}

impl Mlp {
    /// `x` is `[tokens, hidden]`, and so is the result.
    pub(crate) fn forward(&self, step: &mut Step, x: &Tensor) -> Result<Tensor> {
        let gated = Linear::forward_gated(&self.gate_proj, &self.up_proj, self.activation, step, x)?;
        self.down_proj.forward(step, &gated)
    }
}
