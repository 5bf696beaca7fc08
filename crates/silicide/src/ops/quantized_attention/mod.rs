//! Attention over keys and values that are stored as codes.

mod cpu;
pub(super) mod nvidia;
#[cfg(test)]
mod tests;

use crate::device::cpu::Entry;
use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::attention::{
    Attention, CAUSAL, CacheLayout, FULL, Mask, POSITIONS, attention_into, join_threads, part_floats,
};
use crate::ops::check::{check, float_entry, size};
use crate::ops::kv_quantize::{KvCodec, KvDomain, kv_dequantize};
use crate::ops::kv_quantize_affine::{AffineRows, Ring, kv_dequantize_affine};
use crate::{DType, Error, Result, Tensor};

/// Rows of keys or of values as a cache stores them.
#[derive(Clone, Copy, Debug)]
pub enum QuantizedRows<'a> {
    /// MLX's affine codes, as [`kv_quantize_affine`](super::kv_quantize_affine) writes them.
    Affine(&'a AffineRows),
    /// Codes behind a rotation, as [`kv_quantize`](super::kv_quantize) writes them.
    Rotated {
        /// u8 `[heads, capacity, row_bytes]`.
        codes: &'a Tensor,
        /// f32 `[heads, capacity]`, or `[heads, capacity, 2]` for two norms.
        norms: &'a Tensor,
        /// What they were written with.
        codec: &'a KvCodec,
    },
}

/// [`attention`](super::attention) whose keys and values are stored quantised.
///
/// `q` is `[queries, query_heads, head_dim]` in f32, f16 or bf16, with any strides but along a contiguous last axis; so is the
/// result. `k` and `v` have as many heads and rows as one another and may differ in all else, their codecs and widths
/// included: values mostly bear fewer bits than keys. Head dimensions go to 512. `options` mean what they mean there, a ring
/// of rows included; masks that are tensors and caches in pages are refused.
///
/// Queries and results are as they were before any rotation: the op itself turns queries as the keys were turned, so that
/// scores are those of the keys, and turns sums of values back.
///
/// Up to 16 queries read the codes themselves, and no row past the keys that they see: on the CPU once for four queries and
/// all their heads, on a GPU once for a query and up to 8 of the heads that share a head of keys (4 where `head_dim` is above
/// 256). Scores and sums are f32, whatever the type of `q`, and a query's result does not depend on the other queries; tensor
/// cores of NVIDIA GPUs multiply pairs of f16, which have 22 bits of queries and weights. More
/// queries than that have the whole cache dequantised into a temporary of `q`'s type, `head_dim` elements a row, for
/// [`attention`](super::attention) to read; give it the rows in use alone, where many more are free. Its elements are rounded
/// to that type once more, so for f16 and bf16 the two forms differ by that.
///
/// Mathematics: that of [`attention`](super::attention) and of the codecs; a rotation keeps scalar products.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes or types do not fit, for masks that are tensors, and for caches in pages.
///
/// ```
/// use silicide::ops::{self, AffineOptions, AffineRows, Attention, CacheLayout, KvCodec, KvCodecOptions, Mask, QuantizedRows};
/// use silicide::{DType, Device};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// // Keys in 8 bits as mlx-lm keeps them, values in 4 bits behind a rotation.
/// let keys = AffineRows::zeros(&device, 1, 16, 64, AffineOptions::default())?;
/// let signs = ops::hadamard_signs(&device, 64, 1)?;
/// let codec = KvCodec::new(&device, 64, KvCodecOptions { signs: Some(&signs), ..Default::default() })?;
/// let (codes, norms) = codec.cache(1, 16)?;
///
/// let x: Vec<f32> = (0..2 * 64).map(|i| (i as f32).sin()).collect();
/// let (x, slots) = (device.tensor(&x, [2, 1, 64])?, device.tensor(&[0u32, 1], [2])?);
/// ops::kv_quantize_affine(stream, &x, &slots, CacheLayout::Rows, &keys)?;
/// ops::kv_quantize(stream, &x, &slots, &codec, &codes, &norms)?;
///
/// // The query at position 1 sees the two rows that are written.
/// let positions = device.tensor(&[1u32], [1])?;
/// let mask = Mask::Positions(&positions);
/// let cache = CacheLayout::Rows;
/// let options = Attention { scale: 0.125, mask, window: None, softcap: None, sinks: None, cache };
/// let values = QuantizedRows::Rotated { codes: &codes, norms: &norms, codec: &codec };
/// let q = device.zeros(DType::F32, [1, 4, 64])?;
/// let y = ops::quantized_attention(stream, &q, QuantizedRows::Affine(&keys), values, options)?;
/// // Each is weighed by a half, and coded with an error of a tenth of its size.
/// let want = (0..64).map(|i| ((i as f32).sin() + (i as f32 + 64.0).sin()) / 2.0);
/// let y = y.to_vec::<f32>(stream)?;
/// assert!(y.iter().zip(want).all(|(y, want)| (y - want).abs() < 0.25));
/// # Ok(())
/// # }
/// ```
pub fn quantized_attention(
    stream: &mut Stream,
    q: &Tensor,
    k: QuantizedRows,
    v: QuantizedRows,
    options: Attention,
) -> Result<Tensor> {
    let out = stream.empty(q.dtype(), *q.shape())?;
    quantized_attention_into(stream, q, k, v, options, &out)?;
    Ok(out)
}

