//! The parts that models are made of. Only [`Linear`] and [`Embedding`] know whether a weight is quantised, and no part
//! knows which device it is on.

mod attention;
mod mlp;
mod rope;

use silicide::ops::{self, Gate, Precision, Product, RmsNormOptions, Weight};
use silicide::{DType, Matrix, Stream, Tensor};

pub(crate) use attention::{Attention, AttentionArgs};
pub(crate) use mlp::Mlp;
pub(crate) use rope::{RopeArgs, Scaling};

use crate::cache::KvCache;
use crate::error::Result;

/// What a forward pass runs with: where launches go, where the new tokens stand, and what came before them.
pub(crate) struct Step<'a> {
    pub(crate) stream: &'a mut Stream,
    /// `[tokens]` in u32: the position of each token, which is also its slot in the cache.
    pub(crate) positions: &'a Tensor,
    pub(crate) cache: &'a KvCache,
}

/// `x W^T + b`.
pub(crate) struct Linear {
    pub(crate) weight: Weight,
    pub(crate) bias: Option<Tensor>,
    pub(crate) precision: Precision,
}

impl Linear {
    pub(crate) fn forward(&self, step: &mut Step, x: &Tensor) -> Result<Tensor> {
        let [y] = Linear::forward_each([self], step, x)?;
        Ok(y)
    }

    /// Several of one `x`, which is read once where that helps. A model has one precision for all.
    pub(crate) fn forward_each<'a, const N: usize>(
        all: [&'a Linear; N],
        step: &mut Step,
        x: &Tensor,
    ) -> Result<[Tensor; N]> {
        let product =
            |linear: &'a Linear| Product { weight: &linear.weight, bias: linear.bias.as_ref(), residual: None };
        Ok(ops::matmul_each(step.stream, x, all.map(product), all[0].precision)?)
    }

    /// `activation(gate(x)) * up(x)`, in one launch where the weights are stored alike.
    pub(crate) fn forward_gated(
        gate: &Linear,
        up: &Linear,
        activation: Gate,
        step: &mut Step,
        x: &Tensor,
    ) -> Result<Tensor> {
        let biased = gate.bias.is_some() || up.bias.is_some();
        if gate.weight.format() == up.weight.format() && !biased {
            return Ok(ops::matmul_glu(step.stream, x, &gate.weight, &up.weight, activation, gate.precision)?);
        }
        let [gate, up] = Linear::forward_each([gate, up], step, x)?;
        ops::glu_into(step.stream, activation, &gate, &up, &gate)?;
        Ok(gate)
    }
}

/// Rows of a table by token id, times a factor.
pub(crate) struct Embedding {
    pub(crate) table: Matrix,
    pub(crate) scale: f32,
    pub(crate) dtype: DType,
}

impl Embedding {
    /// `tokens` is `[tokens]` in u32.
    pub(crate) fn forward(&self, step: &mut Step, tokens: &Tensor) -> Result<Tensor> {
        Ok(ops::embedding(step.stream, tokens, &self.table, self.scale, self.dtype)?)
    }
}

/// Root-mean-square normalisation with a learnt weight.
pub(crate) struct RmsNorm {
    pub(crate) weight: Tensor,
    /// 1 where the checkpoint holds the weight less one.
    pub(crate) offset: f32,
    pub(crate) eps: f32,
}

impl RmsNorm {
    fn options(&self) -> RmsNormOptions<'_> {
        RmsNormOptions {
            weight: Some(&self.weight),
            weight_offset: self.offset,
            eps: self.eps,
            residual: None,
            sum: None,
        }
    }

    pub(crate) fn forward(&self, step: &mut Step, x: &Tensor) -> Result<Tensor> {
        let out = step.stream.empty(x.dtype(), *x.shape())?;
        ops::rms_norm_with(step.stream, x, self.options(), &out)?;
        Ok(out)
    }
}

/// The residual stream of a pre-norm transformer: a running sum, to which a branch's last product adds itself; or a branch's
/// output that is yet to be added, which the next norm does in its own launch.
pub(crate) struct Residual {
    sum: Tensor,
    branch: Option<Tensor>,
}

impl Residual {
    pub(crate) fn new(x: Tensor) -> Residual {
        Residual { sum: x, branch: None }
    }

    /// Gives the output of a branch, to be added.
    pub(crate) fn add(&mut self, branch: Tensor) {
        debug_assert!(self.branch.is_none(), "a norm stands between two branches");
        self.branch = Some(branch);
    }

    /// Adds `linear(x)`, which ends a branch, in the product's own launch.
    pub(crate) fn add_product(&mut self, step: &mut Step, linear: &Linear, x: &Tensor) -> Result<()> {
        debug_assert!(self.branch.is_none(), "a norm stands between two branches");
        let Linear { weight, bias, precision } = linear;
        let product = Product { weight, bias: bias.as_ref(), residual: Some(&self.sum) };
        Ok(ops::matmul_each_into(step.stream, x, [(product, &self.sum)], *precision)?)
    }

    /// Adds what is to be added and normalises the sum.
    pub(crate) fn norm(&mut self, step: &mut Step, norm: &RmsNorm) -> Result<Tensor> {
        let Some(branch) = self.branch.take() else { return norm.forward(step, &self.sum) };
        let out = step.stream.empty(branch.dtype(), *branch.shape())?;
        let options = RmsNormOptions { residual: Some(&self.sum), sum: Some(&self.sum), ..norm.options() };
        ops::rms_norm_with(step.stream, &branch, options, &out)?;
        Ok(out)
    }
}
