//! Softmax of rows, with a scale and an additive mask.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::check::{check, float_entry, same_or_f32, size};
use crate::ops::rows::{Teams, packet, whole};
use crate::ops::walk::Walk;
use crate::{Result, Tensor};

/// What [`softmax`] does before.
#[derive(Clone, Copy, Debug)]
pub struct Softmax<'a> {
    /// Multiplies `x`.
    pub scale: f32,
    /// Added after the scale: of `x`'s type or f32, broadcast to `x`'s shape. Negative infinity leaves an element out.
    pub mask: Option<&'a Tensor>,
}

impl Default for Softmax<'_> {
    fn default() -> Self {
        Softmax { scale: 1.0, mask: None }
    }
}

/// `e^s / sum(e^s)` over the last axis, with `s = scale * x + mask`.
///
/// `x` is f32, f16 or bf16 of one axis or more, with any strides. The arithmetic is in f32 and rounded once. A row with
/// nothing but negative infinities gives zeros; a NaN or positive infinity in a row makes all of it NaN. The result is
/// row-major.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes or types do not fit.
///
/// ```
/// use silicide::{Device, ops};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let x = device.tensor(&[1.0f32, 1.0, 7.0, 7.0], [2, 2])?;
/// let mask = device.tensor(&[0.0f32, f32::NEG_INFINITY], [2])?;
/// let y = ops::softmax(stream, &x, ops::Softmax { mask: Some(&mask), ..Default::default() })?;
/// assert_eq!(y.to_vec::<f32>(stream)?, [1.0, 0.0, 1.0, 0.0]);
/// # Ok(())
/// # }
/// ```
pub fn softmax(stream: &mut Stream, x: &Tensor, options: Softmax) -> Result<Tensor> {
    let out = stream.empty(x.dtype(), *x.shape())?;
    softmax_into(stream, x, options, &out)?;
    Ok(out)
}

/// [`softmax`] into `out`, which may be `x` itself.
pub fn softmax_into(stream: &mut Stream, x: &Tensor, options: Softmax, out: &Tensor) -> Result<()> {
    let dtype = x.dtype();
    check(OP, dtype.is_float() && x.rank() > 0, || format!("x: got {x:?}, wanted rows of f32, f16 or bf16"))?;
    check(OP, out.shape() == x.shape() && out.dtype() == dtype, || format!("out: got {out:?}, wanted {x:?}"))?;
    let mask = match options.mask {
        Some(mask) => {
            same_or_f32(OP, "mask", mask, dtype)?;
            let wide = mask.broadcast_to(*x.shape());
            Some(wide.map_err(|_| {
                crate::Error::argument(OP, format!("mask: got {mask:?}, wanted one that broadcasts to {}", x.shape()))
            })?)
        }
        None => None,
    };
    if out.elements() == 0 {
        return Ok(());
    }
    let walk = Walk::rows(OP, &[x, mask.as_ref().unwrap_or(x), out])?;
    let len = size(OP, "the last axis", x.dim(-1))?;
    let teams = Teams::new(walk.row_count(), len, dtype, 2);
    let aligned = walk.packets_align(packet(dtype), &[x, mask.as_ref().unwrap_or(x), out]);
    let params = Params { walk, scale: options.scale, has_mask: mask.is_some().into(), width: teams.width, pad: 0 };
    let launch =
        Launch::new(OP, &params).read(x).read_optional(mask.as_ref()).write_in_place(out).flops(5 * x.elements());
    let mask_dtype = mask.as_ref().map_or(dtype, Tensor::dtype);
    let entry = match mask_dtype == dtype {
        true => float_entry!(dtype, T => cpu::run::<T, T>),
        false => float_entry!(dtype, T => cpu::run::<T, f32>),
    };
    stream.launch(launch, entry, || Gpu {
        source: &SOURCE,
        defines: whole(aligned),
        entry: format!("softmax_{dtype}_{mask_dtype}"),
        threadgroups: teams.threadgroups,
        threads: teams.threads,
    })
}

const OP: &str = "softmax";

kernel_params! {
    struct Params {
        walk: Walk,
        scale: f32,
        has_mask: u32,
        /// Threads of a row.
        width: u32,
        /// Makes the size a multiple of 8.
        pad: u32,
    }
}

pub(super) static SOURCE: KernelSource = KernelSource {
    name: "softmax",
    params: &[Walk::DECLARATION, Params::DECLARATION],
    body: include_str!("kernel.metal"),
};
