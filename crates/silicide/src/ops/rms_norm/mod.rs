//! Root-mean-square normalisation of rows, with the additions that models put around it.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::check::{Rows, check, float_entry, same_or_f32};
use crate::ops::rows::{Teams, packet, packets_align, whole};
use crate::{Result, Tensor};

/// What [`rms_norm_with`] does besides normalising.
#[derive(Clone, Copy, Debug)]
pub struct RmsNormOptions<'a> {
    /// Multiplies the normalised row: `[dim]`, of `x`'s type or f32. None for ones.
    pub weight: Option<&'a Tensor>,
    /// Added to every weight: 1 for models whose checkpoints hold the weight less one (Gemma).
    pub weight_offset: f32,
    /// Added to the mean of squares.
    pub eps: f32,
    /// Added to `x` before normalising: as `x`.
    pub residual: Option<&'a Tensor>,
    /// Takes `x + residual`, rounded to `x`'s type, which is then what is normalised: as `x`.
    pub sum: Option<&'a Tensor>,
}

/// `x * rsqrt(mean(x^2) + eps) * weight` over the last axis.
///
/// `x` is `[.., dim]` in f32, f16 or bf16, with any offset and any stride between rows; `weight` is `[dim]` in `x`'s
/// type or in f32. Sums are kept in f32 and the result is rounded once. The result has `x`'s shape and type.
/// Mathematics: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
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
/// let x = device.tensor(&[3.0f32, 4.0], [1, 2])?;
/// let weight = device.tensor(&[1.0f32, 10.0], [2])?;
/// let y = ops::rms_norm(stream, &x, &weight, 0.0)?.to_vec::<f32>(stream)?;
/// // The mean of squares is 12.5.
/// assert!((y[0] - 3.0 / 12.5f32.sqrt()).abs() < 1e-6 && (y[1] - 40.0 / 12.5f32.sqrt()).abs() < 1e-5);
/// # Ok(())
/// # }
/// ```
pub fn rms_norm(stream: &mut Stream, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let out = stream.empty(x.dtype(), *x.shape())?;
    rms_norm_into(stream, x, weight, eps, &out)?;
    Ok(out)
}

/// [`rms_norm`] into `out`, which may be `x` itself.
pub fn rms_norm_into(stream: &mut Stream, x: &Tensor, weight: &Tensor, eps: f32, out: &Tensor) -> Result<()> {
    rms_norm_with(
        stream,
        x,
        RmsNormOptions { weight: Some(weight), weight_offset: 0.0, eps, residual: None, sum: None },
        out,
    )
}

/// [`rms_norm_into`] with everything that models put around it.
///
/// Normalises `x`, or `x + residual`, into `out`, and writes the sum into `options.sum`. `out` and the sum may each be
/// `x` or the residual itself, but not each other.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes or types do not fit.
pub fn rms_norm_with(stream: &mut Stream, x: &Tensor, options: RmsNormOptions, out: &Tensor) -> Result<()> {
    let RmsNormOptions { weight, weight_offset, eps, residual, sum } = options;
    let rows = Rows::of(OP, "x", x)?;
    check(OP, x.dtype().is_float(), || format!("x: got {x:?}, wanted f32, f16 or bf16"))?;
    check(OP, eps >= 0.0, || format!("eps: got {eps}, wanted 0 or more"))?;
    check(OP, sum.is_none() || residual.is_some(), || "sum: got one without a residual to add".into())?;
    let like_x = |name: &str, t: &Tensor| {
        check(OP, t.shape() == x.shape() && t.dtype() == x.dtype(), || format!("{name}: got {t:?}, wanted {x:?}"))?;
        Rows::of(OP, name, t)
    };
    let out_rows = like_x("out", out)?;
    let residual_rows = residual.map(|r| like_x("residual", r)).transpose()?;
    let sum_rows = sum.map(|s| like_x("sum", s)).transpose()?;
    if let Some(w) = weight {
        check(OP, w.shape()[..] == [rows.len as usize] && w.is_contiguous(), || {
            format!("weight: got {w:?}, wanted [{}], contiguous", rows.len)
        })?;
        same_or_f32(OP, "weight", w, x.dtype())?;
    }
    if rows.is_empty() {
        return Ok(());
    }
    let teams = Teams::new(rows.count, rows.len, x.dtype(), 1);
    let aligned = packets_align(rows.len as usize, packet(x.dtype()), &[Some(x), Some(out), weight, residual, sum]);
    let params = Params {
        rows: rows.count,
        dim: rows.len,
        x_stride: rows.stride,
        residual_stride: residual_rows.map_or(0, |r| r.stride),
        sum_stride: sum_rows.map_or(0, |r| r.stride),
        out_stride: out_rows.stride,
        eps,
        weight_offset,
        has_weight: weight.is_some().into(),
        has_residual: residual.is_some().into(),
        has_sum: sum.is_some().into(),
        width: teams.width,
    };
    let launch = Launch::new(OP, &params)
        .read(x)
        .read_apart_optional(weight)
        .read_optional(residual)
        .write_in_place_optional(sum)
        .write_in_place(out)
        .flops(4 * x.elements());
    let weight_dtype = weight.map_or(x.dtype(), Tensor::dtype);
    let entry = match weight_dtype == x.dtype() {
        true => float_entry!(x.dtype(), T => cpu::run::<T, T>),
        false => float_entry!(x.dtype(), T => cpu::run::<T, f32>),
    };
    stream.launch(launch, entry, || Gpu {
        source: &SOURCE,
        defines: whole(aligned),
        entry: format!("rms_norm_{}_{weight_dtype}", x.dtype()),
        threadgroups: teams.threadgroups,
        threads: teams.threads,
    })
}

const OP: &str = "rms_norm";

kernel_params! {
    /// Strides are elements from one row to the next.
    struct Params {
        rows: u32,
        dim: u32,
        x_stride: u32,
        residual_stride: u32,
        sum_stride: u32,
        out_stride: u32,
        eps: f32,
        weight_offset: f32,
        has_weight: u32,
        has_residual: u32,
        has_sum: u32,
        /// Threads of a row.
        width: u32,
    }
}

pub(super) static SOURCE: KernelSource =
    KernelSource { name: "rms_norm", params: &[Params::DECLARATION], body: include_str!("kernel.metal") };
