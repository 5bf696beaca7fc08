//! Keys and values as a few bits an element, behind a random rotation.

mod codebook;
mod cpu;
pub(super) mod nvidia;
#[cfg(test)]
mod tests;

use crate::device::cpu::Entry;
use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::attention::CacheLayout;
use crate::ops::check::{check, float_entry, size};
use crate::ops::hadamard_transform::check_signs;
use crate::ops::kv_quantize_affine::Ring;
use crate::ops::rows::packets_align;
use crate::{DType, Device, Result, Tensor};
use nvidia::Many;

/// How a [`KvCodec`] codes a row.
#[derive(Clone, Copy, Debug)]
pub struct KvCodecOptions<'a> {
    /// Bits a coordinate: 4, 5, 6 or 8.
    pub bits: u32,
    /// Signs that a row is multiplied by before its transform, as [`Hadamard`](super::Hadamard) takes them. None leaves
    /// the rotation without anything random: a row that resembles a row of Hadamard's matrix is then coded badly.
    pub signs: Option<&'a Tensor>,
    /// Norms a row: 1, or 2 for one of each half of the rotated row.
    pub norms: usize,
}

impl Default for KvCodecOptions<'_> {
    /// 4 bits, no signs, one norm.
    fn default() -> Self {
        KvCodecOptions { bits: 4, signs: None, norms: 1 }
    }
}

/// What [`kv_quantize`] and [`kv_dequantize`] share: a rotation and the levels that rotated coordinates are rounded to.
///
/// A row `x` of `head_dim` is rotated to `y = H(signs * x)`, with `H` the orthonormal
/// [`hadamard_transform`](super::hadamard_transform), so that its coordinates are spread like normal numbers of
/// variance `|y|^2 / head_dim`. What is kept is the norm `|y|`, and for every coordinate of `y * sqrt(head_dim) / |y|`
/// the nearest of the `2^bits` levels that are best for N(0, 1). Of normal data the relative squared error is 9.50e-3
/// at 4 bits, 2.51e-3 at 5, 6.44e-4 at 6 and 4.12e-5 at 8. With two norms a half of the rotated row stands for the row.
///
/// Codes number the levels from the least. They are packed without gaps, code `i` of a row in bits `bits * i` and
/// following, the lowest bit first: 8 coordinates fill `bits` bytes.
///
/// Mathematics: Zandieh and others, "TurboQuant: Online Vector Quantization with Near-optimal Distortion Rate", 2025;
/// levels after Lloyd and Max.
#[derive(Clone, Debug)]
pub struct KvCodec {
    head_dim: usize,
    bits: u32,
    norms: usize,
    pub(in crate::ops) signs: Option<Tensor>,
    levels: Vec<f32>,
    /// f32 `[2, levels]`: the levels; their midpoints, which are one fewer, and an infinity.
    pub(in crate::ops) table: Tensor,
    /// u8 `[BINS]`: how many midpoints all numbers of a bin are above.
    starts: Tensor,
    /// u32 `[places_of(bits)]`: what `many.cu` has codes from.
    places: Tensor,
}

