//! What comes between the projections of an attention layer and its products: heads normalised, turned and cached.

mod cpu;
#[cfg(test)]
mod tests;

use super::rope::{Rope, Rotary, RotaryParams};
use super::rope_multi::RopeMulti;
use crate::device::cpu::Entry;
use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::check::{check, float_entry, size};
use crate::ops::rows::{packet, packets_align, whole};
use crate::{DType, Float, Result, Tensor};

/// The root-mean-square normalisation of each head of queries and keys in [`head_norm_rope_cache`].
#[derive(Clone, Copy, Debug)]
pub struct HeadNorm<'a> {
    /// Multiplies each normalised head of the queries: `[head_dim]`, of their type or f32.
    pub q_weight: &'a Tensor,
    /// As `q_weight`, of the keys.
    pub k_weight: &'a Tensor,
    /// Added to every weight: 1 for models whose checkpoints hold the weight less one (Gemma).
    pub weight_offset: f32,
    /// Added to the mean of squares.
    pub eps: f32,
}

/// Where [`head_norm_rope_cache`] puts keys and values, as for [`kv_write`](super::kv_write).
#[derive(Clone, Copy, Debug)]
pub struct CacheSlots<'a> {
    /// `[tokens]` in i32 or u32: the row of the caches that each token takes. They must differ; a slot outside the cache
    /// writes nothing.
    pub slots: &'a Tensor,
    /// `[capacity, kv_heads, head_dim]` in f32, f16 or bf16, strided by row and by head as one likes.
    pub keys: &'a Tensor,
    /// As `keys`.
    pub values: &'a Tensor,
}

/// [`rms_norm`](super::rms_norm) of each head of `q` and `k`, where there is a `norm`, [`rope`](super::rope) of both and
/// [`kv_write`](super::kv_write) of keys and values, in one launch.
///
/// `q` is `[tokens, heads, head_dim]` and is changed in place; `k` and `v` are `[tokens, kv_heads, head_dim]` of its type
/// and stay as they are. All three are f32, f16 or bf16, strided by token and by head, and do not overlap. `positions` are
/// `[tokens]` in i32 or u32. What the separate ops would store between them is rounded as they round it, so the result is
/// theirs.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes or types do not fit.
///
/// ```
/// use silicide::ops::{self, CacheSlots, HeadNorm, Pairing, Rope, RopeFrequencies};
/// use silicide::{DType, Device};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let rope = Rope::new(&device, &RopeFrequencies::new(2, 10_000.0)?, Pairing::Halves)?;
/// let q = device.tensor(&[3.0f32, 4.0], [1, 1, 2])?;
/// let (k, v) = (device.tensor(&[4.0f32, 3.0], [1, 1, 2])?, device.tensor(&[5.0f32, 6.0], [1, 1, 2])?);
/// let (keys, values) = (device.zeros(DType::F16, [8, 1, 2])?, device.zeros(DType::F16, [8, 1, 2])?);
/// let ones = device.tensor(&[1.0f32, 1.0], [2])?;
/// let position = device.tensor(&[2u32], [1])?;
///
/// let norm = HeadNorm { q_weight: &ones, k_weight: &ones, weight_offset: 0.0, eps: 0.0 };
/// let cache = CacheSlots { slots: &position, keys: &keys, values: &values };
/// ops::head_norm_rope_cache(stream, &q, &k, &v, Some(norm), &position, &rope, cache)?;
///
/// let q = q.to_vec::<f32>(stream)?;
/// let (a, b) = (3.0 / 12.5f32.sqrt(), 4.0 / 12.5f32.sqrt());
/// assert!((q[0] - (a * 2f32.cos() - b * 2f32.sin())).abs() < 1e-6);
/// assert_eq!(values.to_vec::<half::f16>(stream)?[4..6], [half::f16::from_f32(5.0), half::f16::from_f32(6.0)]);
/// # Ok(())
/// # }
/// ```
pub fn head_norm_rope_cache(
    stream: &mut Stream,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    norm: Option<HeadNorm>,
    positions: &Tensor,
    rope: &Rope,
    cache: CacheSlots,
) -> Result<()> {
    launch(stream, [q, k, v], norm, positions, &rope.0, cache)
}

/// [`head_norm_rope_cache`] with [`rope_multi`](super::rope_multi) and its positions.
pub fn head_norm_rope_multi_cache(
    stream: &mut Stream,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    norm: Option<HeadNorm>,
    positions: &Tensor,
    rope: &RopeMulti,
    cache: CacheSlots,
) -> Result<()> {
    launch(stream, [q, k, v], norm, positions, &rope.0, cache)
}

