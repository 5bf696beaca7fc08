//! Mixture-of-experts routing: which experts a token goes to, and how much each counts.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_enum, kernel_params};
use crate::ops::check::{Rows, check, float_entry, size};
use crate::{DType, Result, Tensor};

kernel_enum! {
    /// How a router's logits become scores.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum RouterScore {
        /// `e^x / sum(e^x)` over all experts. Renormalised over the chosen it is the softmax of their logits alone.
        Softmax,
        /// `1 / (1 + e^-x)`.
        Sigmoid,
        /// `sqrt(log(1 + e^x))`, as DeepSeek-V4 has it.
        SqrtSoftplus,
    }
}

kernel_enum! {
    /// What a group of experts is judged by.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum GroupScore {
        /// Its best expert, as DeepSeek-V2 has it.
        Max,
        /// The sum of its best two, as DeepSeek-V3 has it.
        SumOfTopTwo,
    }
}

/// Group-limited routing: experts are chosen from the best groups alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertGroups {
    /// How many groups of equal size the experts form, neighbours together.
    pub n_group: usize,
    /// How many groups a token's experts may come from.
    pub topk_group: usize,
    /// What a group is judged by.
    pub score: GroupScore,
}

/// How [`router`] chooses and weighs experts. The default is Qwen3's and Mixtral's with one expert a token.
///
/// | models | options |
/// |---|---|
/// | Mixtral, Qwen3, gpt-oss | `Softmax`, `renormalize` (which is the softmax of the chosen logits) |
/// | Gemma 4 | the same, and `per_expert_scale` |
/// | Qwen2-MoE, OLMoE | `Softmax`, `renormalize: false` |
/// | Llama 4 | `Sigmoid`, `renormalize: false`; the weights scale the experts' inputs |
/// | DeepSeek-V2 | `Softmax`, `renormalize: false`, `groups` by `Max`, `routed_scale` |
/// | DeepSeek-V3, Kimi K2, GLM 4.5 | `Sigmoid`, `selection_bias`, `groups` by `SumOfTopTwo`, `renormalize`, `routed_scale` |
/// | MiniMax M2 | `Sigmoid`, `selection_bias`, `renormalize` |
#[derive(Clone, Copy, Debug)]
pub struct Router<'a> {
    /// Experts a token: `num_experts_per_tok`.
    pub top_k: usize,
    /// How logits become scores.
    pub score: RouterScore,
    /// Added to the scores for the choice of groups and experts; the weights are without it. f32 `[experts]`:
    /// `e_score_correction_bias`.
    pub selection_bias: Option<&'a Tensor>,
    /// Limits the choice to the best groups.
    pub groups: Option<ExpertGroups>,
    /// Whether the weights of a token are divided by their sum: `norm_topk_prob`.
    pub renormalize: bool,
    /// Multiplies the weights, after that: `routed_scaling_factor`.
    pub routed_scale: f32,
    /// Multiplies the weights of each expert, after that; they are not renormalised again. f32 `[experts]`.
    pub per_expert_scale: Option<&'a Tensor>,
}

impl Default for Router<'_> {
    fn default() -> Self {
        Router {
            top_k: 1,
            score: RouterScore::Softmax,
            selection_bias: None,
            groups: None,
            renormalize: true,
            routed_scale: 1.0,
            per_expert_scale: None,
        }
    }
}

/// The experts of each token, best first, and their weights.
///
/// `logits` is `[.., experts]` in f32, f16 or bf16 with any offset and any stride between rows; experts are at most 4096.
/// The results are contiguous `[.., top_k]`: ids in u32, weights in f32. The arithmetic is in f32.
///
/// Of equals the lowest id is chosen; NaN counts as greater than every number. Where neither a bias nor sums of scores
/// enter the choice it is made by the logits themselves, which order as their scores do, so it is the same on every
/// device. To the sum that weights are divided by 1e-20 is added, so that scores which are all zero give zeros. A softmax
/// of nothing but negative infinities gives zeros.
///
/// Sources: Shazeer et al., "Outrageously Large Neural Networks", 2017; DeepSeek-AI, "DeepSeek-V2", 2024, and
/// "DeepSeek-V3 Technical Report", 2024.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes or types do not fit, groups do not divide the experts, or
/// `top_k` is more than there are experts to choose from.
///
/// ```
/// use silicide::{Device, ops};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let logits = device.tensor(&[0.0f32, 3.0, -1.0, 3.0], [1, 4])?;
/// let (ids, weights) = ops::router(stream, &logits, ops::Router { top_k: 2, ..Default::default() })?;
/// assert_eq!(ids.to_vec::<u32>(stream)?, [1, 3]);
/// assert_eq!(weights.to_vec::<f32>(stream)?, [0.5, 0.5]);
/// # Ok(())
/// # }
/// ```
pub fn router(stream: &mut Stream, logits: &Tensor, options: Router) -> Result<(Tensor, Tensor)> {
    let mut shape = *logits.shape();
    if let Some(last) = shape.last_mut() {
        check_top_k(options.top_k, *last)?;
        *last = options.top_k;
    }
    let (ids, weights) = (stream.empty(DType::U32, shape)?, stream.empty(DType::F32, shape)?);
    router_into(stream, logits, options, &ids, &weights)?;
    Ok((ids, weights))
}

