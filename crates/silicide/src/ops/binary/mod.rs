//! Arithmetic on two tensors, or a tensor and a number, with broadcasting.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::cpu::Entry;
use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_enum, kernel_params};
use crate::ops::check::{broadcast, check, float_entry};
use crate::ops::rows::{packet, whole};
use crate::ops::walk::Walk;
use crate::{DType, Result, Tensor};

kernel_enum! {
    /// What [`binary`] computes.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Binary {
        /// `a + b`.
        Add,
        /// `a - b`.
        Sub,
        /// `a * b`.
        Mul,
        /// `a / b`; not for integers.
        Div,
        /// The greater; NaN where either is NaN.
        Max,
        /// The lesser; NaN where either is NaN.
        Min,
    }
}

/// The second argument of [`binary`].
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a> {
    /// A tensor of the first argument's type, broadcast with it.
    Tensor(&'a Tensor),
    /// One number for all elements, used as it is and not rounded to the tensor's type first.
    Scalar(f32),
}

impl<'a> From<&'a Tensor> for Operand<'a> {
    fn from(t: &'a Tensor) -> Operand<'a> {
        Operand::Tensor(t)
    }
}

impl From<f32> for Operand<'_> {
    fn from(x: f32) -> Self {
        Operand::Scalar(x)
    }
}

/// `a op b`, element by element, after both are broadcast to one shape.
///
/// `a` and `b` are of one type, f32, f16, bf16, i32 or u32, with any strides; `b` may be a number. Axes are matched from
/// the last, and one of size 1 is repeated. Floats are computed in f32 and rounded once; integers wrap. The result is
/// row-major.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes do not broadcast, types do not fit, integers would be
/// divided, or a number is no integer of `a`'s type.
///
/// ```
/// use silicide::{Device, ops};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let x = device.tensor(&[1.0f32, 2.0, 3.0, 4.0], [2, 2])?;
/// let bias = device.tensor(&[10.0f32, 20.0], [2])?;
/// let y = ops::binary(stream, ops::Binary::Add, &x, &bias)?;
/// let y = ops::binary(stream, ops::Binary::Mul, &y, 2.0)?;
/// assert_eq!(y.to_vec::<f32>(stream)?, [22.0, 44.0, 26.0, 48.0]);
/// # Ok(())
/// # }
/// ```
pub fn binary<'a>(stream: &mut Stream, op: Binary, a: &Tensor, b: impl Into<Operand<'a>>) -> Result<Tensor> {
    let b = b.into();
    let shape = match b {
        Operand::Tensor(b) => broadcast(OP, a.shape(), b.shape())?,
        Operand::Scalar(_) => *a.shape(),
    };
    let out = stream.empty(a.dtype(), shape)?;
    binary_into(stream, op, a, b, &out)?;
    Ok(out)
}

/// [`binary`] into `out`, which has the shape that `a` and `b` broadcast to and may be `a` or `b` itself.
pub fn binary_into<'a>(
    stream: &mut Stream,
    op: Binary,
    a: &Tensor,
    b: impl Into<Operand<'a>>,
    out: &Tensor,
) -> Result<()> {
    let dtype = a.dtype();
    let integer = matches!(dtype, DType::I32 | DType::U32);
    check(OP, dtype.is_float() || integer, || format!("a: got {a:?}, wanted f32, f16, bf16, i32 or u32"))?;
    check(OP, !(integer && op == Binary::Div), || format!("division is not for {dtype}; cast to a float first"))?;
    let (b, scalar) = match b.into() {
        Operand::Tensor(b) => (Some(b), 0.0),
        Operand::Scalar(x) => (None, x),
    };
    let range = if dtype == DType::I32 { -2147483648.0..2147483648.0 } else { 0.0..4294967296.0 };
    check(OP, !integer || scalar.fract() == 0.0 && range.contains(&scalar), || {
        format!("b: got {scalar}, wanted a number that {dtype} holds")
    })?;
    let shape = match b {
        Some(b) => {
            check(OP, b.dtype() == dtype, || format!("b: got {b:?}, wanted {dtype} as a is"))?;
            broadcast(OP, a.shape(), b.shape())?
        }
        None => *a.shape(),
    };
    check(OP, *out.shape() == shape && out.dtype() == dtype, || format!("out: got {out:?}, wanted {dtype}{shape}"))?;
    if out.elements() == 0 {
        return Ok(());
    }
    let a = &a.broadcast_to(shape)?;
    let b = b.map(|b| b.broadcast_to(shape)).transpose()?;
    let walk = Walk::elements(OP, &[a, b.as_ref().unwrap_or(a), out])?;
    let params =
        Params { walk, op: op.code(), has_b: b.is_some().into(), scalar, scalar_integer: scalar as i64 as u32 };
    let launch = Launch::new(OP, &params).read(a).read_optional(b.as_ref()).write_in_place(out).flops(out.elements());
    let entry = match dtype {
        DType::I32 => cpu::integers::<i32> as Entry,
        DType::U32 => cpu::integers::<u32>,
        _ => float_entry!(dtype, T => cpu::floats::<T>),
    };
    stream.launch(launch, entry, || {
        let aligned = walk.packets_align(packet(dtype), &[a, b.as_ref().unwrap_or(a), out]);
        let (threadgroups, threads) = walk.steps(if aligned { packet(dtype) } else { 1 });
        let defines = whole(aligned) + &op.define();
        Gpu { source: &SOURCE, defines, entry: format!("binary_{dtype}"), threadgroups, threads }
    })
}

const OP: &str = "binary";

kernel_params! {
    struct Params {
        walk: Walk,
        /// A `Binary`.
        op: u32,
        has_b: u32,
        scalar: f32,
        /// The same number's bits as an integer.
        scalar_integer: u32,
    }
}

pub(super) static SOURCE: KernelSource = KernelSource {
    name: "binary",
    params: &[Walk::DECLARATION, Binary::DECLARATION, Params::DECLARATION],
    body: include_str!("kernel.metal"),
};