fn launch(
    stream: &mut Stream,
    [q, k, v]: [&Tensor; 3],
    norm: Option<HeadNorm>,
    positions: &Tensor,
    rope: &Rotary,
    cache: CacheSlots,
) -> Result<()> {
    let (q_weight, k_weight) = (norm.map(|n| n.q_weight), norm.map(|n| n.k_weight));
    let (weight_offset, eps) = norm.map_or((0.0, 0.0), |n| (n.weight_offset, n.eps));
    let CacheSlots { slots, keys, values } = cache;
    let mut rotary = rope.params(OP, positions, (q, q), Some((k, k)))?;
    // What does not turn is normalised all the same.
    rotary.copies = 1;
    check(OP, k.shape() == v.shape() && k.dtype() == v.dtype(), || {
        format!("got keys {k:?} and values {v:?}, wanted one shape and type")
    })?;
    check(OP, keys.shape() == values.shape() && keys.dtype() == values.dtype(), || {
        format!("got caches {keys:?} and {values:?}, wanted one shape and type")
    })?;
    let strides = |name: &'static str, t: &Tensor| {
        let fits = t.rank() == 3 && t.dtype().is_float() && t.shape()[1..] == k.shape()[1..];
        check(OP, fits && (t.dim(2) <= 1 || t.strides()[2] == 1), || {
            let (heads, dim) = (k.dim(1), k.dim(2));
            format!("{name}: got {t:?}, wanted [rows, {heads}, {dim}] of floats with a contiguous last axis")
        })?;
        Ok([size(OP, name, t.strides()[0])?, size(OP, name, t.strides()[1])?])
    };
    let (v_strides, key_strides, value_strides) =
        (strides("v", v)?, strides("keys", keys)?, strides("values", values)?);
    let tokens = q.dim(0);
    let fits = slots.shape()[..] == [tokens] && slots.is_contiguous();
    check(OP, fits && matches!(slots.dtype(), DType::I32 | DType::U32), || {
        format!("slots: got {slots:?}, wanted i32 or u32 [{tokens}], contiguous")
    })?;
    check(OP, eps >= 0.0, || format!("eps: got {eps}, wanted 0 or more"))?;
    let (dtype, head_dim) = (q.dtype(), q.dim(2));
    let weight_dtype = q_weight.map_or(dtype, Tensor::dtype);
    for (name, w) in [("q_weight", q_weight), ("k_weight", k_weight)] {
        let Some(w) = w else { continue };
        let types = w.dtype() == weight_dtype && (w.dtype() == dtype || w.dtype() == DType::F32);
        check(OP, types && w.shape()[..] == [head_dim] && w.is_contiguous(), || {
            format!("{name}: got {w:?}, wanted {dtype} or, both of them, f32 [{head_dim}], contiguous")
        })?;
    }
    if q.elements() + k.elements() == 0 {
        return Ok(());
    }
    let all = [Some(q), Some(k), Some(v), q_weight, k_weight, Some(keys), Some(values)];
    let aligned = rotary.packs(&all) && packets_align(head_dim, packet(dtype), &all);
    let heads = if tokens < SEVERAL { 1 } else { 4 };
    let teams = (rotary.heads[0] + 2 * rotary.heads[1]).div_ceil(heads);
    let width = rotary.head_dim.div_ceil(packet(dtype) as u32).next_power_of_two().min(32);
    let threads = (teams.saturating_mul(width)).next_multiple_of(32).min(THREADS);
    let in_lanes = aligned && rotary.is_in_lanes(packet(dtype) as u32, width, heads);
    let params = Params {
        rotary,
        v_strides,
        key_strides,
        value_strides,
        capacity: size(OP, "keys", keys.dim(0))?,
        has_norm: norm.is_some().into(),
        eps,
        weight_offset,
        width,
    };
    let launch = Launch::new(OP, &params)
        .read_write(q)
        .read(k)
        .read(v)
        .read_optional(q_weight)
        .read_optional(k_weight)
        .read(positions)
        .read(rope.frequencies())
        .read(rope.axes())
        .read(slots)
        .write(keys)
        .write(values)
        .writes_bytes(q.elements() * dtype.size() + 2 * k.elements() * keys.dtype().size())
        .flops(10 * (q.elements() + k.elements()))
        .threadgroup_memory(if in_lanes { 8 * rotary.pairs } else { 16 });
    let entry = match (keys.dtype(), weight_dtype == dtype) {
        (DType::F16, same) => entry_of::<half::f16>(dtype, same),
        (DType::BF16, same) => entry_of::<half::bf16>(dtype, same),
        (_, same) => entry_of::<f32>(dtype, same),
    };
    stream.launch(launch, entry, || Gpu {
        source: &SOURCE,
        defines: defines(aligned, in_lanes, heads),
        entry: format!("head_norm_rope_cache_{dtype}_{weight_dtype}_{}", keys.dtype()),
        threadgroups: [tokens as u32, teams.div_ceil(threads / width), 1],
        threads: [threads, 1, 1],
    })
}

/// What the source is compiled with, for teams that take so many heads.
pub(super) fn defines(aligned: bool, in_lanes: bool, heads: u32) -> String {
    format!("{}\n#define IN_LANES {in_lanes}\n#define TEAM_HEADS {heads}", whole(aligned))
}

/// The CPU form for a cache of `C`.
fn entry_of<C: Float>(dtype: DType, same: bool) -> Entry {
    match same {
        true => float_entry!(dtype, T => cpu::run::<T, T, C>),
        false => float_entry!(dtype, T => cpu::run::<T, f32, C>),
    }
}

const OP: &str = "head_norm_rope_cache";

/// Tokens from which on there are heads enough for a team to take several.
const SEVERAL: usize = 8;

/// Threads of a threadgroup, several teams of one token.
const THREADS: u32 = 256;

kernel_params! {
    /// Strides are elements by token or row, and by head. Those of queries and keys are `rotary.x_strides`.
    struct Params {
        rotary: RotaryParams,
        v_strides: [u32; 2],
        key_strides: [u32; 2],
        value_strides: [u32; 2],
        capacity: u32,
        has_norm: u32,
        eps: f32,
        weight_offset: f32,
        /// Threads of a team.
        width: u32,
    }
}

pub(super) static SOURCE: KernelSource = KernelSource {
    name: "head_norm_rope_cache",
    params: &[RotaryParams::DECLARATION, Params::DECLARATION],
    body: include_str!("kernel.metal"),
};
