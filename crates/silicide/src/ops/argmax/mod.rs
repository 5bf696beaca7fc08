//! The place of the greatest element of each row.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::check::{check, float_entry, size};
use crate::ops::walk::Walk;
use crate::{DType, Result, Shape, Tensor};

/// The index of the greatest element along the last axis, the lowest index of equals.
///
/// `x` is f32, f16 or bf16 of one axis or more, with any strides; the result is u32 in `x`'s shape without its last axis.
/// NaN counts as greater than every number, so that a broken row shows itself; -0 and 0 are equal.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where types do not fit, or rows are empty.
///
/// ```
/// use silicide::{Device, ops};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let logits = device.tensor(&[1.0f32, 5.0, 5.0, 9.0, 2.0, 3.0], [2, 3])?;
/// assert_eq!(ops::argmax(stream, &logits)?.to_vec::<u32>(stream)?, [1, 0]);
/// # Ok(())
/// # }
/// ```
pub fn argmax(stream: &mut Stream, x: &Tensor) -> Result<Tensor> {
    let leading = x.rank().saturating_sub(1);
    let shape = Shape::new(&x.shape()[..leading]).expect("a shape's start is a shape");
    let out = stream.empty(DType::U32, shape)?;
    argmax_into(stream, x, &out)?;
    Ok(out)
}

/// [`argmax`] into `out`, which is contiguous and shares no memory with `x`.
pub fn argmax_into(stream: &mut Stream, x: &Tensor, out: &Tensor) -> Result<()> {
    let dtype = x.dtype();
    check(OP, dtype.is_float() && x.rank() > 0, || format!("x: got {x:?}, wanted rows of f32, f16 or bf16"))?;
    check(OP, x.dim(-1) > 0, || format!("x: got {x:?}, wanted a last axis of 1 or more"))?;
    let leading = &x.shape()[..x.rank() - 1];
    check(OP, out.shape()[..] == *leading && out.dtype() == DType::U32 && out.is_contiguous(), || {
        format!("out: got {out:?}, wanted u32{leading:?}, contiguous")
    })?;
    if out.elements() == 0 {
        return Ok(());
    }
    let len = size(OP, "the last axis", x.dim(-1))?;
    let params = Params { walk: Walk::rows(OP, &[x])? };
    let launch = Launch::new(OP, &params).read(x).write(out);
    stream.launch(launch, float_entry!(dtype, T => cpu::run::<T>), || Gpu {
        source: &SOURCE,
        defines: String::new(),
        entry: format!("argmax_{dtype}"),
        threadgroups: [params.walk.row_count(), 1, 1],
        threads: [len.div_ceil(4).next_multiple_of(32).min(1024), 1, 1],
    })
}

const OP: &str = "argmax";

kernel_params! {
    struct Params {
        walk: Walk,
    }
}

pub(super) static SOURCE: KernelSource = KernelSource {
    name: "argmax",
    params: &[Walk::DECLARATION, Params::DECLARATION],
    body: include_str!("kernel.metal"),
};
