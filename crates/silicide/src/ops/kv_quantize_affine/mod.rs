//! Keys and values as MLX's affine codes.

mod cpu;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::device::cpu::Entry;
use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::attention::CacheLayout;
use crate::ops::check::{check, float_entry, size};
use crate::ops::rows::packets_align;
use crate::{DType, Device, Error, Result, Tensor};

/// Rows of keys or of values in the form that MLX's `quantize` gives them: codes, and a scale and a bias for each group of a
/// row's elements. Element `i` is `scale * code + bias`.
///
/// This is what mlx-lm's `QuantizedKVCache` holds of keys, and of values, for one sequence. The number of bits, 4 or 8, and
/// the group size, 32, 64 or 128, follow from the shapes and the `head_dim`. A tensor's last axis is contiguous; other
/// strides may be any.
#[derive(Clone, Debug)]
pub struct AffineRows {
    /// u32 `[heads, capacity, head_dim * bits / 32]`: code `i` of a row in bits `bits * i` and following, the lowest first.
    pub codes: Tensor,
    /// `[heads, capacity, head_dim / group_size]` in f32, f16 or bf16.
    pub scales: Tensor,
    /// As `scales`.
    pub biases: Tensor,
}

/// How [`AffineRows::zeros`] lays rows out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AffineOptions {
    /// Bits an element: 4 or 8.
    pub bits: u32,
    /// Elements of a row that share a scale and a bias: 32, 64 or 128.
    pub group_size: usize,
    /// The type of scales and biases; MLX has that of the keys.
    pub dtype: DType,
}

impl Default for AffineOptions {
    /// 8 bits and groups of 64, as mlx-lm has them, and f16.
    fn default() -> Self {
        AffineOptions { bits: 8, group_size: 64, dtype: DType::F16 }
    }
}

impl AffineRows {
    /// A zeroed cache of `heads` heads and `capacity` rows.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`](crate::Error::Argument) for a number of bits, a group size or a type that there is not, and for a
    /// `head_dim` that is not a multiple of the group size.
    pub fn zeros(
        device: &Device,
        heads: usize,
        capacity: usize,
        head_dim: usize,
        options: AffineOptions,
    ) -> Result<AffineRows> {
        let AffineOptions { bits, group_size, dtype } = options;
        check(ROWS, [4, 8].contains(&bits), || format!("bits: got {bits}, wanted 4 or 8"))?;
        check(ROWS, [32, 64, 128].contains(&group_size), || {
            format!("group_size: got {group_size}, wanted 32, 64 or 128")
        })?;
        check(ROWS, dtype.is_float(), || format!("dtype: got {dtype}, wanted f32, f16 or bf16"))?;
        check(ROWS, head_dim > 0 && head_dim.is_multiple_of(group_size), || {
            format!("head_dim: got {head_dim}, wanted a multiple of the group size {group_size}")
        })?;
        let groups = [heads, capacity, head_dim / group_size];
        Ok(AffineRows {
            codes: device.zeros(DType::U32, [heads, capacity, head_dim * bits as usize / 32])?,
            scales: device.zeros(dtype, groups)?,
            biases: device.zeros(dtype, groups)?,
        })
    }

    /// Some of the rows, of all heads.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`](crate::Error::Argument) where there are not as many.
    pub fn rows(&self, range: Range<usize>) -> Result<AffineRows> {
        let part = |t: &Tensor| t.slice(1, range.clone());
        Ok(AffineRows { codes: part(&self.codes)?, scales: part(&self.scales)?, biases: part(&self.biases)? })
    }

