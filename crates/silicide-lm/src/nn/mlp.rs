//! The gated feed-forward network.

use silicide::Tensor;
use silicide::ops::Gate;

use super::{Linear, Residual, Step};
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
        let gated = self.gated(step, x)?;
        self.down_proj.forward(step, &gated)
    }

    /// [`forward`](Self::forward), added to `sum`.
    pub(crate) fn add_to(&self, sum: &mut Residual, step: &mut Step, x: &Tensor) -> Result<()> {
        let gated = self.gated(step, x)?;
        sum.add_product(step, &self.down_proj, &gated)
    }

    fn gated(&self, step: &mut Step, x: &Tensor) -> Result<Tensor> {
        Linear::forward_gated(&self.gate_proj, &self.up_proj, self.activation, step, x)
    }
}
