//! Solving unit lower triangular systems, of which the chunks of a delta rule are made.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::check::{check, float_entry, size};
use crate::{Result, Tensor};

/// The most unknowns of a system that [`triangular_solve`] takes.
const MOST: usize = 4096;

/// `X` of `L X = B`, where `L` is lower triangular with a diagonal of ones, by forward substitution.
///
/// `l` is `[batch, n, n]` and `b` is `[batch, n, m]`, of one type (f32, f16 or bf16), strided by batch and by row with a
/// contiguous last axis. Of `l` only what lies below the diagonal is read. Sums are kept in f32 in the order of the
/// unknowns, and the result is rounded once. `n` is at most 4096. The result is row-major, of `b`'s shape and type.
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
/// let l = device.tensor(&[1.0f32, 0.0, 3.0, 1.0], [1, 2, 2])?;
/// let b = device.tensor(&[2.0f32, 10.0], [1, 2, 1])?;
/// let x = ops::triangular_solve(stream, &l, &b)?;
/// assert_eq!(x.to_vec::<f32>(stream)?, [2.0, 4.0]);
/// # Ok(())
/// # }
/// ```
pub fn triangular_solve(stream: &mut Stream, l: &Tensor, b: &Tensor) -> Result<Tensor> {
    let out = stream.empty(b.dtype(), *b.shape())?;
    triangular_solve_into(stream, l, b, &out)?;
    Ok(out)
}

/// [`triangular_solve`] into `out`, which may be `b` itself.
pub fn triangular_solve_into(stream: &mut Stream, l: &Tensor, b: &Tensor, out: &Tensor) -> Result<()> {
    let strides = |name: &'static str, t: &Tensor| {
        let fits = t.rank() == 3 && (t.dim(2) <= 1 || t.strides()[2] == 1) && t.dtype().is_float();
        check(OP, fits, || {
            format!("{name}: got {t:?}, wanted [batch, rows, columns] of floats with a contiguous last axis")
        })?;
        Ok([size(OP, name, t.strides()[0])?, size(OP, name, t.strides()[1])?])
    };
    let (l_strides, b_strides, out_strides) = (strides("l", l)?, strides("b", b)?, strides("out", out)?);
    let n = b.dim(1);
    check(OP, l.shape()[..] == [b.dim(0), n, n] && l.dtype() == b.dtype(), || {
        format!("l: got {l:?}, wanted {}[{}, {n}, {n}]", b.dtype(), b.dim(0))
    })?;
    check(OP, out.shape() == b.shape() && out.dtype() == b.dtype(), || format!("out: got {out:?}, wanted {b:?}"))?;
    let in_place = out.buffer().is_same(b.buffer()) && out.byte_range() == b.byte_range();
    let same = (0..3).all(|i| b.shape()[i] == 1 || b.strides()[i] == out.strides()[i]);
    check(OP, !in_place || same || b.elements() == 0, || {
        format!("out: got the memory of b in another order ({} and {})", out.strides(), b.strides())
    })?;
    check(OP, n <= MOST, || format!("l: got {n} unknowns, wanted {MOST} at most"))?;
    if b.elements() == 0 {
        return Ok(());
    }
    let (n, m) = (size(OP, "n", n)?, size(OP, "m", b.dim(2))?);
    // 16 KiB of unknowns, which a threadgroup holds in f32; columns lie along a simdgroup.
    let columns = (MOST as u32 / n.next_power_of_two()).clamp(1, 32);
    let params = Params { l_strides, b_strides, out_strides, batch: size(OP, "batch", b.dim(0))?, n, m, columns };
    let launch = Launch::new(OP, &params)
        .read(b)
        .read_apart_optional(Some(l))
        .write_in_place(out)
        .flops(b.elements() * n as usize);
    stream.launch(launch, float_entry!(b.dtype(), T => cpu::run::<T>), || Gpu {
        source: &SOURCE,
        defines: String::new(),
        entry: format!("triangular_solve_{}", b.dtype()),
        threadgroups: [m.div_ceil(columns), params.batch, 1],
        threads: [columns, 256 / columns, 1],
    })
}

const OP: &str = "triangular_solve";

kernel_params! {
    /// Strides are elements by batch and by row.
    struct Params {
        l_strides: [u32; 2],
        b_strides: [u32; 2],
        out_strides: [u32; 2],
        batch: u32,
        n: u32,
        m: u32,
        /// Columns of `b` that a threadgroup solves for.
        columns: u32,
    }
}

pub(super) static SOURCE: KernelSource =
    KernelSource { name: "triangular_solve", params: &[Params::DECLARATION], body: include_str!("kernel.metal") };
