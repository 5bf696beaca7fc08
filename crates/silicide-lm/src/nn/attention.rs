//! Self-attention with rotary positions over a cache.

use silicide::Tensor;
use silicide::ops::{self, CacheLayout, CacheSlots, HeadNorm, Mask, Rope};

use super::{Linear, Residual, RmsNorm, Step};
use crate::error::Result;

/// The numbers of an attention layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionArgs {
    /// The layer's place in the cache.
    pub(crate) layer: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) scale: f32,
    /// How many tokens back a token sees; None for all.
    pub(crate) window: Option<usize>,
    /// Bounds scores by `cap * tanh(score / cap)`.
    pub(crate) softcap: Option<f32>,
}

/// Grouped-query attention: projections, optional norms of query and key heads, rotary embedding, cache.
pub(crate) struct Attention {
    pub(crate) args: AttentionArgs,
    pub(crate) q_proj: Linear,
    pub(crate) k_proj: Linear,
    pub(crate) v_proj: Linear,
    pub(crate) o_proj: Linear,
    /// Over each head of the queries and of the keys, before they are turned.
    pub(crate) qk_norm: Option<(RmsNorm, RmsNorm)>,
    pub(crate) rope: Rope,
}

impl Attention {
    /// `x` is `[tokens, hidden]`, and so is the result.
    pub(crate) fn forward(&self, step: &mut Step, x: &Tensor) -> Result<Tensor> {
        let heads = self.attend(step, x)?;
        self.o_proj.forward(step, &heads)
    }

    /// [`forward`](Self::forward), added to `sum`.
    pub(crate) fn add_to(&self, sum: &mut Residual, step: &mut Step, x: &Tensor) -> Result<()> {
        let heads = self.attend(step, x)?;
        sum.add_product(step, &self.o_proj, &heads)
    }

    /// What the heads read from the cache, side by side.
    fn attend(&self, step: &mut Step, x: &Tensor) -> Result<Tensor> {
        let AttentionArgs { layer, heads, kv_heads, head_dim, scale, window, softcap } = self.args;
        let tokens = x.dim(0);
        let [q, k, v] = Linear::forward_each([&self.q_proj, &self.k_proj, &self.v_proj], step, x)?;
        let q = q.reshape([tokens, heads, head_dim])?;
        let k = k.reshape([tokens, kv_heads, head_dim])?;
        let v = v.reshape([tokens, kv_heads, head_dim])?;
        let norm = self.qk_norm.as_ref().map(|(q_norm, k_norm)| HeadNorm {
            q_weight: &q_norm.weight,
            k_weight: &k_norm.weight,
            weight_offset: q_norm.offset,
            eps: q_norm.eps,
        });
        let (keys, values) = step.cache.layer(layer);
        let slots = CacheSlots { slots: step.positions, keys, values };
        ops::head_norm_rope_cache(step.stream, &q, &k, &v, norm, step.positions, &self.rope, slots)?;
        let options = ops::Attention {
            scale,
            mask: Mask::Positions(step.positions),
            window,
            softcap,
            sinks: None,
            cache: CacheLayout::Rows,
        };
        let y = ops::attention(step.stream, &q, keys, values, options)?;
        Ok(y.reshape([tokens, heads * head_dim])?)
    }
}