/// [`quantized_attention`] into `out`, which shares no memory with the others.
pub fn quantized_attention_into(
    stream: &mut Stream,
    q: &Tensor,
    k: QuantizedRows,
    v: QuantizedRows,
    options: Attention,
    out: &Tensor,
) -> Result<()> {
    let Attention { scale, mask, window, softcap, sinks, cache } = options;
    let rows = |name: &str, t: &Tensor| {
        let fits = t.rank() == 3 && (t.dim(2) <= 1 || t.strides()[2] == 1) && t.dtype().is_float();
        check(OP, fits, || {
            format!("{name}: got {t:?}, wanted [queries, query_heads, head_dim] of floats with a contiguous last axis")
        })?;
        Ok([size(OP, name, t.strides()[0])?, size(OP, name, t.strides()[1])?])
    };
    let (q_strides, out_strides) = (rows("q", q)?, rows("out", out)?);
    let dim = q.dim(2);
    check(OP, dim <= MAX_HEAD_DIM, || format!("head_dim: got {dim}, wanted at most {MAX_HEAD_DIM}"))?;
    let (k_form, v_form) = (Form::of("k", k, dim)?, Form::of("v", v, dim)?);
    let (heads, keys) = (k_form.heads, k_form.capacity);
    check(OP, v_form.heads == heads && v_form.capacity == keys, || {
        format!("got keys of {heads} heads and {keys} rows, and values of {} and {}", v_form.heads, v_form.capacity)
    })?;
    let (queries, q_heads) = (size(OP, "queries", q.dim(0))?, size(OP, "query heads", q.dim(1))?);
    check(OP, heads > 0 && q_heads.is_multiple_of(heads), || {
        format!("q: got {q_heads} heads, wanted a multiple of the {heads} key heads")
    })?;
    check(OP, out.shape() == q.shape() && out.dtype() == q.dtype(), || format!("out: got {out:?}, wanted {q:?}"))?;
    check(OP, softcap.is_none_or(|c| c > 0.0), || format!("softcap: got {softcap:?}, wanted more than 0"))?;
    check(OP, window != Some(0), || "window: got 0, wanted at least 1".into())?;
    if let Some(s) = sinks {
        check(OP, s.shape()[..] == [q_heads as usize] && s.dtype() == DType::F32 && s.is_contiguous(), || {
            format!("sinks: got {s:?}, wanted f32[{q_heads}], contiguous")
        })?;
    }
    let positions = match mask {
        Mask::Positions(p) => Some(p),
        Mask::Full | Mask::Causal => None,
        Mask::Boolean(t) | Mask::Additive(t) => {
            let message =
                format!("mask: got the tensor {t:?}, wanted Mask::Full, Causal or Positions; for others dequantise");
            return Err(Error::argument(OP, message));
        }
    };
    let ring = Ring::param(OP, cache)?;
    if let Some(p) = positions {
        let fits = p.shape()[..] == [queries as usize] && p.is_contiguous();
        check(OP, fits && matches!(p.dtype(), DType::I32 | DType::U32), || {
            format!("positions: got {p:?}, wanted i32 or u32 [{queries}], contiguous")
        })?;
    }
    check(OP, !matches!(mask, Mask::Causal) || queries <= keys, || {
        format!("got {queries} queries and {keys} keys; causal queries need a key each")
    })?;
    if ring != 0 {
        check(OP, positions.is_some(), || format!("cache: got a ring with {mask:?}, wanted Mask::Positions"))?;
        check(OP, keys > 0, || "cache: got a ring without rows".into())?;
    }
    if q.elements() == 0 {
        return Ok(());
    }
    if queries > FEW {
        let (k, v) = (k.dequantized(stream, dim, q.dtype())?, v.dequantized(stream, dim, q.dtype())?);
        return attention_into(stream, q, &k, &v, options, out);
    }
    let params = Params {
        q_strides,
        out_strides,
        k: k_form.side,
        v: v_form.side,
        queries,
        keys,
        q_heads,
        kv_heads: heads,
        dim: dim as u32,
        mask: match mask {
            Mask::Full => FULL,
            Mask::Causal => CAUSAL,
            _ => POSITIONS,
        },
        window: window.map_or(0, |w| w.min(u32::MAX as usize) as u32),
        ring,
        has_sinks: sinks.is_some().into(),
        scale,
        softcap: softcap.unwrap_or(0.0),
        rotation_scale: (1.0 / (dim as f64).sqrt()) as f32,
        parts: 1,
    };
    let launch = |params: &Params| {
        let launch = Launch::new(OP, params).read(q);
        let launch = [k, v].iter().fold(launch, |launch, rows| rows.arguments().into_iter().fold(launch, Launch::read));
        launch.read_optional(k.signs()).read_optional(positions).flops(4 * q.elements() * keys as usize)
    };
    if stream.device().as_cpu().is_some() {
        let launch = launch(&params).read_optional(v.signs()).read_optional(sinks).write(out);
        return stream
            .launch(launch, float_entry!(q.dtype(), T => cpu::run::<T>), || unreachable!("the stream is the CPU's"));
    }
    let codes = [k_form.code, v_form.code];
    let form = GpuForm::of(&params);
    let aligned = |bytes| k.codes_align(bytes) && v.codes_align(bytes);
    let tensor = nvidia::Decode::of(stream.device(), &params, codes, aligned(16));
    let parts = tensor.as_ref().map_or(form.parts, |t| t.parts);
    let params = Params { parts, ..params };
    let gpu = |entry: &str, threadgroups| Gpu {
        source: &SOURCE,
        defines: defines(q.dtype(), codes, &form, aligned(8), cache),
        entry: entry.into(),
        threadgroups,
        threads: [32 * SIMDGROUPS, 1, 1],
    };
    let shape = [queries, q_heads, parts, part_floats(dim as u32)].map(|n| n as usize);
    let partial = stream.empty(DType::F32, shape)?;
    let launch = launch(&params).write(&partial);
    let joined = Launch::new(OP, &params).read(&partial).read_optional(sinks).read_optional(v.signs()).write(out);
    match tensor {
        Some(tensor) => stream.launch(launch.threadgroup_memory(tensor.threadgroup_memory()), NO_CPU, || Gpu {
            source: &nvidia::DECODE,
            defines: tensor.defines(q.dtype(), cache),
            threads: [tensor.threads(), 1, 1],
            ..gpu("quantized_attention_decode", [queries, heads * tensor.tiles, parts])
        })?,
        None => stream.launch(launch, NO_CPU, || gpu("quantized_attention", [queries, heads * form.tiles, parts]))?,
    }
    stream.launch(joined, NO_CPU, || Gpu {
        threads: [join_threads(parts, form.lanes * form.chunks / 4), 1, 1],
        ..gpu("quantized_attention_join", [queries, q_heads, 1])
    })
}

