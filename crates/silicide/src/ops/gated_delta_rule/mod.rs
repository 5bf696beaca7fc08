//! The gated delta rule: linear attention whose state forgets and corrects itself at each token.

mod cpu;
pub(in crate::ops) mod nvidia;
#[cfg(test)]
mod tests;

use self::nvidia::Chunked;
use crate::device::{DeviceKind, Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::check::{check, float_entry, size};
use crate::{DType, Result, Tensor};

/// The most elements of a key that [`gated_delta_rule`] takes.
const MOST: usize = 256;

/// What [`gated_delta_rule`] needs besides queries, keys and values.
#[derive(Clone, Copy, Debug)]
pub struct GatedDeltaRule<'a> {
    /// How much of the state is kept at each token.
    pub decay: Decay<'a>,
    /// How much of a correction is learned: f32 `[tokens, value_heads]`, as [`gated_delta_gates`] gives it.
    ///
    /// [`gated_delta_gates`]: crate::ops::gated_delta_gates()
    pub beta: &'a Tensor,
    /// Read and replaced: f32 `[value_heads, dv, dk]`, contiguous.
    pub state: &'a Tensor,
    /// Multiplies the queries: `1 / sqrt(dk)` in models whose queries have unit length.
    pub scale: f32,
    /// Which key head serves a value head.
    pub heads: HeadMap,
}

/// How much of a state is kept at each token: f32 `[tokens, value_heads]`.
#[derive(Clone, Copy, Debug)]
pub enum Decay<'a> {
    /// The factor itself, from 0 to 1: `g` in mlx-lm.
    Factor(&'a Tensor),
    /// Its logarithm, 0 or below: `g` in transformers and flash-linear-attention.
    Log(&'a Tensor),
}

/// Which key head serves value head `h`, where there are `ratio` value heads to a key head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadMap {
    /// `h / ratio`: the order of safetensors, of transformers and MLX.
    Grouped,
    /// `h % key_heads`: the order of GGUF.
    Tiled,
}

/// For each token in turn, and each value head with its state `S`: `S = g S; S += beta (v - S k) k^T; y = S (scale q)`.
///
/// `q` and `k` are `[tokens, key_heads, dk]` and `v` is `[tokens, value_heads, dv]`, of one type (f32, f16 or bf16),
/// strided by token and by head with a contiguous last axis, such as heads inside a fused projection. `dk` is at most 256.
/// Queries and keys are taken as they are; models normalise them first, with [`l2_norm`](crate::ops::l2_norm()). All
/// arithmetic is in f32 and the result, `[tokens, value_heads, dv]`, is rounded once.
///
/// A CPU takes token by token, so that a prompt gives the same bits whole or in parts. A GPU takes several tokens at once
/// where there are enough, by the chunked form, which differs in rounding only. An NVIDIA GPU's tensor cores take f32 as pairs
/// of numbers of the type of the keys, where these are of 16 bits and `dk` up to 128 and `dv` multiples of 16. Mathematics: Yang, Kautz and
/// Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule", 2024.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes or types do not fit.
///
/// ```
/// use silicide::ops::{self, Decay, GatedDeltaRule, HeadMap};
/// use silicide::{DType, Device};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let key = device.tensor(&[0.0f32, 1.0], [1, 1, 2])?;
/// let value = device.tensor(&[5.0f32], [1, 1, 1])?;
/// let (g, beta) = (device.tensor(&[0.5f32], [1, 1])?, device.tensor(&[1.0f32], [1, 1])?);
/// let state = device.tensor(&[2.0f32, 2.0], [1, 1, 2])?;
/// let rule = GatedDeltaRule {
///     decay: Decay::Factor(&g),
///     beta: &beta,
///     state: &state,
///     scale: 1.0,
///     heads: HeadMap::Grouped,
/// };
/// let y = ops::gated_delta_rule(stream, &key, &key, &value, rule)?;
/// // The state remembers the value under its key, and half of what it held elsewhere.
/// assert_eq!(y.to_vec::<f32>(stream)?, [5.0]);
/// assert_eq!(state.to_vec::<f32>(stream)?, [1.0, 5.0]);
/// # Ok(())
/// # }
/// ```
pub fn gated_delta_rule(
    stream: &mut Stream,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    options: GatedDeltaRule,
) -> Result<Tensor> {
    let out = stream.empty(v.dtype(), *v.shape())?;
    gated_delta_rule_into(stream, q, k, v, options, &out)?;
    Ok(out)
}