    /// Checks the tensors against one another and `head_dim`; `name` is what the op calls them.
    pub(in crate::ops) fn form(&self, op: &'static str, name: &str, head_dim: usize) -> Result<AffineForm> {
        let AffineRows { codes, scales, biases } = self;
        let fits = codes.rank() == 3 && codes.dtype() == DType::U32 && (codes.dim(2) <= 1 || codes.strides()[2] == 1);
        let bits = if fits && head_dim > 0 { codes.dim(2) * 32 / head_dim } else { 0 };
        check(op, [4, 8].contains(&bits) && codes.dim(2) * 32 == bits * head_dim, || {
            format!(
                "{name}.codes: got {codes:?}, wanted u32 [heads, capacity, {head_dim} * bits / 32] with a contiguous last \
                 axis, of 4 or 8 bits"
            )
        })?;
        let group = |t: &Tensor| match t.rank() {
            3 if t.dtype().is_float() && t.shape()[..2] == codes.shape()[..2] && t.dim(2) > 0 => head_dim / t.dim(2),
            _ => 0,
        };
        let group_size = group(scales);
        let whole = [32, 64, 128].contains(&group_size) && group_size * scales.dim(2) == head_dim;
        check(op, whole && (scales.dim(2) == 1 || scales.strides()[2] == 1), || {
            format!(
                "{name}.scales: got {scales:?}, wanted floats [{}, {}, {head_dim} / group_size] with a contiguous last axis, \
                 for groups of 32, 64 or 128",
                codes.dim(0),
                codes.dim(1)
            )
        })?;
        let alike = biases.shape() == scales.shape() && biases.dtype() == scales.dtype();
        check(op, alike && (biases.dim(2) == 1 || biases.strides()[2] == 1), || {
            format!("{name}.biases: got {biases:?}, wanted {scales:?} with a contiguous last axis")
        })?;
        let strides = |t: &Tensor, what: &str| Ok([size(op, what, t.strides()[1])?, size(op, what, t.strides()[0])?]);
        Ok(AffineForm {
            heads: size(op, name, codes.dim(0))?,
            capacity: size(op, name, codes.dim(1))?,
            bits: bits as u32,
            group_size: group_size as u32,
            code_strides: strides(codes, "codes")?,
            scale_strides: strides(scales, "scales")?,
            bias_strides: strides(biases, "biases")?,
        })
    }
}

/// What is known of [`AffineRows`] once they are checked. Strides are elements by row, then by head.
pub(in crate::ops) struct AffineForm {
    pub(in crate::ops) heads: u32,
    pub(in crate::ops) capacity: u32,
    pub(in crate::ops) bits: u32,
    pub(in crate::ops) group_size: u32,
    pub(in crate::ops) code_strides: [u32; 2],
    pub(in crate::ops) scale_strides: [u32; 2],
    pub(in crate::ops) bias_strides: [u32; 2],
}

impl AffineForm {
    fn params(&self, op: &'static str, head_dim: usize, row_strides: [usize; 2]) -> Result<Params> {
        Ok(Params {
            row_strides: [size(op, "rows", row_strides[0])?, size(op, "rows", row_strides[1])?],
            code_strides: self.code_strides,
            scale_strides: self.scale_strides,
            bias_strides: self.bias_strides,
            rows: 0,
            ring: 0,
            heads: self.heads,
            capacity: self.capacity,
            dim: size(op, "head_dim", head_dim)?,
            bits: self.bits,
            group_size: self.group_size,
        })
    }
}

