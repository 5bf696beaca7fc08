//! Conversion between element types.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::check::check;
use crate::ops::rows::whole;
use crate::ops::walk::Walk;
use crate::ops::{copy, copy_into};
use crate::{DType, Result, Tensor};

/// The elements of `x`, of any type and with any strides, as `dtype`; row-major.
///
/// Floats are rounded to nearest, ties to even, by way of f32. A float becomes an integer by dropping its fraction;
/// one past the integer's range becomes the nearest integer of the range, and NaN 0. An integer becomes a narrower one
/// by dropping its upper bits. Anything but 0, NaN included, is true.
///
/// # Errors
///
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
///
/// ```
/// use silicide::{DType, Device, ops};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let x = device.tensor(&[1.9f32, -1.9, 300.0, f32::NAN], [4])?;
/// assert_eq!(ops::cast(stream, &x, DType::I32)?.to_vec::<i32>(stream)?, [1, -1, 300, 0]);
/// assert_eq!(ops::cast(stream, &x, DType::U8)?.to_vec::<u8>(stream)?, [1, 0, 255, 0]);
/// # Ok(())
/// # }
/// ```
pub fn cast(stream: &mut Stream, x: &Tensor, dtype: DType) -> Result<Tensor> {
    if dtype == x.dtype() {
        return copy(stream, x);
    }
    let out = stream.empty(dtype, *x.shape())?;
    cast_into(stream, x, &out)?;
    Ok(out)
}

/// [`cast`] into `out`, to its type; it may lie over `x` exactly where the types differ and have one size.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes differ.
pub fn cast_into(stream: &mut Stream, x: &Tensor, out: &Tensor) -> Result<()> {
    check(OP, x.shape() == out.shape(), || format!("out: got {out:?}, wanted {}", x.shape()))?;
    if x.dtype() == out.dtype() {
        return copy_into(stream, x, out);
    }
    if out.elements() == 0 {
        return Ok(());
    }
    let walk = Walk::elements(OP, &[x, out])?;
    let params = Params { walk, to: out.dtype() as u32, pad: 0 };
    stream.launch(Launch::new(OP, &params).read(x).write_in_place(out), cpu::run, || {
        const PACKET: usize = 4;
        let aligned = walk.packets_align(PACKET, &[x, out]);
        let (threadgroups, threads) = walk.steps(if aligned { PACKET } else { 1 });
        Gpu { source: &SOURCE, defines: whole(aligned), entry: format!("cast_{}", x.dtype()), threadgroups, threads }
    })
}

const OP: &str = "cast";

/// [`DType`] as the kernel has it, in the same order.
const DTYPE_DECLARATION: &str = "enum class DType : uint { F32, F16, BF16, U8, I8, U16, U32, I32, I64, Bool };";

kernel_params! {
    struct Params {
        walk: Walk,
        /// A `DType`.
        to: u32,
        /// Makes the size a multiple of 8.
        pad: u32,
    }
}

pub(super) static SOURCE: KernelSource = KernelSource {
    name: "cast",
    params: &[Walk::DECLARATION, DTYPE_DECLARATION, Params::DECLARATION],
    body: include_str!("kernel.metal"),
};
