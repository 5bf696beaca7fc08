//! Scaled dot-product attention, for a prompt, a chunk of one, or a single token against a cache.

pub(super) mod cpu;
pub(super) mod nvidia;
#[cfg(test)]
mod tests;

use crate::device::cpu::Entry;
use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::check::{check, float_entry, size};
use crate::{DType, Result, Tensor};

/// How queries weigh keys.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Multiplies every score, commonly `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Which keys a query sees.
    pub mask: Mask<'a>,
    /// A query sees only this many keys, ending with the last that [`mask`](Self::mask) shows it; beside a mask that is a
    /// tensor with the key at its own place, where the last query stands at the last key.
    pub window: Option<usize>,
    /// Scaled scores become `cap * tanh(score / cap)`, before a mask is added.
    pub softcap: Option<f32>,
    /// A logit for each query head, `[query_heads]` in f32, that takes part in the softmax and has no value
    /// (attention sinks).
    pub sinks: Option<&'a Tensor>,
    /// Where keys and values lie in `k` and `v`.
    pub cache: CacheLayout<'a>,
}

/// Where a cache of keys and values has those of each position.
///
/// [`attention`] reads and [`kv_write_with`](crate::ops::kv_write_with) writes by positions, whatever the layout.
#[derive(Clone, Copy, Debug, Default)]
pub enum CacheLayout<'a> {
    /// Position `p` in row `p`.
    #[default]
    Rows,
    /// Position `p` in row `p % rows`: a ring that newer positions write over.
    ///
    /// A row has the newest of its positions that is not past the greatest position of the queries; with
    /// [`Mask::Positions`] alone. Positions that were written over are not seen. So where a chunk of `n` queries is
    /// written before it attends, its first query has a window of `w` keys only if there are `w + n - 1` rows.
    Ring,
    /// Position `p` in row `p % page_size` of page `table[p / page_size]`: the cache is
    /// `[pages, page_size, kv_heads, head_dim]`, any axis but the last strided as one likes, and this is its table, `[n]` in
    /// i32 or u32, read when the launch runs.
    ///
    /// With [`Mask::Positions`] alone. Positions of a page that is not among the pages (-1, say) are not seen and not
    /// written, and so are those past the table.
    Pages(&'a Tensor),
}

