//! Writing new keys and values into a cache.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::attention::CacheLayout;
use crate::ops::check::{check, float_entry, size};
use crate::ops::rows::{block, packet, packets_align, whole};
use crate::{DType, Result, Tensor};

/// Writes row `t` of `keys` and of `values` to row `slots[t]` of their caches.
///
/// `keys` and `values` are `[tokens, heads, head_dim]` in f32, f16 or bf16, `key_cache` and `value_cache`
/// `[capacity, heads, head_dim]` in one floating-point type, to which elements are rounded; all may be strided by token
/// and by head. `slots` is `[tokens]` in i32 or u32 and is read when the launch runs. Slots must differ; a slot outside
/// the cache writes nothing.
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
/// let (k, v) = (device.tensor(&[1.0f32, 2.0], [1, 1, 2])?, device.tensor(&[3.0f32, 4.0], [1, 1, 2])?);
/// let (kc, vc) = (device.zeros(DType::F32, [3, 1, 2])?, device.zeros(DType::F32, [3, 1, 2])?);
/// ops::kv_write(stream, &k, &v, &device.tensor(&[1u32], [1])?, &kc, &vc)?;
/// assert_eq!(kc.to_vec::<f32>(stream)?, [0.0, 0.0, 1.0, 2.0, 0.0, 0.0]);
/// # Ok(())
/// # }
/// ```
pub fn kv_write(
    stream: &mut Stream,
    keys: &Tensor,
    values: &Tensor,
    slots: &Tensor,
    key_cache: &Tensor,
    value_cache: &Tensor,
) -> Result<()> {
    kv_write_with(stream, keys, values, slots, CacheLayout::Rows, key_cache, value_cache)
}