/// [`router`] into `ids` and `weights`, both contiguous; neither shares memory with another tensor here.
pub fn router_into(
    stream: &mut Stream,
    logits: &Tensor,
    options: Router,
    ids: &Tensor,
    weights: &Tensor,
) -> Result<()> {
    let Router { top_k, score, selection_bias, groups, renormalize, routed_scale, per_expert_scale } = options;
    let dtype = logits.dtype();
    check(OP, dtype.is_float() && logits.rank() > 0, || {
        format!("logits: got {logits:?}, wanted floats [.., experts]")
    })?;
    let rows = Rows::of(OP, "logits", logits)?;
    let experts = rows.len as usize;
    check(OP, experts <= MAX_EXPERTS, || format!("logits: got {logits:?}, wanted at most {MAX_EXPERTS} experts"))?;
    check_top_k(top_k, experts)?;
    if let Some(ExpertGroups { n_group, topk_group, score }) = groups {
        check(OP, n_group > 0 && experts.is_multiple_of(n_group), || {
            format!("groups: got {n_group} groups of {experts} experts, wanted groups of one size")
        })?;
        let size = experts / n_group;
        check(OP, score == GroupScore::Max || size > 1, || {
            format!("groups: got {n_group} groups of {experts} experts, wanted two experts in each to sum")
        })?;
        check(OP, topk_group <= n_group && top_k <= topk_group * size, || {
            format!("groups: got {topk_group} of {n_group} groups of {size}, wanted {top_k} experts in them")
        })?;
    }
    for (name, t) in [("selection_bias", selection_bias), ("per_expert_scale", per_expert_scale)] {
        if let Some(t) = t {
            check(OP, t.dtype() == DType::F32 && t.shape()[..] == [experts] && t.is_contiguous(), || {
                format!("{name}: got {t:?}, wanted f32 [{experts}], contiguous")
            })?;
        }
    }
    let mut shape = *logits.shape();
    shape[logits.rank() - 1] = top_k;
    for (name, t, dtype) in [("ids", ids, DType::U32), ("weights", weights, DType::F32)] {
        check(OP, *t.shape() == shape && t.dtype() == dtype && t.is_contiguous(), || {
            format!("{name}: got {t:?}, wanted {dtype}{shape}, contiguous")
        })?;
    }
    if ids.elements() == 0 {
        return Ok(());
    }
    let sums = groups.is_some_and(|g| g.score == GroupScore::SumOfTopTwo);
    let params = Params {
        tokens: rows.count,
        experts: rows.len,
        stride: rows.stride,
        top_k: size(OP, "top_k", top_k)?,
        n_group: groups.map_or(1, |g| g.n_group) as u32,
        topk_group: groups.map_or(1, |g| g.topk_group) as u32,
        group_score: groups.map_or(GroupScore::Max, |g| g.score).code(),
        score: score.code(),
        by_score: (selection_bias.is_some() || sums).into(),
        has_bias: selection_bias.is_some().into(),
        has_expert_scale: per_expert_scale.is_some().into(),
        renormalize: renormalize.into(),
        scale: routed_scale,
    };
    let launch = Launch::new(OP, &params)
        .read(logits)
        .read_optional(selection_bias)
        .read_optional(per_expert_scale)
        .write(ids)
        .write(weights);
    stream.launch(launch, float_entry!(dtype, T => cpu::run::<T>), || {
        let simdgroups = params.tokens.min(4);
        Gpu {
            source: &SOURCE,
            // As many registers as the experts take, to the next power of two so that kernels are few.
            defines: format!("#define PER_LANE {}", params.experts.div_ceil(32).next_power_of_two()),
            entry: format!("router_{dtype}"),
            threadgroups: [params.tokens.div_ceil(simdgroups), 1, 1],
            threads: [32 * simdgroups, 1, 1],
        }
    })
}

fn check_top_k(top_k: usize, experts: usize) -> Result<()> {
    check(OP, top_k <= experts, || format!("top_k: got {top_k}, wanted at most the {experts} experts"))
}

const OP: &str = "router";

/// A simdgroup's registers hold no more.
const MAX_EXPERTS: usize = 4096;

kernel_params! {
    /// `stride` is in elements between rows of logits.
    struct Params {
        tokens: u32,
        experts: u32,
        stride: u32,
        top_k: u32,
        n_group: u32,
        topk_group: u32,
        /// A `GroupScore`.
        group_score: u32,
        /// A `RouterScore`.
        score: u32,
        /// Whether scores and not logits are compared.
        by_score: u32,
        has_bias: u32,
        has_expert_scale: u32,
        renormalize: u32,
        scale: f32,
    }
}

pub(super) static SOURCE: KernelSource = KernelSource {
    name: "router",
    params: &[RouterScore::DECLARATION, GroupScore::DECLARATION, Params::DECLARATION],
    body: include_str!("kernel.metal"),
};