impl<'a> QuantizedRows<'a> {
    /// What both kernels read of them: codes, scales and biases, or codes, norms and levels.
    fn arguments(&self) -> [&'a Tensor; 3] {
        match *self {
            QuantizedRows::Affine(rows) => [&rows.codes, &rows.scales, &rows.biases],
            QuantizedRows::Rotated { codes, norms, codec } => [codes, norms, &codec.table],
        }
    }

    fn signs(&self) -> Option<&'a Tensor> {
        match *self {
            QuantizedRows::Affine(_) => None,
            QuantizedRows::Rotated { codec, .. } => codec.signs.as_ref(),
        }
    }

    /// Whether as many bytes of a row lie aligned.
    fn codes_align(&self, bytes: usize) -> bool {
        let codes = self.arguments()[0];
        codes.vectors_align(bytes / codes.dtype().size())
    }

    /// The elements, `[capacity, heads, head_dim]`.
    fn dequantized(&self, stream: &mut Stream, head_dim: usize, dtype: DType) -> Result<Tensor> {
        let all = match *self {
            QuantizedRows::Affine(rows) => kv_dequantize_affine(stream, rows, head_dim, dtype),
            QuantizedRows::Rotated { codes, norms, codec } => {
                kv_dequantize(stream, codes, norms, codec, KvDomain::Original, dtype)
            }
        };
        all?.permute(&[1, 0, 2])
    }
}