/// Writes row `t` of `x`, quantised, to where `layout` has position `positions[t]` of a cache; see [`AffineRows`].
///
/// `x` is `[tokens, heads, head_dim]` in f32, f16 or bf16 and may be strided by token and by head. `positions` is `[tokens]`
/// in i32 or u32 below 2^31 and is read when the launch runs. Positions must differ; one below 0, or past the rows of
/// [`CacheLayout::Rows`], writes nothing. Of tokens that would share a row of a ring the one with the greatest position is
/// written.
///
/// Where the cache's scales have `x`'s type, all is what MLX's `quantize` gives on the CPU, bit for bit: the extreme of a
/// group that is further from 0 is met exactly, by the bias, and 0 is a code where the group has both signs; codes are chosen
/// by the scale and bias before these are rounded to their type. Sums and quotients are f32. One thing differs: a group with
/// a NaN or an infinity comes back as NaN throughout, where MLX may leave out the NaN.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes or types do not fit, and for a cache in pages.
///
/// ```
/// use silicide::{DType, Device, ops};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let options = ops::AffineOptions { bits: 4, group_size: 32, dtype: DType::F32 };
/// let cache = ops::AffineRows::zeros(&device, 1, 8, 32, options)?;
/// // From -7 to 8 in steps of a half: with 4 bits every other one is met.
/// let keys: Vec<f32> = (0..32).map(|i| ((i + 1) / 2) as f32 - 8.0).map(|x| x.max(-7.0)).collect();
/// let position = device.tensor(&[5u32], [1])?;
/// let keys_t = device.tensor(&keys, [1, 1, 32])?;
/// ops::kv_quantize_affine(stream, &keys_t, &position, ops::CacheLayout::Rows, &cache)?;
/// let back = ops::kv_dequantize_affine(stream, &cache.rows(5..6)?, 32, DType::F32)?;
/// assert_eq!(back.to_vec::<f32>(stream)?, keys);
/// # Ok(())
/// # }
/// ```
pub fn kv_quantize_affine(
    stream: &mut Stream,
    x: &Tensor,
    positions: &Tensor,
    layout: CacheLayout,
    cache: &AffineRows,
) -> Result<()> {
    let fits = x.rank() == 3 && x.dtype().is_float() && (x.dim(2) <= 1 || x.strides()[2] == 1);
    check(QUANTIZE, fits, || {
        format!("x: got {x:?}, wanted [tokens, heads, head_dim] in f32, f16 or bf16 with a contiguous last axis")
    })?;
    let form = cache.form(QUANTIZE, "cache", x.dim(2))?;
    let mut params = form.params(QUANTIZE, x.dim(2), [x.strides()[0], x.strides()[1]])?;
    check(QUANTIZE, x.dim(1) == form.heads as usize, || {
        format!("got x {x:?} for codes {:?}, wanted the same heads", cache.codes)
    })?;
    let fits = positions.shape()[..] == x.shape()[..1] && positions.is_contiguous();
    check(QUANTIZE, fits && matches!(positions.dtype(), DType::I32 | DType::U32), || {
        format!("positions: got {positions:?}, wanted i32 or u32 [{}], contiguous", x.dim(0))
    })?;
    params.ring = Ring::param(QUANTIZE, layout)?;
    if x.elements() == 0 || cache.codes.elements() == 0 {
        return Ok(());
    }
    params.rows = size(QUANTIZE, "rows of x", x.dim(0) * x.dim(1))?;
    let groups = params.rows * (params.dim / form.group_size);
    let scales = cache.scales.dtype();
    let launch = Launch::new(QUANTIZE, &params)
        .read(x)
        .read(positions)
        .write(&cache.codes)
        .write(&cache.scales)
        .write(&cache.biases)
        .writes_bytes(x.elements() * form.bits as usize / 8 + 2 * groups as usize * scales.size())
        .flops(6 * x.elements());
    let entry: Entry = match scales {
        DType::F16 => float_entry!(x.dtype(), T => cpu::quantize::<T, half::f16>),
        DType::BF16 => float_entry!(x.dtype(), T => cpu::quantize::<T, half::bf16>),
        _ => float_entry!(x.dtype(), T => cpu::quantize::<T, f32>),
    };
    stream.launch(launch, entry, || {
        // Of a ring each threadgroup looks for the newest token, which many would do again and again. One token has its lanes.
        let most = if params.ring == 0 { 2048 } else { 512 };
        let lanes = |rows: u32| rows * (params.dim / EACH);
        let threadgroups = lanes(params.rows).div_ceil(THREADS).min(most).max(lanes(params.heads).div_ceil(THREADS));
        // Codes are words, of which up to four go together.
        let aligned = cache.codes.vectors_align(4) && packets_align(x.dim(2), EACH as usize, &[Some(x)]);
        Gpu {
            source: &SOURCE,
            defines: defines(form.bits, form.group_size, layout, aligned),
            entry: format!("kv_quantize_affine_{}_{scales}", x.dtype()),
            threadgroups: [threadgroups, 1, 1],
            threads: [THREADS, 1, 1],
        }
    })
}

/// The rows of a cache that [`kv_quantize_affine`] wrote: `[heads, capacity, head_dim]` in f32, f16 or bf16.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes or types do not fit.
pub fn kv_dequantize_affine(stream: &mut Stream, cache: &AffineRows, head_dim: usize, dtype: DType) -> Result<Tensor> {
    let form = cache.form(DEQUANTIZE, "cache", head_dim)?;
    let out = stream.empty(dtype, [form.heads as usize, form.capacity as usize, head_dim])?;
    kv_dequantize_affine_into(stream, cache, &out)?;
    Ok(out)
}