impl KvCodec {
    /// A codec for rows of `head_dim`: 64, 128, 256 or 512.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`](crate::Error::Argument) for another `head_dim`, number of bits or norms, or signs that do
    /// not fit.
    pub fn new(device: &Device, head_dim: usize, options: KvCodecOptions) -> Result<KvCodec> {
        let KvCodecOptions { bits, signs, norms } = options;
        let supported = head_dim.is_power_of_two() && (64..=512).contains(&head_dim);
        check(CODEC, supported, || format!("head_dim: got {head_dim}, wanted 64, 128, 256 or 512"))?;
        check(CODEC, [4, 5, 6, 8].contains(&bits), || format!("bits: got {bits}, wanted 4, 5, 6 or 8"))?;
        check(CODEC, [1, 2].contains(&norms), || format!("norms: got {norms}, wanted 1 or 2"))?;
        signs.map_or(Ok(()), |signs| check_signs(CODEC, "signs", signs, head_dim))?;
        let exact = codebook::lloyd_max(bits);
        let levels: Vec<f32> = exact.iter().map(|&c| c as f32).collect();
        let midpoints: Vec<f64> = codebook::midpoints(&exact).collect();
        let rounded = midpoints.iter().map(|&m| m as f32).chain([f32::INFINITY]);
        let table: Vec<f32> = levels.iter().copied().chain(rounded).collect();
        let places = codebook::places(&midpoints);
        let places = device.tensor(&places, [places.len()])?;
        let starts = device.tensor(&codebook::starts(&table[levels.len()..]), [codebook::BINS])?;
        let table = device.tensor(&table, [2, levels.len()])?;
        Ok(KvCodec { head_dim, bits, norms, signs: signs.cloned(), levels, table, starts, places })
    }

    /// Elements of a row.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Bits a coordinate.
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// Bytes of the codes of a row.
    pub fn row_bytes(&self) -> usize {
        self.head_dim * self.bits as usize / 8
    }

    /// The levels, rising; a code is an index into them.
    pub fn levels(&self) -> &[f32] {
        &self.levels
    }

    /// A zeroed cache for `heads` heads of `capacity` rows: codes, and norms.
    pub fn cache(&self, heads: usize, capacity: usize) -> Result<(Tensor, Tensor)> {
        let device = self.table.device();
        let codes = device.zeros(DType::U8, [heads, capacity, self.row_bytes()])?;
        let norms = match self.norms {
            1 => device.zeros(DType::F32, [heads, capacity])?,
            n => device.zeros(DType::F32, [heads, capacity, n])?,
        };
        Ok((codes, norms))
    }

    /// What both kernels take, from `rows` (`[slots, heads, head_dim]` in either order) with these strides.
    pub(in crate::ops) fn params(
        &self,
        op: &'static str,
        codes: &Tensor,
        norms: &Tensor,
        row_strides: [usize; 2],
    ) -> Result<Params> {
        let bytes = self.row_bytes();
        let fits = codes.rank() == 3 && codes.dtype() == DType::U8 && codes.dim(2) == bytes && codes.strides()[2] == 1;
        check(op, fits, || {
            format!("codes: got {codes:?}, wanted u8 [heads, capacity, {bytes}] with a contiguous last axis")
        })?;
        check(op, codes.elements() == 0 || codes.vectors_align(4), || {
            format!(
                "codes: got {codes:?} with strides {}, wanted rows that start at multiples of 4 bytes",
                codes.strides()
            )
        })?;
        let (heads, capacity) = (codes.dim(0), codes.dim(1));
        let wanted = if self.norms == 1 { vec![heads, capacity] } else { vec![heads, capacity, self.norms] };
        check(op, norms.dtype() == DType::F32 && norms.shape()[..] == wanted, || {
            format!("norms: got {norms:?}, wanted f32 {wanted:?}")
        })?;
        let (c, n) = (codes.strides(), norms.strides());
        let half = n.get(2).copied().unwrap_or(0);
        Ok(Params {
            row_strides: [size(op, "rows", row_strides[0])?, size(op, "rows", row_strides[1])?],
            code_strides: [size(op, "codes", c[1] / 4)?, size(op, "codes", c[0] / 4)?],
            norm_strides: [size(op, "norms", n[1])?, size(op, "norms", n[0])?, size(op, "norms", half)?],
            rows: 0,
            ring: 0,
            heads: size(op, "codes", heads)?,
            capacity: size(op, "codes", capacity)?,
            dim: self.head_dim as u32,
            bits: self.bits,
            norms: self.norms as u32,
            unit: ((self.head_dim / self.norms) as f64).sqrt() as f32,
            rotation_scale: (1.0 / (self.head_dim as f64).sqrt()) as f32,
            has_signs: self.signs.is_some().into(),
            rotated: 0,
        })
    }