/// [`kv_write`] to where `layout` has each position, for [`attention`](super::attention) with the same layout.
///
/// `positions` are `[tokens]` in i32 or u32 below 2^31, and must differ. Of tokens that would share a row of a ring the one
/// with the greatest position is written, so there may be more tokens than rows. A position below 0 writes nothing, nor does
/// one that the cache has no place for. Pages that are written must differ.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes or types do not fit.
///
/// ```
/// use silicide::ops::{self, CacheLayout};
/// use silicide::{DType, Device};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let k = device.tensor(&[1.0f32, 2.0], [2, 1, 1])?;
/// let (kc, vc) = (device.zeros(DType::F32, [3, 1, 1])?, device.zeros(DType::F32, [3, 1, 1])?);
/// let positions = device.tensor(&[5u32, 6], [2])?;
/// ops::kv_write_with(stream, &k, &k, &positions, CacheLayout::Ring, &kc, &vc)?;
/// assert_eq!(kc.to_vec::<f32>(stream)?, [2.0, 0.0, 1.0]);
/// # Ok(())
/// # }
/// ```
pub fn kv_write_with(
    stream: &mut Stream,
    keys: &Tensor,
    values: &Tensor,
    positions: &Tensor,
    layout: CacheLayout,
    key_cache: &Tensor,
    value_cache: &Tensor,
) -> Result<()> {
    layout.check(OP)?;
    let lead = layout.table().is_some() as usize;
    let strides = |name: &'static str, t: &Tensor, lead: usize| {
        let fits = t.rank() == 3 + lead && (t.dim(-1) <= 1 || t.strides()[2 + lead] == 1) && t.dtype().is_float();
        check(OP, fits, || {
            let axes = if lead == 1 { "pages, page_size" } else { "rows" };
            format!("{name}: got {t:?}, wanted [{axes}, heads, head_dim] of floats with a contiguous last axis")
        })?;
        Ok([size(OP, name, t.strides()[lead])?, size(OP, name, t.strides()[1 + lead])?])
    };
    let (k_strides, v_strides) = (strides("keys", keys, 0)?, strides("values", values, 0)?);
    let k_cache_strides = strides("key_cache", key_cache, lead)?;
    let v_cache_strides = strides("value_cache", value_cache, lead)?;
    check(OP, keys.shape() == values.shape() && keys.dtype() == values.dtype(), || {
        format!("got keys {keys:?} and values {values:?}, wanted one shape and type")
    })?;
    check(OP, key_cache.shape() == value_cache.shape() && key_cache.dtype() == value_cache.dtype(), || {
        format!("got caches {key_cache:?} and {value_cache:?}, wanted one shape and type")
    })?;
    check(OP, keys.shape()[1..] == key_cache.shape()[1 + lead..], || {
        format!("got keys {keys:?} for a cache {key_cache:?}, wanted the same heads and head_dim")
    })?;
    let fits = positions.shape()[..] == keys.shape()[..1] && positions.is_contiguous();
    check(OP, fits && matches!(positions.dtype(), DType::I32 | DType::U32), || {
        let name = if matches!(layout, CacheLayout::Rows) { "slots" } else { "positions" };
        format!("{name}: got {positions:?}, wanted i32 or u32 [{}], contiguous", keys.dim(0))
    })?;
    if keys.elements() == 0 {
        return Ok(());
    }
    let (page_strides, page_size, pages, capacity) = match layout.table() {
        None => ([0; 2], 1, 0, 0),
        Some(table) => {
            let strides =
                [size(OP, "key_cache", key_cache.strides()[0])?, size(OP, "value_cache", value_cache.strides()[0])?];
            let (pages, page_size) = (key_cache.dim(0), key_cache.dim(1));
            // Without a page there is no place for anything.
            let capacity = if pages == 0 { 0 } else { table.elements() * page_size };
            (strides, size(OP, "key_cache", page_size)?.max(1), size(OP, "key_cache", pages)?, capacity)
        }
    };
    let params = Params {
        k_strides,
        v_strides,
        k_cache_strides,
        v_cache_strides,
        tokens: size(OP, "keys", keys.dim(0))?,
        heads: size(OP, "keys", keys.dim(1))?,
        dim: size(OP, "keys", keys.dim(2))?,
        capacity: size(OP, "key_cache", if lead == 0 { key_cache.dim(0) } else { capacity })?,
        ring: matches!(layout, CacheLayout::Ring).into(),
        page_strides,
        page_size,
        pages,
    };
    check(OP, params.ring == 0 || params.capacity > 0, || "got a ring without rows".into())?;
    let launch = Launch::new(OP, &params)
        .read(keys)
        .read(values)
        .read(positions)
        .read_optional(layout.table())
        .write(key_cache)
        .write(value_cache)
        .writes_bytes(2 * keys.elements() * key_cache.dtype().size());
    let entry = match key_cache.dtype() {
        DType::F16 => float_entry!(keys.dtype(), T => cpu::run::<T, half::f16>),
        DType::BF16 => float_entry!(keys.dtype(), T => cpu::run::<T, half::bf16>),
        _ => float_entry!(keys.dtype(), T => cpu::run::<T, f32>),
    };
    stream.launch(launch, entry, || {
        let n = packet(keys.dtype()).max(packet(key_cache.dtype()));
        let aligned = packets_align(keys.dim(2), n, &[keys, values, key_cache, value_cache].map(Some));
        let width = if aligned { params.dim / n as u32 } else { params.dim };
        let mut threads = block(width, params.heads, params.tokens);
        // Whole simdgroups look for the newest token of a ring, which many threadgroups would do again and again.
        if params.ring != 0 && threads.iter().product::<u32>() % 32 != 0 {
            threads = block(width.next_multiple_of(32), params.heads, params.tokens);
        }
        let most = if params.ring == 0 { u32::MAX } else { 512 };
        Gpu {
            source: &SOURCE,
            defines: format!("{}{}", layout.define(), whole(aligned)),
            entry: format!("kv_write_{}_{}", keys.dtype(), key_cache.dtype()),
            threadgroups: [params.tokens.div_ceil(threads[2]).min(most), params.heads.div_ceil(threads[1]), 1],
            threads,
        }
    })
}

const OP: &str = "kv_write";

kernel_params! {
    /// Strides are elements by row and by head, by page those of keys and of values.
    struct Params {
        k_strides: [u32; 2],
        v_strides: [u32; 2],
        k_cache_strides: [u32; 2],
        v_cache_strides: [u32; 2],
        tokens: u32,
        heads: u32,
        dim: u32,
        /// Rows, or positions that a table of pages has.
        capacity: u32,
        ring: u32,
        page_strides: [u32; 2],
        page_size: u32,
        pages: u32,
    }
}

pub(super) static SOURCE: KernelSource =
    KernelSource { name: "kv_write", params: &[Params::DECLARATION], body: include_str!("kernel.metal") };