impl CacheLayout<'_> {
    /// What tells a kernel of it.
    pub(super) fn define(&self) -> &'static str {
        match self {
            CacheLayout::Rows => "",
            CacheLayout::Ring => "#define RING\n",
            CacheLayout::Pages(_) => "#define PAGES\n",
        }
    }

    pub(super) fn table(&self) -> Option<&Tensor> {
        if let CacheLayout::Pages(table) = self { Some(table) } else { None }
    }

    /// Refuses a table that is none.
    pub(super) fn check(&self, op: &'static str) -> Result<()> {
        self.table().map_or(Ok(()), |t| {
            let fits = t.rank() == 1 && t.is_contiguous() && matches!(t.dtype(), DType::I32 | DType::U32);
            check(op, fits, || format!("table: got {t:?}, wanted i32 or u32 [pages of the sequence], contiguous"))
        })
    }
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug)]
pub enum Mask<'a> {
    /// All of them.
    Full,
    /// Those at or before its own place, where the last query stands at the last key.
    Causal,
    /// Keys `0..=positions[t]` for query `t`: `[queries]` in i32 or u32 below 2^31, read when the launch runs, so that a
    /// recorded plan serves every step. Below 0 it sees none.
    Positions(&'a Tensor),
    /// Those for which the tensor is true: `[queries, keys]` or `[heads, queries, keys]` of bool, where `heads` is the
    /// number of query heads or 1. The last axis is contiguous, the others may have any strides, 0 among them
    /// ([`Tensor::broadcast_to`]). Tiles of it that show nothing cost next to nothing.
    Boolean(&'a Tensor),
    /// All of them, with the tensor added to their scores, but for those where it is negative infinity: a tensor as for
    /// [`Boolean`](Self::Boolean), of f32, f16 or bf16.
    Additive(&'a Tensor),
}

impl<'a> Mask<'a> {
    fn tensor(&self) -> Option<&'a Tensor> {
        if let Mask::Boolean(t) | Mask::Additive(t) = self { Some(t) } else { None }
    }
}

/// `softmax(scale * q k^T) v`, head by head.
///
/// `q` is `[queries, query_heads, head_dim]`, `k` and `v` are `[keys, kv_heads, head_dim]`; query head `h` reads key
/// and value head `h / (query_heads / kv_heads)`. The last axis is contiguous, the others may have any strides, so a
/// cache may be laid out as it likes; [`CacheLayout`] has rings and pages. `q` is f32, f16 or bf16; `k` and `v` share a
/// floating-point type of their own. Head dimensions go to 512. Scores and sums are f32; a query that sees no key gives
/// zeros, and what is not finite touches only the queries that see it. The result is `[queries, query_heads, head_dim]`
/// in `q`'s type, and a query's result does not depend on the other queries.
///
/// On a GPU more than 16 queries in f16 or bf16 have the weights of values rounded to their type.
///
/// Mathematics: Vaswani et al., "Attention Is All You Need", 2017; grouped heads: Ainslie et al., 2023.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes or types do not fit.
///
/// ```
/// use silicide::ops::{self, Attention, CacheLayout, Mask};
/// use silicide::{DType, Device};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let q = device.zeros(DType::F32, [2, 4, 8])?;
/// let k = device.zeros(DType::F32, [2, 1, 8])?;
/// let v = device.tensor(&[1.0f32; 8].into_iter().chain([3.0; 8]).collect::<Vec<_>>(), [2, 1, 8])?;
/// let options = Attention { scale: 0.5, mask: Mask::Causal, window: None, softcap: None, sinks: None, cache: CacheLayout::Rows };
/// let y = ops::attention(stream, &q, &k, &v, options)?.to_vec::<f32>(stream)?;
/// // The first query sees one value, the second the mean of two.
/// assert_eq!((y[0], y[32]), (1.0, 2.0));
/// # Ok(())
/// # }
/// ```
pub fn attention(stream: &mut Stream, q: &Tensor, k: &Tensor, v: &Tensor, options: Attention) -> Result<Tensor> {
    let out = stream.empty(q.dtype(), *q.shape())?;
    attention_into(stream, q, k, v, options, &out)?;
    Ok(out)
}

/// [`attention`] into `out`, which shares no memory with the others.
pub fn attention_into(
    stream: &mut Stream,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    options: Attention,
    out: &Tensor,
) -> Result<()> {
    let Attention { scale, mask, window, softcap, sinks, cache } = options;
    cache.check(OP)?;
    let q_heads = Heads::of("q", q, None)?;
    let k_heads = Heads::of("k", k, cache.table())?;
    let v_heads = Heads::of("v", v, cache.table())?;
    let out_heads = Heads::of("out", out, None)?;
    let dim = q_heads.dim;
    check(OP, dim == k_heads.dim && k.shape() == v.shape() && k.dtype() == v.dtype(), || {
        format!("k, v: got {k:?} and {v:?}, wanted [.., kv_heads, {dim}], both of one shape and type")
    })?;
    check(OP, dim <= MAX_HEAD_DIM, || format!("head_dim: got {dim}, wanted at most {MAX_HEAD_DIM}"))?;
    check(OP, k_heads.heads > 0 && q_heads.heads.is_multiple_of(k_heads.heads), || {
        format!("q: got {} heads, wanted a multiple of the {} key heads", q_heads.heads, k_heads.heads)
    })?;
    check(OP, out.shape() == q.shape() && out.dtype() == q.dtype(), || format!("out: got {out:?}, wanted {q:?}"))?;
    check(OP, softcap.is_none_or(|c| c > 0.0), || format!("softcap: got {softcap:?}, wanted more than 0"))?;
    check(OP, window != Some(0), || "window: got 0, wanted at least 1".into())?;
    if let Some(s) = sinks {
        check(OP, s.shape()[..] == [q_heads.heads as usize] && s.dtype() == DType::F32 && s.is_contiguous(), || {
            format!("sinks: got {s:?}, wanted f32[{}], contiguous", q_heads.heads)
        })?;
    }
    let positions = match mask {
        Mask::Positions(p) => Some(p),
        _ => None,
    };
    if let Some(p) = positions {
        let fits = p.shape()[..] == [q_heads.tokens as usize] && p.is_contiguous();
        check(OP, fits && matches!(p.dtype(), DType::I32 | DType::U32), || {
            format!("positions: got {p:?}, wanted i32 or u32 [{}], contiguous", q_heads.tokens)
        })?;
    }
    let shown = mask.tensor();
    let mask_strides = match shown {
        Some(t) => mask_strides(t, matches!(mask, Mask::Boolean(_)), &q_heads, &k_heads)?,
        None => [0; 2],
    };
    let by_place = matches!(mask, Mask::Causal) || shown.is_some() && window.is_some();
    check(OP, !by_place || q_heads.tokens <= k_heads.tokens, || {
        format!("got {} queries and {} keys; causal queries need a key each", q_heads.tokens, k_heads.tokens)
    })?;
    if !matches!(cache, CacheLayout::Rows) {
        check(OP, positions.is_some(), || format!("cache: got {cache:?} with {mask:?}, wanted Mask::Positions"))?;
        check(OP, k_heads.tokens > 0 || !matches!(cache, CacheLayout::Ring), || {
            "cache: got a ring without rows".into()
        })?;
    }
    if q.elements() == 0 {
        return Ok(());
    }
    let params = Params {
        q_strides: q_heads.strides,
        k_strides: k_heads.strides,
        v_strides: v_heads.strides,
        page_strides: [k_heads.page_stride, v_heads.page_stride],
        mask_strides,
        out_strides: out_heads.strides,
        queries: q_heads.tokens,
        keys: k_heads.tokens,
        q_heads: q_heads.heads,
        kv_heads: k_heads.heads,
        dim,
        mask: match mask {
            _ if by_place => CAUSAL,
            Mask::Positions(_) => POSITIONS,
            _ => FULL,
        },
        window: window.map_or(0, |w| w.min(u32::MAX as usize) as u32),
        has_sinks: sinks.is_some().into(),
        scale,
        softcap: softcap.unwrap_or(0.0),
        parts: 1,
        ring: matches!(cache, CacheLayout::Ring).into(),
        masked: shown.is_some().into(),
        page_size: k_heads.page_size,
        pages: k_heads.pages,
    };
    let launch = |params: &Params| {
        let launch = Launch::new(OP, params).read(q).read(k).read(v).read_optional(positions).read_optional(sinks);
        let launch = launch.read_optional(cache.table()).read_optional(shown);
        let launch = launch.flops(4 * q.elements() * k_heads.tokens as usize);
        if cache.table().is_none() {
            return launch;
        }
        // The pages belong to other sequences too.
        let cached = k_heads.tokens as usize * k_heads.heads as usize * dim as usize;
        launch.reads_bytes(q.elements() * q.dtype().size() + 2 * cached * k.dtype().size())
    };
    if stream.device().as_cpu().is_some() {
        let entry = float_entry!(q.dtype(), T => cpu::run::<T>);
        return stream.launch(launch(&params).write(out), entry, || unreachable!("the stream is the CPU's"));
    }
    let form = GpuForm::of(&params, q.dtype());
    let params = Params { parts: form.parts, ..params };
    let aligned = [q, k, v].iter().all(|t| t.vectors_align(4)) && dim.is_multiple_of(SPAN);
    let variant = Variant {
        q: q.dtype(),
        kv: k.dtype(),
        lanes: form.lanes,
        heads: form.heads,
        whole: aligned,
        cache: cache.define(),
        mask: shown.map(Tensor::dtype),
    };
    let gpu = |entry: &str, threadgroups, threads| Gpu {
        source: if form.tiled { &TILED } else { &SOURCE },
        defines: variant.defines(),
        entry: entry.into(),
        threadgroups,
        threads: [threads, 1, 1],
    };
    let tensor_cores = nvidia::fits(stream.device(), q, k, v, &params);
    let memory = stream.device().nvidia_threadgroup_memory();
    let prefill = match form.tiled && tensor_cores {
        true => {
            let tiles = params.q_heads * params.queries.div_ceil(128);
            let processors = stream.device().processors().unwrap_or(1);
            nvidia::Prefill::of(dim, tiles as f32 / processors as f32, memory)
        }
        false => None,
    };
    if let Some(prefill) = prefill {
        let launch = launch(&params).read_optional(None).write(out).choice("attention_prefill", "");
        let threadgroups = [params.queries.div_ceil(prefill.queries()), params.q_heads, 1];
        return stream.launch(launch.threadgroup_memory(prefill.threadgroup_memory()), NO_CPU, || Gpu {
            source: &nvidia::PREFILL,
            defines: variant.defines() + &prefill.defines(),
            ..gpu("attention_prefill", threadgroups, prefill.threads())
        });
    }
    if form.tiled {
        let (query_tiles, key_tiles) = (params.queries.div_ceil(TILE), params.keys.div_ceil(TILE));
        let classes = match shown {
            None => None,
            Some(mask) => {
                let heads = if mask_strides[1] == 0 { 1 } else { params.q_heads };
                let classes = stream.empty(DType::U8, [heads, query_tiles, key_tiles].map(|n| n as usize))?;
                let launch = Launch::new(OP, &params).read(mask).write(&classes);
                stream.launch(launch, NO_CPU, || {
                    gpu("attention_classes", [key_tiles.div_ceil(4).max(1), query_tiles, heads], 128)
                })?;
                Some(classes)
            }
        };
        let launch = launch(&params).read_optional(classes.as_ref()).write(out).choice("attention_tiled", "");
        let threadgroups = [query_tiles, params.q_heads, 1];
        return stream.launch(launch, NO_CPU, || gpu("attention_tiled", threadgroups, 128));
    }
    let tensor = if tensor_cores { nvidia::Decode::of(&params, memory) } else { None };
    let parts = tensor.as_ref().map_or(form.parts, |t| t.parts);
    let params = Params { parts, ..params };
    let (memory, few) = match &tensor {
        Some(tensor) => {
            let few = Gpu {
                source: &nvidia::DECODE,
                defines: variant.defines() + &tensor.defines(),
                ..gpu("attention_decode", [params.queries, params.kv_heads, parts], nvidia::THREADS)
            };
            (tensor.threadgroup_memory(), few)
        }
        None => {
            let threadgroups = [params.queries, params.q_heads / form.heads, parts];
            (0, gpu("attention", threadgroups, 32 * SIMDGROUPS))
        }
    };
    let launch = |params: &Params| launch(params).threadgroup_memory(memory);
    if parts == 1 {
        // No part is written.
        return stream.launch(launch(&params).write(out).read_optional(None), NO_CPU, || few);
    }
    let shape = [params.queries, params.q_heads, parts, part_floats(dim)].map(|n| n as usize);
    let partial = stream.empty(DType::F32, shape)?;
    let joined = Launch::new(OP, &params).read(&partial).read_optional(sinks).write(out);
    stream.launch(launch(&params).read_optional(None).write(&partial), NO_CPU, || few)?;
    stream.launch(joined, NO_CPU, || {
        gpu("attention_join", [params.queries, params.q_heads, dim.div_ceil(128)], join_threads(parts, 4))
    })
}

/// Floats of a part of the keys; `parts.h` has the same.
pub(in crate::ops) fn part_floats(dim: u32) -> u32 {
    4 + dim.next_multiple_of(4)
}

/// Threads that join parts, of which a lane has so many elements; `parts.h` has the same.
pub(in crate::ops) fn join_threads(parts: u32, elements: u32) -> u32 {
    32 * parts.div_ceil(if elements > 4 { 8 } else { 16 })
}

/// `attention_join` takes no more.
const MOST_PARTS: u32 = 64;

const NO_CPU: Entry = |_| unreachable!("the stream is a GPU's");

/// How a GPU shares the work out; the kernels say what the numbers are.
struct GpuForm {
    /// The form for many queries.
    tiled: bool,
    lanes: u32,
    heads: u32,
    parts: u32,
}

impl GpuForm {
    fn of(p: &Params, dtype: DType) -> GpuForm {
        // So many threadgroups keep a large GPU busy; a part has some keys for every simdgroup.
        const ENOUGH: u32 = 512;
        const LEAST_KEYS: u32 = 32;
        let lanes = p.dim.div_ceil(SPAN).next_power_of_two().max(4);
        let shared = p.q_heads / p.kv_heads;
        // All heads of a threadgroup lie in its memory at the end.
        let heads = [4, 2].into_iter().find(|&h| shared.is_multiple_of(h) && h * lanes <= 32).unwrap_or(1);
        let keys = if p.window == 0 { p.keys } else { p.window.min(p.keys) };
        // Of a prompt there are enough queries. Otherwise their number has no say, so that one gives what a few give.
        let parts = match p.queries {
            ..=16 => ENOUGH.div_ceil(p.q_heads / heads).min(keys.div_ceil(LEAST_KEYS)).clamp(1, MOST_PARTS),
            _ => 1,
        };
        let tiled = p.queries > 16 && has_tiles(dtype, lanes);
        GpuForm { tiled, lanes, heads, parts }
    }
}

/// Whether there is the form for many queries: it rounds weights to the type of queries, and a tile of longer or wider heads
/// would not fit.
fn has_tiles(q: DType, lanes: u32) -> bool {
    q != DType::F32 && lanes <= 16
}

/// What the kernels are compiled for.
#[derive(Clone, Copy)]
pub(super) struct Variant {
    pub(super) q: DType,
    pub(super) kv: DType,
    pub(super) lanes: u32,
    pub(super) heads: u32,
    pub(super) whole: bool,
    /// [`CacheLayout::define`].
    pub(super) cache: &'static str,
    pub(super) mask: Option<DType>,
}

impl Variant {
    pub(super) fn defines(&self) -> String {
        let Variant { q, kv, lanes, heads, whole, cache, mask } = self;
        let (masked, mask) = match mask {
            None => ("", "uchar"),
            Some(DType::Bool) => ("#define MASKED\n", "uchar"),
            Some(float) => ("#define MASKED\n", float.msl()),
        };
        let (q, kv) = (q.msl(), kv.msl());
        format!(
            "{cache}{masked}#define MASK {mask}\n#define SCALAR {q}\n#define CACHE {kv}\n#define LANES {lanes}\n\
             #define HEADS {heads}\n#define WHOLE {whole}"
        )
    }

    /// Whether `tiled.metal` is ever compiled for it.
    #[cfg(test)]
    pub(super) fn has_tiles(&self) -> bool {
        has_tiles(self.q, self.lanes)
    }
}

const OP: &str = "attention";
const MAX_HEAD_DIM: u32 = 512;
/// Simdgroups that share the keys of one query, and elements of a head that a lane has; `kernel.metal` has the same.
const SIMDGROUPS: u32 = 8;
const SPAN: u32 = 16;
/// Queries of a threadgroup of the form for many.
const TILE: u32 = 32;

/// Which keys a query sees, as kernels have it.
pub(super) const FULL: u32 = 0;
pub(super) const CAUSAL: u32 = 1;
pub(super) const POSITIONS: u32 = 2;

/// A tensor as `[tokens, heads, dim]`; strides are elements by token and by head.
struct Heads {
    tokens: u32,
    heads: u32,
    dim: u32,
    strides: [u32; 2],
    /// Of a cache in pages; tokens are then as many as its table has room for.
    page_stride: u32,
    page_size: u32,
    pages: u32,
}

impl Heads {
    fn of(name: &'static str, t: &Tensor, table: Option<&Tensor>) -> Result<Heads> {
        let lead = table.is_some() as usize;
        let fits = t.rank() == 3 + lead && (t.dim(-1) <= 1 || t.strides()[2 + lead] == 1) && t.dtype().is_float();
        check(OP, fits, || {
            let axes = if table.is_some() { "pages, page_size" } else { "tokens" };
            format!("{name}: got {t:?}, wanted [{axes}, heads, head_dim] of floats with a contiguous last axis")
        })?;
        let dim = |axis: usize| size(OP, name, t.shape()[axis]);
        let stride = |axis: usize| size(OP, name, t.strides()[axis]);
        let mut heads = Heads {
            tokens: dim(lead)?,
            heads: dim(1 + lead)?,
            dim: dim(2 + lead)?,
            strides: [stride(lead)?, stride(1 + lead)?],
            page_stride: 0,
            page_size: 1,
            pages: 0,
        };
        if let Some(table) = table {
            heads.page_size = heads.tokens;
            heads.pages = dim(0)?;
            heads.page_stride = stride(0)?;
            check(OP, heads.page_size > 0, || format!("{name}: got {t:?}, pages without rows"))?;
            // Without a page there is nothing to see.
            let pages = if heads.pages == 0 { 0 } else { table.dim(0) };
            heads.tokens = size(OP, "table", pages * heads.page_size as usize)?;
        }
        Ok(heads)
    }
}

/// The strides of a mask by query and by head.
fn mask_strides(t: &Tensor, boolean: bool, q: &Heads, k: &Heads) -> Result<[u32; 2]> {
    let (heads, queries, keys) = (q.heads as usize, q.tokens as usize, k.tokens as usize);
    let shape = &t.shape()[..];
    let fits = shape == [queries, keys] || shape == [1, queries, keys] || shape == [heads, queries, keys];
    let contiguous = keys <= 1 || t.rank() > 0 && t.strides()[t.rank() - 1] == 1;
    let of_type = if boolean { t.dtype() == DType::Bool } else { t.dtype().is_float() };
    check(OP, fits && contiguous && of_type, || {
        let of = if boolean { "bool" } else { "floats" };
        format!(
            "mask: got {t:?}, wanted [{queries}, {keys}], or [1, {queries}, {keys}] or [{heads}, {queries}, {keys}], of {of} \
             with a contiguous last axis"
        )
    })?;
    let lead = t.rank() - 2;
    let by_head = if lead == 1 && t.dim(0) > 1 { t.strides()[0] } else { 0 };
    Ok([size(OP, "mask", t.strides()[lead])?, size(OP, "mask", by_head)?])
}

kernel_params! {
    /// Strides are elements by token and by head, those of a mask by query and by head.
    struct Params {
        q_strides: [u32; 2],
        k_strides: [u32; 2],
        v_strides: [u32; 2],
        out_strides: [u32; 2],
        /// Of keys and of values.
        page_strides: [u32; 2],
        mask_strides: [u32; 2],
        queries: u32,
        keys: u32,
        q_heads: u32,
        kv_heads: u32,
        dim: u32,
        mask: u32,
        window: u32,
        has_sinks: u32,
        scale: f32,
        softcap: f32,
        /// That the keys of a query are computed in.
        parts: u32,
        ring: u32,
        masked: u32,
        page_size: u32,
        pages: u32,
    }
}

pub(super) static SOURCE: KernelSource =
    KernelSource { name: "attention", params: &[Params::DECLARATION], body: include_str!("kernel.metal") };

pub(super) static TILED: KernelSource =
    KernelSource { name: "attention/tiled.metal", params: &[Params::DECLARATION], body: include_str!("tiled.metal") };