    fn gpu(&self, entry: String, threadgroups: u32, layout: CacheLayout, whole: bool) -> Gpu {
        Gpu {
            source: &SOURCE,
            defines: defines(self.head_dim, layout, whole),
            entry,
            threadgroups: [threadgroups, 1, 1],
            threads: [32 * SIMDGROUPS, 1, 1],
        }
    }
}

/// Writes row `t` of `x`, as codes and a norm, to row `slots[t]` of a cache; see [`KvCodec`].
///
/// `x` is `[tokens, heads, head_dim]` in f32, f16 or bf16 and may be strided by token and by head. `codes` is u8
/// `[heads, capacity, row_bytes]`, its rows at multiples of 4 bytes, and `norms` f32 `[heads, capacity]`, or `[heads,
/// capacity, 2]` for two norms; [`KvCodec::cache`] makes both, and any strides between rows will do. `slots` is
/// `[tokens]` in i32 or u32 and is read when the launch runs. Slots must differ; a slot outside the cache writes
/// nothing.
///
/// A row of zeros has norm 0 and comes back as zeros. A row with a NaN or an infinity, or with a norm past 1.8e19,
/// whose square is past f32, has norm NaN (each half for itself where there are two) and comes back as NaN. Norms below
/// 1e-18 lose digits or become 0.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes or types do not fit.
///
/// ```
/// use silicide::{DType, Device, ops};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let signs = ops::hadamard_signs(&device, 64, 1)?;
/// let codec = ops::KvCodec::new(&device, 64, ops::KvCodecOptions { bits: 5, signs: Some(&signs), norms: 1 })?;
/// let (codes, norms) = codec.cache(2, 16)?;
/// assert_eq!(codes.shape()[..], [2, 16, 40]);
///
/// let keys: Vec<f32> = (0..2 * 64).map(|i| (i as f32).sin()).collect();
/// let slots = device.tensor(&[3u32], [1])?;
/// ops::kv_quantize(stream, &device.tensor(&keys, [1, 2, 64])?, &slots, &codec, &codes, &norms)?;
///
/// let (codes, norms) = (codes.slice(1, 3..4)?, norms.slice(1, 3..4)?);
/// let back = ops::kv_dequantize(stream, &codes, &norms, &codec, ops::KvDomain::Original, DType::F32)?;
/// let back = back.to_vec::<f32>(stream)?;
/// assert!(back.iter().zip(&keys).all(|(a, b)| (a - b).abs() < 0.2));
/// # Ok(())
/// # }
/// ```
pub fn kv_quantize(
    stream: &mut Stream,
    x: &Tensor,
    slots: &Tensor,
    codec: &KvCodec,
    codes: &Tensor,
    norms: &Tensor,
) -> Result<()> {
    kv_quantize_with(stream, x, slots, CacheLayout::Rows, codec, codes, norms)
}

