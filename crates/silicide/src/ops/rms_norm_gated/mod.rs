//! Root-mean-square normalisation whose result is gated: what follows the state of a gated delta rule.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::check::{check, float_entry, same_or_f32, size};
use crate::ops::rows::{Teams, packet, whole};
use crate::ops::walk::Walk;
use crate::{Result, Tensor};

/// `x * rsqrt(mean(x^2) + eps) * weight * silu(gate)` over the last axis.
///
/// `x` and `gate` are of one shape and type (f32, f16 or bf16) with any strides, such as a gate inside a fused
/// projection; `weight` is `[dim]` in that type or in f32. The arithmetic is in f32 and rounded once. The result is
/// row-major. Mathematics: `RMSNormGated` of Qwen3-Next in transformers, the norm before the gate.
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
/// let x = device.tensor(&[2.0f32, -2.0], [1, 2])?;
/// let gate = device.tensor(&[0.0f32, 30.0], [1, 2])?;
/// let weight = device.tensor(&[1.0f32, 0.5], [2])?;
/// let y = ops::rms_norm_gated(stream, &x, &gate, &weight, 0.0)?;
/// assert_eq!(y.to_vec::<f32>(stream)?, [0.0, -15.0]);
/// # Ok(())
/// # }
/// ```
pub fn rms_norm_gated(stream: &mut Stream, x: &Tensor, gate: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let out = stream.empty(x.dtype(), *x.shape())?;
    rms_norm_gated_into(stream, x, gate, weight, eps, &out)?;
    Ok(out)
}

/// [`rms_norm_gated`] into `out`, which may be `x` or `gate` itself.
pub fn rms_norm_gated_into(
    stream: &mut Stream,
    x: &Tensor,
    gate: &Tensor,
    weight: &Tensor,
    eps: f32,
    out: &Tensor,
) -> Result<()> {
    let dtype = x.dtype();
    check(OP, dtype.is_float() && x.rank() > 0, || format!("x: got {x:?}, wanted rows of f32, f16 or bf16"))?;
    for (name, t) in [("gate", gate), ("out", out)] {
        check(OP, t.shape() == x.shape() && t.dtype() == dtype, || format!("{name}: got {t:?}, wanted {x:?}"))?;
    }
    check(OP, eps >= 0.0, || format!("eps: got {eps}, wanted 0 or more"))?;
    check(OP, weight.shape()[..] == [x.dim(-1)] && weight.is_contiguous(), || {
        format!("weight: got {weight:?}, wanted [{}], contiguous", x.dim(-1))
    })?;
    same_or_f32(OP, "weight", weight, dtype)?;
    if out.elements() == 0 {
        return Ok(());
    }
    let walk = Walk::rows(OP, &[x, gate, out])?;
    let len = size(OP, "the last axis", x.dim(-1))?;
    let teams = Teams::new(walk.row_count(), len, dtype, 2);
    let aligned = walk.packets_align(packet(dtype), &[x, gate, out]) && weight.vectors_align(packet(dtype));
    let params = Params { walk, eps, width: teams.width };
    let launch = Launch::new(OP, &params)
        .read(x)
        .read(gate)
        .read_apart_optional(Some(weight))
        .write_in_place(out)
        .flops(10 * x.elements());
    let entry = match weight.dtype() == dtype {
        true => float_entry!(dtype, T => cpu::run::<T, T>),
        false => float_entry!(dtype, T => cpu::run::<T, f32>),
    };
    stream.launch(launch, entry, || Gpu {
        source: &SOURCE,
        defines: whole(aligned),
        entry: format!("rms_norm_gated_{dtype}_{}", weight.dtype()),
        threadgroups: teams.threadgroups,
        threads: teams.threads,
    })
}

const OP: &str = "rms_norm_gated";

kernel_params! {
    struct Params {
        walk: Walk,
        eps: f32,
        /// Threads of a row.
        width: u32,
    }
}

pub(super) static SOURCE: KernelSource = KernelSource {
    name: "rms_norm_gated",
    params: &[Walk::DECLARATION, Params::DECLARATION],
    body: include_str!("kernel.metal"),
};
