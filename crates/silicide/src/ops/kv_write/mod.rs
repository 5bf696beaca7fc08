//! Writing new keys and values into a cache.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
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
    let source = |name: &'static str, t: &Tensor| {
        let fits = t.rank() == 3 && (t.dim(2) <= 1 || t.strides()[2] == 1) && t.dtype().is_float();
        check(OP, fits, || {
            format!("{name}: got {t:?}, wanted [rows, heads, head_dim] of floats with a contiguous last axis")
        })?;
        Ok([size(OP, name, t.strides()[0])?, size(OP, name, t.strides()[1])?])
    };
    let (k_strides, v_strides) = (source("keys", keys)?, source("values", values)?);
    let (k_cache_strides, v_cache_strides) = (source("key_cache", key_cache)?, source("value_cache", value_cache)?);
    check(OP, keys.shape() == values.shape() && keys.dtype() == values.dtype(), || {
        format!("got keys {keys:?} and values {values:?}, wanted one shape and type")
    })?;
    check(OP, key_cache.shape() == value_cache.shape() && key_cache.dtype() == value_cache.dtype(), || {
        format!("got caches {key_cache:?} and {value_cache:?}, wanted one shape and type")
    })?;
    check(OP, keys.shape()[1..] == key_cache.shape()[1..], || {
        format!("got keys {keys:?} for a cache {key_cache:?}, wanted the same heads and head_dim")
    })?;
    let fits = slots.shape()[..] == keys.shape()[..1] && slots.is_contiguous();
    check(OP, fits && matches!(slots.dtype(), DType::I32 | DType::U32), || {
        format!("slots: got {slots:?}, wanted i32 or u32 [{}], contiguous", keys.dim(0))
    })?;
    if keys.elements() == 0 {
        return Ok(());
    }
    let params = Params {
        k_strides,
        v_strides,
        k_cache_strides,
        v_cache_strides,
        tokens: size(OP, "keys", keys.dim(0))?,
        heads: size(OP, "keys", keys.dim(1))?,
        dim: size(OP, "keys", keys.dim(2))?,
        capacity: size(OP, "key_cache", key_cache.dim(0))?,
    };
    let launch = Launch::new(OP, &params)
        .read(keys)
        .read(values)
        .read(slots)
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
        let threads = block(if aligned { params.dim / n as u32 } else { params.dim }, params.heads, params.tokens);
        Gpu {
            source: &SOURCE,
            defines: whole(aligned),
            entry: format!("kv_write_{}_{}", keys.dtype(), key_cache.dtype()),
            threadgroups: [params.tokens.div_ceil(threads[2]), params.heads.div_ceil(threads[1]), 1],
            threads,
        }
    })
}

const OP: &str = "kv_write";

kernel_params! {
    /// Strides are elements by row and by head.
    struct Params {
        k_strides: [u32; 2],
        v_strides: [u32; 2],
        k_cache_strides: [u32; 2],
        v_cache_strides: [u32; 2],
        tokens: u32,
        heads: u32,
        dim: u32,
        capacity: u32,
    }
}

pub(super) static SOURCE: KernelSource =
    KernelSource { name: "kv_write", params: &[Params::DECLARATION], body: include_str!("kernel.metal") };