/// What is known of rows once they are checked.
struct Form {
    heads: u32,
    capacity: u32,
    code: Code,
    side: Side,
}

impl Form {
    fn of(name: &str, rows: QuantizedRows, dim: usize) -> Result<Form> {
        match rows {
            QuantizedRows::Affine(rows) => {
                let form = rows.form(OP, name, dim)?;
                Ok(Form {
                    heads: form.heads,
                    capacity: form.capacity,
                    code: Code { bits: form.bits, scale: rows.scales.dtype(), rotated: false, group: form.group_size },
                    side: Side {
                        code_strides: form.code_strides,
                        scale_strides: form.scale_strides,
                        bias_strides: form.bias_strides,
                        scale_stride: 1,
                        group_shift: form.group_size.ilog2(),
                        bits: form.bits,
                        rotated: 0,
                        has_signs: 0,
                        from_unit: 1.0,
                    },
                })
            }
            QuantizedRows::Rotated { codes, norms, codec } => {
                check(OP, codec.head_dim() == dim, || {
                    format!("{name}: got a codec for a head_dim of {}, wanted {dim}", codec.head_dim())
                })?;
                let p = codec.params(OP, codes, norms, [0, 0])?;
                Ok(Form {
                    heads: p.heads,
                    capacity: p.capacity,
                    code: Code { bits: p.bits, scale: DType::F32, rotated: true, group: p.dim / p.norms },
                    side: Side {
                        code_strides: p.code_strides,
                        scale_strides: [p.norm_strides[0], p.norm_strides[1]],
                        bias_strides: [0, 0],
                        scale_stride: p.norm_strides[2],
                        group_shift: (p.dim / p.norms).ilog2(),
                        bits: p.bits,
                        rotated: 1,
                        has_signs: p.has_signs,
                        from_unit: 1.0 / p.unit,
                    },
                })
            }
        }
    }
}

/// What kernels are compiled for, of keys or of values.
#[derive(Clone, Copy)]
pub(super) struct Code {
    pub(super) bits: u32,
    /// The type of scales.
    pub(super) scale: DType,
    pub(super) rotated: bool,
    /// Elements of a row that share a scale.
    pub(super) group: u32,
}

/// How a GPU shares the work out; `kernel.metal` says what the numbers are.
#[derive(Clone, Copy)]
pub(super) struct GpuForm {
    lanes: u32,
    chunks: u32,
    rows: u32,
    /// Threadgroups among which the heads that share keys are.
    tiles: u32,
    parts: u32,
}

impl GpuForm {
    pub(super) fn new(dim: u32, sharing: u32) -> GpuForm {
        let eighths = dim.div_ceil(8).next_power_of_two().max(8);
        let (lanes, chunks) = (eighths.min(32), eighths.div_ceil(32));
        let tiles = sharing.div_ceil(8 / chunks);
        GpuForm { lanes, chunks, rows: sharing.div_ceil(tiles), tiles, parts: 1 }
    }

    fn of(p: &Params) -> GpuForm {
        // So many threadgroups keep a large GPU busy; a part has enough keys to be worth its sums.
        const ENOUGH: u32 = 512;
        const LEAST_KEYS: u32 = 128;
        let form = GpuForm::new(p.dim, p.q_heads / p.kv_heads);
        let keys = if p.window == 0 { p.keys } else { p.window.min(p.keys) };
        // The number of queries has no say, so that one gives what a few give.
        let parts = ENOUGH.div_ceil(p.kv_heads * form.tiles).min(keys.div_ceil(LEAST_KEYS)).clamp(1, MOST_PARTS);
        GpuForm { parts, ..form }
    }
}