/// [`kv_quantize`] to where `layout` has each position, for
/// [`quantized_attention`](super::quantized_attention) with the same layout.
///
/// `positions` are `[tokens]` in i32 or u32 below 2^31, and must differ. Of tokens that would share a row of a ring the one
/// with the greatest position is written, so there may be more tokens than rows. A position below 0 writes nothing.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes or types do not fit, and for a cache in pages.
pub fn kv_quantize_with(
    stream: &mut Stream,
    x: &Tensor,
    positions: &Tensor,
    layout: CacheLayout,
    codec: &KvCodec,
    codes: &Tensor,
    norms: &Tensor,
) -> Result<()> {
    let dim = codec.head_dim;
    let fits = x.rank() == 3 && x.dtype().is_float() && x.dim(2) == dim && x.strides()[2] == 1;
    check(QUANTIZE, fits, || {
        format!("x: got {x:?}, wanted [tokens, heads, {dim}] in f32, f16 or bf16 with a contiguous last axis")
    })?;
    let mut params = codec.params(QUANTIZE, codes, norms, [x.strides()[0], x.strides()[1]])?;
    check(QUANTIZE, x.dim(1) == codes.dim(0), || format!("got x {x:?} for codes {codes:?}, wanted the same heads"))?;
    let fits = positions.shape()[..] == x.shape()[..1] && positions.is_contiguous();
    check(QUANTIZE, fits && matches!(positions.dtype(), DType::I32 | DType::U32), || {
        let name = if matches!(layout, CacheLayout::Rows) { "slots" } else { "positions" };
        format!("{name}: got {positions:?}, wanted i32 or u32 [{}], contiguous", x.dim(0))
    })?;
    params.ring = Ring::param(QUANTIZE, layout)?;
    if x.elements() == 0 || codes.elements() == 0 {
        return Ok(());
    }
    params.rows = size(QUANTIZE, "rows of x", x.dim(0) * x.dim(1))?;
    let rows = params.rows as usize;
    let whole = codes.vectors_align(16) && packets_align(dim, EACH as usize, &[Some(x)]);
    let launch = |tables: &[&Tensor]| {
        let launch = Launch::new(QUANTIZE, &params).read(x).read(positions);
        let launch = tables.iter().fold(launch, |launch, table| launch.read(table));
        launch
            .read_optional(codec.signs.as_ref())
            .write(codes)
            .write(norms)
            .writes_bytes(rows * (codec.row_bytes() + 4 * codec.norms))
            .flops(x.elements() * (dim.ilog2() + codec.bits + 4) as usize)
    };
    if let Some(many) = Many::of(stream.device(), QUANTIZE, &params, x.dim(0) as u32, x.dtype(), whole) {
        let launch = launch(&[&codec.places]).threadgroup_memory(many.memory);
        return stream.launch(launch, NO_CPU, || many.gpu(QUANTIZE, x.dtype(), layout));
    }
    stream.launch(launch(&[&codec.table, &codec.starts]), float_entry!(x.dtype(), T => cpu::quantize::<T>), || {
        // Each brings the table and looks for the newest token of a ring, so there are no more than fill a large GPU. One token
        // has its lanes.
        let lanes = |rows: u32| (rows * (params.dim / EACH)).div_ceil(32 * SIMDGROUPS);
        let threadgroups = lanes(params.rows).min(MOST).max(lanes(params.heads));
        codec.gpu(format!("kv_quantize_{}", x.dtype()), threadgroups, layout, whole)
    })
}

/// The space that [`kv_dequantize`] gives rows in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvDomain {
    /// That of the rows which were quantised.
    Original,
    /// Behind the rotation, where queries that were rotated alike have the same dot products with keys, and sums of
    /// values can be rotated back once.
    Rotated,
}

/// The rows of a cache that [`kv_quantize`] wrote: `[heads, capacity, head_dim]` in f32, f16 or bf16.
///
/// `codes` and `norms` are as there, or slices of them: [`Tensor::slice`] along axis 1 takes some of the rows.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes or types do not fit.
pub fn kv_dequantize(
    stream: &mut Stream,
    codes: &Tensor,
    norms: &Tensor,
    codec: &KvCodec,
    domain: KvDomain,
    dtype: DType,
) -> Result<Tensor> {
    check(DEQUANTIZE, codes.rank() == 3, || format!("codes: got {codes:?}, wanted u8 [heads, capacity, bytes]"))?;
    let out = stream.empty(dtype, [codes.dim(0), codes.dim(1), codec.head_dim])?;
    kv_dequantize_into(stream, codes, norms, codec, domain, &out)?;
    Ok(out)
}

