//! Comparisons of two tensors, or a tensor and a number, with broadcasting.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::cpu::Entry;
use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_enum, kernel_params};
use crate::ops::Operand;
use crate::ops::check::{broadcast, check, float_entry};
use crate::ops::fill::bits;
use crate::ops::rows::whole;
use crate::ops::walk::Walk;
use crate::{DType, Result, Shape, Tensor};

kernel_enum! {
    /// What [`compare`] asks. Nothing but [`NotEqual`](Compare::NotEqual) is true of NaN.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Compare {
        /// `a == b`; -0 and 0 are equal.
        Equal,
        /// `a != b`.
        NotEqual,
        /// `a < b`.
        Less,
        /// `a <= b`.
        LessEqual,
        /// `a > b`.
        Greater,
        /// `a >= b`.
        GreaterEqual,
    }
}

/// Whether `a` and `b` compare so, element by element, after both are broadcast to one shape.
///
/// `a` and `b` are of one type, any but bool, with any strides; `b` may be a number, used as it is and not rounded to a
/// float type first. Axes are matched from the last, and one of size 1 is repeated. The result is bool and row-major.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes do not broadcast, types do not fit, or a number is none that
/// an integer type holds.
///
/// ```
/// use silicide::{Device, ops};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let rows = ops::arange(stream, silicide::DType::I32, 0.0, 1.0, 3)?;
/// let causal = ops::compare(stream, ops::Compare::GreaterEqual, &rows.reshape([3, 1])?, &rows)?;
/// assert_eq!(causal.to_vec::<u8>(stream)?, [1, 0, 0, 1, 1, 0, 1, 1, 1]);
/// # Ok(())
/// # }
/// ```
pub fn compare<'a>(stream: &mut Stream, op: Compare, a: &Tensor, b: impl Into<Operand<'a>>) -> Result<Tensor> {
    let b = b.into();
    let out = stream.empty(DType::Bool, compared(a, b)?)?;
    compare_into(stream, op, a, b, &out)?;
    Ok(out)
}

/// [`compare`] into `out`, a bool view of any strides that shares no memory with the others.
pub fn compare_into<'a>(
    stream: &mut Stream,
    op: Compare,
    a: &Tensor,
    b: impl Into<Operand<'a>>,
    out: &Tensor,
) -> Result<()> {
    let b = b.into();
    let (dtype, shape) = (a.dtype(), compared(a, b)?);
    check(OP, *out.shape() == shape && out.dtype() == DType::Bool, || format!("out: got {out:?}, wanted bool{shape}"))?;
    if out.elements() == 0 {
        return Ok(());
    }
    let a = &a.broadcast_to(shape)?;
    let (b, scalar) = match b {
        Operand::Tensor(b) => (Some(b.broadcast_to(shape)?), 0.0),
        Operand::Scalar(x) => (None, x),
    };
    let integer = if dtype.is_float() { 0 } else { bits(OP, "b", dtype, scalar.into())? };
    let params = Params {
        walk: Walk::elements(OP, &[a, b.as_ref().unwrap_or(a), out])?,
        integer: integer as i64,
        scalar,
        op: op.code(),
        has_b: b.is_some().into(),
        pad: 0,
    };
    let launch = Launch::new(OP, &params).read(a).read_optional(b.as_ref()).write(out);
    let entry = match dtype {
        DType::U8 => cpu::integers::<u8> as Entry,
        DType::I8 => cpu::integers::<i8>,
        DType::U16 => cpu::integers::<u16>,
        DType::U32 => cpu::integers::<u32>,
        DType::I32 => cpu::integers::<i32>,
        DType::I64 => cpu::integers::<i64>,
        _ => float_entry!(dtype, T => cpu::floats::<T>),
    };
    stream.launch(launch, entry, || {
        let n = (16 / dtype.size()).max(4);
        let aligned = params.walk.packets_align(n, &[a, b.as_ref().unwrap_or(a), out]);
        let (threadgroups, threads) = params.walk.steps(if aligned { n } else { 1 });
        let defines = whole(aligned) + &op.define();
        Gpu { source: &SOURCE, defines, entry: format!("compare_{dtype}"), threadgroups, threads }
    })
}

/// The shape of the result.
fn compared(a: &Tensor, b: Operand) -> Result<Shape> {
    check(OP, a.dtype() != DType::Bool, || format!("a: got {a:?}, wanted numbers"))?;
    match b {
        Operand::Tensor(b) => {
            check(OP, b.dtype() == a.dtype(), || format!("b: got {b:?}, wanted {} as a is", a.dtype()))?;
            broadcast(OP, a.shape(), b.shape())
        }
        Operand::Scalar(_) => Ok(*a.shape()),
    }
}

const OP: &str = "compare";

kernel_params! {
    struct Params {
        walk: Walk,
        /// The number beside integers.
        integer: i64,
        /// The number beside floats.
        scalar: f32,
        /// A `Compare`.
        op: u32,
        has_b: u32,
        /// Makes the size a multiple of 8.
        pad: u32,
    }
}

pub(super) static SOURCE: KernelSource = KernelSource {
    name: "compare",
    params: &[Walk::DECLARATION, Compare::DECLARATION, Params::DECLARATION],
    body: include_str!("kernel.metal"),
};