/// What `kernel.metal` is compiled with.
pub(super) fn defines(q: DType, codes: [Code; 2], form: &GpuForm, aligned: bool, cache: CacheLayout) -> String {
    format!(
        "{}#define SCALAR {}\n#define LANES {}\n#define CHUNKS {}\n#define ROWS {}\n#define ALIGNED {aligned}",
        defines_of(codes, cache),
        q.msl(),
        form.lanes,
        form.chunks,
        form.rows
    )
}

/// What every kernel is compiled with.
fn defines_of(codes: [Code; 2], cache: CacheLayout) -> String {
    let side = |name: &str, code: Code| {
        let Code { bits, scale, rotated, .. } = code;
        format!("#define {name}_BITS {bits}\n#define {name}_SCALE {}\n#define {name}_ROTATED {rotated}\n", scale.msl())
    };
    format!("{}{}{}", cache.define(), side("K", codes[0]), side("V", codes[1]))
}

/// A few of the many forms, in which each number is at least once.
#[cfg(test)]
pub(super) fn some_defines(tensor: bool) -> std::collections::BTreeSet<String> {
    let code = |bits, scale, rotated| Code { bits, scale, rotated, group: 64 };
    let codes = [
        code(8, DType::F16, false),
        code(4, DType::BF16, false),
        code(4, DType::F32, true),
        code(5, DType::F32, true),
        code(6, DType::F32, true),
        code(8, DType::F32, true),
        code(4, DType::F32, false),
    ];
    let forms = [(64, 1), (128, 4), (256, 8), (512, 8), (96, 3), (128, 7), (256, 2)];
    let all = codes.iter().zip(codes.iter().rev()).zip(forms).zip(0..);
    all.map(|(((&k, &v), (dim, sharing)), i)| {
        let (q, cache) = (DType::FLOATS[i % 3], if i % 3 == 1 { CacheLayout::Ring } else { CacheLayout::Rows });
        if tensor {
            let dim = if i % 3 == 0 { 256 } else { 128 };
            return nvidia::Decode::shaped(dim, sharing, [k, v], 227 << 10).defines(q, cache);
        }
        defines(q, [k, v], &GpuForm::new(dim, sharing), i % 2 == 0, cache)
    })
    .collect()
}

const NO_CPU: Entry = |_| unreachable!("the stream is a GPU's");

const OP: &str = "quantized_attention";
const MAX_HEAD_DIM: usize = 512;
/// Queries that read codes.
const FEW: u32 = 16;
/// `quantized_attention_join` takes no more.
const MOST_PARTS: u32 = 64;
/// Of a threadgroup; `kernel.metal` has the same.
const SIMDGROUPS: u32 = 8;

kernel_params! {
    /// Of keys or of values. Strides are by row, then by head.
    struct Side {
        /// In words of 4 bytes.
        code_strides: [u32; 2],
        /// Of scales or norms, in elements.
        scale_strides: [u32; 2],
        bias_strides: [u32; 2],
        /// From one scale or norm of a row to the next.
        scale_stride: u32,
        /// 2^this elements of a row share a scale or a norm.
        group_shift: u32,
        bits: u32,
        rotated: u32,
        has_signs: u32,
        /// What a norm is multiplied by to be the scale of levels.
        from_unit: f32,
    }
}

kernel_params! {
    /// Strides are elements by token and by head.
    struct Params {
        q_strides: [u32; 2],
        out_strides: [u32; 2],
        k: Side,
        v: Side,
        queries: u32,
        keys: u32,
        q_heads: u32,
        kv_heads: u32,
        dim: u32,
        mask: u32,
        window: u32,
        /// Whether a position is in row `position % keys`.
        ring: u32,
        has_sinks: u32,
        scale: f32,
        softcap: f32,
        /// One over the root of `dim`.
        rotation_scale: f32,
        /// That the keys of a query are computed in.
        parts: u32,
    }
}

pub(super) static SOURCE: KernelSource = KernelSource {
    name: "quantized_attention",
    params: &[Side::DECLARATION, Params::DECLARATION],
    body: include_str!("kernel.metal"),
};
