//! Scaling of rows to unit length.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::check::{check, float_entry, size};
use crate::ops::rows::{Teams, packet, whole};
use crate::ops::walk::Walk;
use crate::{Result, Tensor};

/// `x * rsqrt(sum(x^2) + eps)` over the last axis.
///
/// `x` is f32, f16 or bf16 of one axis or more, with any strides, such as the query heads inside a fused projection. The
/// sum is kept in f32 and the result is rounded once. The result is row-major. The form is that of transformers and
/// flash-linear-attention, which put `eps` under the root.
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
/// let x = device.tensor(&[3.0f32, 4.0, 0.0, 0.0], [2, 2])?;
/// let y = ops::l2_norm(stream, &x, 1e-6)?.to_vec::<f32>(stream)?;
/// assert!((y[0] - 0.6).abs() < 1e-6 && (y[1] - 0.8).abs() < 1e-6 && y[2..] == [0.0, 0.0]);
/// # Ok(())
/// # }
/// ```
pub fn l2_norm(stream: &mut Stream, x: &Tensor, eps: f32) -> Result<Tensor> {
    let out = stream.empty(x.dtype(), *x.shape())?;
    l2_norm_into(stream, x, eps, &out)?;
    Ok(out)
}

/// [`l2_norm`] into `out`, which may be `x` itself.
pub fn l2_norm_into(stream: &mut Stream, x: &Tensor, eps: f32, out: &Tensor) -> Result<()> {
    let dtype = x.dtype();
    check(OP, dtype.is_float() && x.rank() > 0, || format!("x: got {x:?}, wanted rows of f32, f16 or bf16"))?;
    check(OP, out.shape() == x.shape() && out.dtype() == dtype, || format!("out: got {out:?}, wanted {x:?}"))?;
    check(OP, eps >= 0.0, || format!("eps: got {eps}, wanted 0 or more"))?;
    if out.elements() == 0 {
        return Ok(());
    }
    let walk = Walk::rows(OP, &[x, out])?;
    let len = size(OP, "the last axis", x.dim(-1))?;
    let teams = Teams::new(walk.row_count(), len, dtype, 2);
    let aligned = walk.packets_align(packet(dtype), &[x, out]);
    let params = Params { walk, eps, width: teams.width };
    let launch = Launch::new(OP, &params).read(x).write_in_place(out).flops(3 * x.elements());
    stream.launch(launch, float_entry!(dtype, T => cpu::run::<T>), || Gpu {
        source: &SOURCE,
        defines: whole(aligned),
        entry: format!("l2_norm_{dtype}"),
        threadgroups: teams.threadgroups,
        threads: teams.threads,
    })
}

const OP: &str = "l2_norm";

kernel_params! {
    struct Params {
        walk: Walk,
        eps: f32,
        /// Threads of a row.
        width: u32,
    }
}

pub(super) static SOURCE: KernelSource = KernelSource {
    name: "l2_norm",
    params: &[Walk::DECLARATION, Params::DECLARATION],
    body: include_str!("kernel.metal"),
};
