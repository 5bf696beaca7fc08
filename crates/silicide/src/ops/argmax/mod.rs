//! The place of the greatest element of each row.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::{DeviceKind, Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::check::{check, float_entry, size};
use crate::ops::parts::{self, PART};
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
    let len = size(OP, "the last axis", x.dim(-1))? as usize;
    let walk = Walk::rows(OP, &[x])?;
    let on_gpu = stream.device().kind() != DeviceKind::Cpu;
    let parts = if on_gpu { len.div_ceil(PART) } else { 1 };
    let (rows, params) = (walk.row_count() as usize, Params { walk, parts: parts as u32, pad: 0 });
    let threadgroups = size(OP, "threadgroups", rows * parts)?;
    // Keys with indices, as in a sort.
    let bests = if parts > 1 { Some(stream.empty(DType::I64, [rows, parts])?) } else { None };
    let gpu = |entry: String, threadgroups, threads| Gpu {
        source: &SOURCE,
        defines: String::new(),
        entry,
        threadgroups: [threadgroups, 1, 1],
        threads: [threads, 1, 1],
    };
    let launch = Launch::new(OP, &params).read(x).write_in_place_optional(bests.as_ref()).write(out);
    stream.launch(launch, float_entry!(dtype, T => cpu::run::<T>), || {
        gpu(format!("argmax_{dtype}"), threadgroups, parts::threads(len))
    })?;
    let Some(bests) = bests else { return Ok(()) };
    let launch = Launch::new(OP, &params).read(&bests).write(out);
    stream.launch(
        launch,
        |_| unreachable!("the CPU takes a row as a whole"),
        || gpu("argmax_join".into(), rows as u32, parts.div_ceil(4).next_multiple_of(32).min(256) as u32),
    )
}

const OP: &str = "argmax";

kernel_params! {
    struct Params {
        walk: Walk,
        /// Parts that a row is taken in.
        parts: u32,
        /// Makes the size a multiple of 8.
        pad: u32,
    }
}

pub(super) static SOURCE: KernelSource = KernelSource {
    name: "argmax",
    params: &[Walk::DECLARATION, Params::DECLARATION],
    body: include_str!("kernel.metal"),
};