/// [`kv_dequantize_affine`] into `out`, which shares no memory with the others and may be strided by head and by row.
pub fn kv_dequantize_affine_into(stream: &mut Stream, cache: &AffineRows, out: &Tensor) -> Result<()> {
    let fits = out.rank() == 3 && out.dtype().is_float() && (out.dim(2) <= 1 || out.strides()[2] == 1);
    check(DEQUANTIZE, fits, || {
        format!("out: got {out:?}, wanted [heads, capacity, head_dim] in f32, f16 or bf16 with a contiguous last axis")
    })?;
    let form = cache.form(DEQUANTIZE, "cache", out.dim(2))?;
    check(DEQUANTIZE, out.shape()[..2] == cache.codes.shape()[..2], || {
        format!("got out {out:?} for codes {:?}, wanted the same heads and capacity", cache.codes)
    })?;
    let mut params = form.params(DEQUANTIZE, out.dim(2), [out.strides()[1], out.strides()[0]])?;
    if out.elements() == 0 {
        return Ok(());
    }
    params.rows = size(DEQUANTIZE, "rows of codes", out.dim(0) * out.dim(1))?;
    let words = size(DEQUANTIZE, "codes", cache.codes.elements())?;
    let scales = cache.scales.dtype();
    let launch = Launch::new(DEQUANTIZE, &params)
        .read(&cache.codes)
        .read(&cache.scales)
        .read(&cache.biases)
        .write(out)
        .flops(2 * out.elements());
    let entry: Entry = match scales {
        DType::F16 => float_entry!(out.dtype(), T => cpu::dequantize::<T, half::f16>),
        DType::BF16 => float_entry!(out.dtype(), T => cpu::dequantize::<T, half::bf16>),
        _ => float_entry!(out.dtype(), T => cpu::dequantize::<T, f32>),
    };
    let aligned = cache.codes.vectors_align(4) && out.vectors_align(EACH as usize);
    stream.launch(launch, entry, || Gpu {
        source: &SOURCE,
        defines: defines(form.bits, form.group_size, CacheLayout::Rows, aligned),
        entry: format!("kv_dequantize_affine_{}_{scales}", out.dtype()),
        threadgroups: [(words * 32 / form.bits / EACH).div_ceil(THREADS), 1, 1],
        threads: [THREADS, 1, 1],
    })
}

const ROWS: &str = "AffineRows";
const QUANTIZE: &str = "kv_quantize_affine";
const DEQUANTIZE: &str = "kv_dequantize_affine";

/// Of a threadgroup, and the elements of a thread; `kernel.metal` has the same.
const THREADS: u32 = 128;
const EACH: u32 = 16;

/// What the kernel is compiled with.
pub(super) fn defines(bits: u32, group_size: u32, layout: CacheLayout, whole: bool) -> String {
    format!("{}#define BITS {bits}\n#define GROUP {group_size}\n#define WHOLE {whole}", layout.define())
}

/// Where a launch that writes tokens puts them in a cache; `ring.h` has the same.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Ring {
    capacity: u32,
    /// The greatest position that the launch writes to a ring.
    latest: Option<i32>,
}

impl Ring {
    /// The layout as parameters have it.
    pub(in crate::ops) fn param(op: &'static str, layout: CacheLayout) -> Result<u32> {
        match layout {
            CacheLayout::Rows => Ok(0),
            CacheLayout::Ring => Ok(1),
            CacheLayout::Pages(_) => Err(Error::argument(
                op,
                "got a cache in pages; codes are kept in rows or in a ring, one sequence's together",
            )),
        }
    }

    pub(in crate::ops) fn of(positions: &[u32], capacity: u32, ring: u32) -> Ring {
        let latest = || positions.iter().map(|&p| p as i32).max().unwrap_or(-1);
        Ring { capacity, latest: (ring != 0).then(latest) }
    }

    /// The row of a position, if it has one: what a newer token of the launch lies over is not written.
    #[inline(always)]
    pub(in crate::ops) fn row(&self, position: u32) -> Option<usize> {
        let Some(latest) = self.latest else { return (position < self.capacity).then_some(position as usize) };
        let there = position as i32 >= 0 && latest.wrapping_sub(position as i32) < self.capacity as i32;
        there.then(|| (position % self.capacity) as usize)
    }
}

kernel_params! {
    /// Strides are elements by row, then by head.
    struct Params {
        /// Of the rows of floats.
        row_strides: [u32; 2],
        code_strides: [u32; 2],
        scale_strides: [u32; 2],
        bias_strides: [u32; 2],
        /// Rows to work on, of all heads.
        rows: u32,
        /// Whether a position is in row `position % capacity`.
        ring: u32,
        heads: u32,
        capacity: u32,
        dim: u32,
        bits: u32,
        group_size: u32,
    }
}

pub(super) static SOURCE: KernelSource =
    KernelSource { name: "kv_quantize_affine", params: &[Params::DECLARATION], body: include_str!("kernel.metal") };