/// [`gated_delta_rule`] into `out`, which shares no memory with the others.
pub fn gated_delta_rule_into(
    stream: &mut Stream,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    options: GatedDeltaRule,
    out: &Tensor,
) -> Result<()> {
    run(stream, q, k, v, options, out, None)
}

/// `chunked` asks a GPU for that form; None for what the number of tokens suggests.
fn run(
    stream: &mut Stream,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    options: GatedDeltaRule,
    out: &Tensor,
    chunked: Option<bool>,
) -> Result<()> {
    let GatedDeltaRule { decay, beta, state, scale, heads } = options;
    let strides = |name: &'static str, t: &Tensor| {
        let fits = t.rank() == 3 && (t.dim(2) <= 1 || t.strides()[2] == 1) && t.dtype().is_float();
        check(OP, fits, || {
            format!("{name}: got {t:?}, wanted [tokens, heads, dim] of floats with a contiguous last axis")
        })?;
        Ok([size(OP, name, t.strides()[0])?, size(OP, name, t.strides()[1])?])
    };
    let (q_strides, k_strides, v_strides) = (strides("q", q)?, strides("k", k)?, strides("v", v)?);
    let out_strides = strides("out", out)?;
    check(OP, q.shape() == k.shape() && q.dtype() == k.dtype(), || {
        format!("got q {q:?} and k {k:?}, wanted one shape and type")
    })?;
    check(OP, v.dim(0) == q.dim(0) && v.dtype() == q.dtype(), || {
        format!("v: got {v:?}, wanted {}[{}, value_heads, dv]", q.dtype(), q.dim(0))
    })?;
    check(OP, out.shape() == v.shape() && out.dtype() == v.dtype(), || format!("out: got {out:?}, wanted {v:?}"))?;
    let (tokens, key_heads, dk) = (q.dim(0), q.dim(1), q.dim(2));
    let (value_heads, dv) = (v.dim(1), v.dim(2));
    check(OP, key_heads > 0 && value_heads.is_multiple_of(key_heads), || {
        format!("got {value_heads} value heads for {key_heads} key heads, wanted a multiple")
    })?;
    check(OP, (1..=MOST).contains(&dk), || format!("k: got heads of {dk}, wanted 1 to {MOST}"))?;
    let (g, log) = match decay {
        Decay::Factor(g) => (g, false),
        Decay::Log(g) => (g, true),
    };
    let gate = |name: &'static str, t: &Tensor| {
        let fits = t.shape()[..] == [tokens, value_heads] && t.dtype() == DType::F32;
        check(OP, fits && (value_heads == 1 || t.strides()[1] == 1), || {
            format!("{name}: got {t:?}, wanted f32[{tokens}, {value_heads}] with a contiguous last axis")
        })?;
        size(OP, name, t.strides()[0])
    };
    let (g_stride, beta_stride) = (gate("decay", g)?, gate("beta", beta)?);
    let fits = state.shape()[..] == [value_heads, dv, dk] && state.dtype() == DType::F32 && state.is_contiguous();
    check(OP, fits, || format!("state: got {state:?}, wanted f32[{value_heads}, {dv}, {dk}], contiguous"))?;
    if v.elements() == 0 {
        return Ok(());
    }
    let chunk = chunk(dk);
    let params = Params {
        q_strides,
        k_strides,
        v_strides,
        out_strides,
        g_stride,
        beta_stride,
        tokens: size(OP, "tokens", tokens)?,
        key_heads: size(OP, "key_heads", key_heads)?,
        value_heads: size(OP, "value_heads", value_heads)?,
        dk: dk as u32,
        dv: size(OP, "dv", dv)?,
        tiled: (heads == HeadMap::Tiled).into(),
        log: log.into(),
        scale,
    };
    let on_cpu = stream.device().kind() == DeviceKind::Cpu;
    let tensor = Chunked::of(stream.device(), [q, k, v, out], &params);
    let least = if tensor.is_some() { Chunked::LEAST } else { chunk };
    let chunked = !on_cpu && chunked.unwrap_or(tokens >= least);
    let tensor = tensor.filter(|_| chunked);
    let (form, why) = match (on_cpu, &tensor) {
        (true, _) => ("cpu token by token", "in chunks the operations would be no fewer"),
        (_, Some(_)) => ("gated_delta_rule chunks", ""),
        _ if chunked => ("gated_delta_rule chunked", ""),
        _ => ("gated_delta_rule token by token", "for so few tokens no chunk is faster"),
    };
    let gpu = |entry: String, threadgroups, threads| Gpu {
        source: &SOURCE,
        defines: defines(dk),
        entry,
        threadgroups,
        threads: [threads, 1, 1],
    };
    let on_tensor = |form: &Chunked, entry: &str, threadgroups, threads| Gpu {
        source: &nvidia::SOURCE,
        defines: form.defines(),
        ..gpu(entry.into(), threadgroups, threads)
    };
    // Per token and value head: a factor, a prediction, an update and a reading of each element of the state.
    let flops = 7 * v.elements() * dk;
    let mut launch = Launch::new(OP, &params).read(q).read(k).read(v).read(g).read(beta).read_write(state);
    let mut shared = None;
    if chunked {
        // What the rows of a value head share in a chunk.
        let (name, chunk, record, memory) = match &tensor {
            Some(form) => ("gated_delta_rule factors", form.tokens as usize, form.record() as usize / 4, form.tiles()),
            None => ("gated_delta_rule pairs", chunk, 2 * chunk * chunk + 3 * chunk, 0),
        };
        let chunks = tokens.div_ceil(chunk);
        let temporary = stream.empty(DType::F32, [value_heads, chunks, record])?;
        let prepare = Launch::new("gated_delta_rule, pairs", &params)
            .read(q)
            .read(k)
            .read(g)
            .read(beta)
            .write(&temporary)
            .flops(4 * tokens * chunk * value_heads * dk)
            .threadgroup_memory(memory)
            .choice(name, "");
        let groups = [chunks as u32, params.value_heads, 1];
        stream.launch(
            prepare,
            |_| unreachable!("a CPU takes token by token"),
            || match &tensor {
                Some(form) => on_tensor(form, "gated_delta_rule_factors", groups, Chunked::FACTOR_THREADS),
                None => gpu(format!("gated_delta_rule_pairs_{}", q.dtype()), groups, (chunk * chunk) as u32),
            },
        )?;
        launch = launch.read(&temporary);
        shared = Some(temporary);
    }
    let memory = tensor.as_ref().map_or(0, |form| form.threadgroup_memory());
    let launch = launch.write(out).flops(flops).threadgroup_memory(memory).choice(form, why);
    let groups = |rows| [params.dv.div_ceil(rows), params.value_heads, 1];
    stream.launch(launch, float_entry!(q.dtype(), T => cpu::run::<T>), || match (&tensor, &shared) {
        (Some(form), _) => on_tensor(form, "gated_delta_rule_chunks", groups(Chunked::ROWS), Chunked::THREADS),
        (_, Some(_)) => gpu(format!("gated_delta_rule_chunked_{}", q.dtype()), groups(32), 128),
        _ => gpu(format!("gated_delta_rule_recurrent_{}", q.dtype()), groups(16), 128),
    })
}

const OP: &str = "gated_delta_rule";

/// Tokens of a chunk: as many as fit in a threadgroup's memory.
fn chunk(dk: usize) -> usize {
    if dk <= 192 { 16 } else { 8 }
}

/// What the kernels are compiled with.
pub(super) fn defines(dk: usize) -> String {
    format!("#define DK {dk}\n#define CHUNK {}", chunk(dk))
}

kernel_params! {
    /// Strides are elements by token and by head.
    struct Params {
        q_strides: [u32; 2],
        k_strides: [u32; 2],
        v_strides: [u32; 2],
        out_strides: [u32; 2],
        g_stride: u32,
        beta_stride: u32,
        tokens: u32,
        key_heads: u32,
        value_heads: u32,
        dk: u32,
        dv: u32,
        tiled: u32,
        log: u32,
        scale: f32,
    }
}

pub(super) static SOURCE: KernelSource =
    KernelSource { name: "gated_delta_rule", params: &[Params::DECLARATION], body: include_str!("kernel.metal") };
