//! Layer normalisation of rows.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::check::{Rows, check, float_entry, same_or_f32};
use crate::ops::rows::{Teams, packet, packets_align, whole};
use crate::{Result, Tensor};

/// `(x - mean(x)) * rsqrt(variance(x) + eps) * weight + bias` over the last axis.
///
/// `x` is `[.., dim]` in f32, f16 or bf16, with any offset and any stride between rows; `weight` and `bias` are `[dim]`,
/// both in `x`'s type or both in f32, and each may be left out. The variance is that about the mean, over `dim`. Sums are
/// kept in f32 and the result is rounded once. The result has `x`'s shape and type.
/// Mathematics: Ba, Kiros and Hinton, "Layer Normalization", 2016.
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
/// let x = device.tensor(&[1.0f32, 3.0], [1, 2])?;
/// let bias = device.tensor(&[0.0f32, 10.0], [2])?;
/// let y = ops::layer_norm(stream, &x, None, Some(&bias), 0.0)?;
/// assert_eq!(y.to_vec::<f32>(stream)?, [-1.0, 11.0]);
/// # Ok(())
/// # }
/// ```
pub fn layer_norm(
    stream: &mut Stream,
    x: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f32,
) -> Result<Tensor> {
    let out = stream.empty(x.dtype(), *x.shape())?;
    layer_norm_into(stream, x, weight, bias, eps, &out)?;
    Ok(out)
}

/// [`layer_norm`] into `out`, which may be `x` itself.
pub fn layer_norm_into(
    stream: &mut Stream,
    x: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f32,
    out: &Tensor,
) -> Result<()> {
    let rows = Rows::of(OP, "x", x)?;
    let dtype = x.dtype();
    check(OP, dtype.is_float(), || format!("x: got {x:?}, wanted f32, f16 or bf16"))?;
    check(OP, eps >= 0.0, || format!("eps: got {eps}, wanted 0 or more"))?;
    check(OP, out.shape() == x.shape() && out.dtype() == dtype, || format!("out: got {out:?}, wanted {x:?}"))?;
    let out_rows = Rows::of(OP, "out", out)?;
    for (name, t) in [("weight", weight), ("bias", bias)] {
        let Some(t) = t else { continue };
        check(OP, t.shape()[..] == [rows.len as usize] && t.is_contiguous(), || {
            format!("{name}: got {t:?}, wanted [{}], contiguous", rows.len)
        })?;
        same_or_f32(OP, name, t, dtype)?;
    }
    if let (Some(weight), Some(bias)) = (weight, bias) {
        check(OP, weight.dtype() == bias.dtype(), || {
            format!("bias: got {}, wanted {} as the weight is", bias.dtype(), weight.dtype())
        })?;
    }
    if rows.is_empty() {
        return Ok(());
    }
    let aligned = packets_align(rows.len as usize, packet(dtype), &[Some(x), weight, bias, Some(out)]);
    // A simdgroup that holds a row waits for no other.
    let packets = rows.len.div_ceil(packet(dtype) as u32);
    let each = packets.div_ceil(32);
    let each = if aligned && each <= MOST_HELD { each } else { 1 };
    let teams = Teams::new(rows.count, rows.len, dtype, each);
    let held = packets.div_ceil(teams.width).clamp(1, if teams.width <= 32 { MOST_HELD } else { 2 });
    let params = Params {
        dim: rows.len,
        rows: rows.count,
        x_stride: rows.stride,
        out_stride: out_rows.stride,
        eps,
        has_weight: weight.is_some().into(),
        has_bias: bias.is_some().into(),
        width: teams.width,
    };
    let launch = Launch::new(OP, &params)
        .read(x)
        .read_apart_optional(weight)
        .read_apart_optional(bias)
        .write_in_place(out)
        .flops(8 * x.elements());
    let weight_dtype = weight.or(bias).map_or(dtype, Tensor::dtype);
    let entry = match weight_dtype == dtype {
        true => float_entry!(dtype, T => cpu::run::<T, T>),
        false => float_entry!(dtype, T => cpu::run::<T, f32>),
    };
    stream.launch(launch, entry, || Gpu {
        source: &SOURCE,
        defines: defines(aligned, held, held * teams.width >= packets, rows.count <= FEW),
        entry: format!("layer_norm_{dtype}_{weight_dtype}"),
        threadgroups: teams.threadgroups,
        threads: teams.threads,
    })
}

const OP: &str = "layer_norm";

/// Packets that a lane may hold.
const MOST_HELD: u32 = 5;

/// Rows of which a GPU has no more than threads at once: these ask for weights before they know the mean, for which many more rows
/// would want their registers.
const FEW: u32 = 2048;

/// What the kernel is compiled with, whose threads hold so many packets, and whether they hold whole rows and ask for weights early.
pub(super) fn defines(aligned: bool, held: u32, once: bool, ahead: bool) -> String {
    format!("{}\n#define PACKETS {held}\n#define ONCE {once}\n#define AHEAD {ahead}", whole(aligned))
}

kernel_params! {
    /// Strides are elements from one row to the next.
    struct Params {
        dim: u32,
        rows: u32,
        x_stride: u32,
        out_stride: u32,
        eps: f32,
        has_weight: u32,
        has_bias: u32,
        /// Threads of a row.
        width: u32,
    }
}

pub(super) static SOURCE: KernelSource =
    KernelSource { name: "layer_norm", params: &[Params::DECLARATION], body: include_str!("kernel.metal") };