/// [`kv_dequantize`] into `out`, which shares no memory with the others and may be strided by head and by row.
pub fn kv_dequantize_into(
    stream: &mut Stream,
    codes: &Tensor,
    norms: &Tensor,
    codec: &KvCodec,
    domain: KvDomain,
    out: &Tensor,
) -> Result<()> {
    let dim = codec.head_dim;
    let fits = out.rank() == 3 && out.dtype().is_float() && out.dim(2) == dim && out.strides()[2] == 1;
    check(DEQUANTIZE, fits, || {
        format!("out: got {out:?}, wanted [heads, capacity, {dim}] in f32, f16 or bf16 with a contiguous last axis")
    })?;
    let mut params = codec.params(DEQUANTIZE, codes, norms, [out.strides()[1], out.strides()[0]])?;
    check(DEQUANTIZE, out.shape()[..2] == codes.shape()[..2], || {
        format!("got out {out:?} for codes {codes:?}, wanted the same heads and capacity")
    })?;
    if out.elements() == 0 {
        return Ok(());
    }
    params.rows = size(DEQUANTIZE, "rows of codes", codes.dim(0) * codes.dim(1))?;
    params.rotated = (domain == KvDomain::Rotated).into();
    let launch = Launch::new(DEQUANTIZE, &params)
        .read(codes)
        .read(norms)
        .read(&codec.table)
        .read_optional(codec.signs.as_ref())
        .write(out)
        .flops(out.elements() * if domain == KvDomain::Rotated { 1 } else { dim.ilog2() as usize + 2 });
    let whole = codes.vectors_align(16) && packets_align(dim, EACH as usize, &[Some(out)]);
    // A product is of 32 elements that lie together and 32 that lie 32 further on: of one half of the row, that is.
    let apart = domain == KvDomain::Rotated || dim / codec.norms >= 64;
    if let Some(many) = Many::of(stream.device(), DEQUANTIZE, &params, params.capacity, out.dtype(), whole && apart) {
        let launch = launch.threadgroup_memory(many.memory);
        return stream.launch(launch, NO_CPU, || many.gpu(DEQUANTIZE, out.dtype(), CacheLayout::Rows));
    }
    stream.launch(launch, float_entry!(out.dtype(), T => cpu::dequantize::<T>), || {
        let threadgroups = params.rows.div_ceil(SIMDGROUPS);
        codec.gpu(format!("kv_dequantize_{}", out.dtype()), threadgroups, CacheLayout::Rows, false)
    })
}

const NO_CPU: Entry = |_| unreachable!("the stream is a GPU's");

const QUANTIZE: &str = "kv_quantize";
const DEQUANTIZE: &str = "kv_dequantize";
const CODEC: &str = "KvCodec";

/// In a threadgroup, each with rows of its own; the kernel has it too.
const SIMDGROUPS: u32 = 4;

/// Elements that a lane quantises; the kernel has it too.
const EACH: u32 = 16;

/// Threadgroups that quantise, where one token has fewer lanes.
const MOST: u32 = 1056;

/// What the kernel is compiled with.
pub(super) fn defines(head_dim: usize, layout: CacheLayout, whole: bool) -> String {
    format!("{}#define DIM {head_dim}\n#define WHOLE {whole}", layout.define())
}

kernel_params! {
    /// Strides are by row, then by head.
    pub(in crate::ops) struct Params {
        /// Of the rows of floats, in elements.
        row_strides: [u32; 2],
        /// In words of 4 bytes.
        code_strides: [u32; 2],
        /// In elements; last from one norm of a row to the next.
        norm_strides: [u32; 3],
        /// Rows to work on, of all heads.
        rows: u32,
        /// Whether a position is in row `position % capacity`.
        ring: u32,
        heads: u32,
        capacity: u32,
        dim: u32,
        bits: u32,
        norms: u32,
        /// The norm that a row, or a half of one, has where its elements have variance 1.
        unit: f32,
        /// One over the root of `dim`.
        rotation_scale: f32,
        has_signs: u32,
        /// Whether rows are wanted as they are behind the rotation.
        rotated: u32,
    }
}

pub(super) static SOURCE: KernelSource =
    KernelSource { name: "kv_quantize", params: &[Params::DECLARATION], body: include_str!("kernel.metal") };
