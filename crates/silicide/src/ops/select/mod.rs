//! One of two elements, as a condition says.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::cpu::Entry;
use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::Operand;
use crate::ops::check::{broadcast, check};
use crate::ops::fill::bits;
use crate::ops::rows::whole;
use crate::ops::walk::Walk;
use crate::{DType, Error, Result, Shape, Tensor};

/// `condition ? a : b`, element by element, after all are broadcast to one shape.
///
/// `condition` is bool; `a` and `b` are of one type, any, and one of them may be a number, rounded to the other's type.
/// All have any strides. Axes are matched from the last, and one of size 1 is repeated. The result is row-major.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes do not broadcast, types do not fit, or a number is none of
/// the type.
///
/// ```
/// use silicide::{Device, ops};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let x = device.tensor(&[1.0f32, -2.0, 3.0], [3])?;
/// let positive = ops::compare(stream, ops::Compare::Greater, &x, 0.0)?;
/// let y = ops::select(stream, &positive, &x, f32::NEG_INFINITY)?;
/// assert_eq!(y.to_vec::<f32>(stream)?, [1.0, f32::NEG_INFINITY, 3.0]);
/// # Ok(())
/// # }
/// ```
pub fn select<'a>(
    stream: &mut Stream,
    condition: &Tensor,
    a: impl Into<Operand<'a>>,
    b: impl Into<Operand<'a>>,
) -> Result<Tensor> {
    let (a, b) = (a.into(), b.into());
    let (dtype, shape) = selected(condition, a, b)?;
    let out = stream.empty(dtype, shape)?;
    select_into(stream, condition, a, b, &out)?;
    Ok(out)
}

/// [`select`] into `out`, which has the shape that all broadcast to and may be `a` or `b` itself.
pub fn select_into<'a>(
    stream: &mut Stream,
    condition: &Tensor,
    a: impl Into<Operand<'a>>,
    b: impl Into<Operand<'a>>,
    out: &Tensor,
) -> Result<()> {
    let (a, b) = (a.into(), b.into());
    let (dtype, shape) = selected(condition, a, b)?;
    check(OP, *out.shape() == shape && out.dtype() == dtype, || format!("out: got {out:?}, wanted {dtype}{shape}"))?;
    if out.elements() == 0 {
        return Ok(());
    }
    let part = |name, x| match x {
        Operand::Tensor(t) => Ok((Some(t.broadcast_to(shape)?), 0)),
        Operand::Scalar(x) => Ok::<_, Error>((None, bits(OP, name, dtype, x.into())?)),
    };
    let condition = &condition.broadcast_to(shape)?;
    let ((a, a_bits), (b, b_bits)) = (part("a", a)?, part("b", b)?);
    let params = Params {
        // A number walks as the output does, and nothing is read there.
        walk: Walk::elements(OP, &[condition, a.as_ref().unwrap_or(out), b.as_ref().unwrap_or(out), out])?,
        a: a_bits,
        b: b_bits,
        has_a: a.is_some().into(),
        has_b: b.is_some().into(),
    };
    let launch = Launch::new(OP, &params)
        .read(condition)
        .read_optional(a.as_ref())
        .read_optional(b.as_ref())
        .write_in_place(out);
    let entry = match dtype.size() {
        1 => cpu::run::<u8> as Entry,
        2 => cpu::run::<u16>,
        4 => cpu::run::<u32>,
        _ => cpu::run::<i64>,
    };
    stream.launch(launch, entry, || {
        let n = (16 / dtype.size()).max(4);
        let tensors = [condition, a.as_ref().unwrap_or(out), b.as_ref().unwrap_or(out), out];
        let aligned = params.walk.packets_align(n, &tensors);
        let (threadgroups, threads) = params.walk.steps(if aligned { n } else { 1 });
        let entry = format!("select_{}", 8 * dtype.size());
        Gpu { source: &SOURCE, defines: whole(aligned), entry, threadgroups, threads }
    })
}

/// The type and shape of the result.
fn selected(condition: &Tensor, a: Operand, b: Operand) -> Result<(DType, Shape)> {
    check(OP, condition.dtype() == DType::Bool, || format!("condition: got {condition:?}, wanted bool"))?;
    let (dtype, shape) = match (a, b) {
        (Operand::Tensor(a), Operand::Tensor(b)) => {
            check(OP, a.dtype() == b.dtype(), || format!("b: got {b:?}, wanted {} as a is", a.dtype()))?;
            (a.dtype(), broadcast(OP, a.shape(), b.shape())?)
        }
        (Operand::Tensor(t), _) | (_, Operand::Tensor(t)) => (t.dtype(), *t.shape()),
        _ => return Err(Error::argument(OP, "got two numbers, wanted a tensor for one of them; full makes one")),
    };
    Ok((dtype, broadcast(OP, condition.shape(), &shape)?))
}

const OP: &str = "select";

kernel_params! {
    struct Params {
        walk: Walk,
        /// The bits of numbers.
        a: u64,
        b: u64,
        has_a: u32,
        has_b: u32,
    }
}

pub(super) static SOURCE: KernelSource = KernelSource {
    name: "select",
    params: &[Walk::DECLARATION, Params::DECLARATION],
    body: include_str!("kernel.metal"),
};
