//! What decides how much a gated delta rule forgets and learns at each token.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::check::{Rows, check, float_entry};
use crate::{DType, Result, Tensor};

/// What [`gated_delta_gates`] makes the gates of.
#[derive(Clone, Copy, Debug)]
pub struct GatedDeltaGates<'a> {
    /// How fast each head forgets.
    pub rate: DecayRate<'a>,
    /// Added to `a`: f32 `[heads]`.
    pub dt_bias: &'a Tensor,
    /// Whether `g` is the decay's logarithm, as transformers has it, and not the decay itself, as mlx-lm has it.
    pub log: bool,
}

/// How a checkpoint holds the rate of decay `A`: f32 `[heads]`.
#[derive(Clone, Copy, Debug)]
pub enum DecayRate<'a> {
    /// `A_log`, with `A = -exp(A_log)`: checkpoints of transformers and MLX.
    Log(&'a Tensor),
    /// `A` itself, below 0: `ssm_a` in GGUF.
    Negative(&'a Tensor),
}

/// The decay `g = exp(A * softplus(a + dt_bias))` and the learning rate `beta = sigmoid(b)` of each token and head.
///
/// `a` and `b` are `[.., heads]` of one type (f32, f16 or bf16) with any stride between rows. The sum
/// is rounded to f32; what is made of it is good to a few units in the last place for every input, since softplus is
/// `max(x, 0) + log1p(exp(-|x|))`. The results are f32 of `a`'s shape. With `options.log` the first is `A * softplus(a + dt_bias)`. Mathematics: Yang, Kautz and
/// Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule", 2024.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes or types do not fit.
///
/// ```
/// use silicide::ops::{self, DecayRate, GatedDeltaGates};
/// use silicide::Device;
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let (a, b) = (device.tensor(&[0.0f32, -1.0], [1, 2])?, device.tensor(&[0.0f32, 100.0], [1, 2])?);
/// let (a_log, dt_bias) = (device.tensor(&[0.0f32, 0.0], [2])?, device.tensor(&[0.0f32, 1.0], [2])?);
/// let options = GatedDeltaGates { rate: DecayRate::Log(&a_log), dt_bias: &dt_bias, log: false };
/// let (g, beta) = ops::gated_delta_gates(stream, &a, &b, options)?;
/// // exp(-log 2) is a half.
/// assert!(g.to_vec::<f32>(stream)?.iter().all(|g| (g - 0.5).abs() < 1e-6));
/// assert_eq!(beta.to_vec::<f32>(stream)?, [0.5, 1.0]);
/// # Ok(())
/// # }
/// ```
pub fn gated_delta_gates(
    stream: &mut Stream,
    a: &Tensor,
    b: &Tensor,
    options: GatedDeltaGates,
) -> Result<(Tensor, Tensor)> {
    let g = stream.empty(DType::F32, *a.shape())?;
    let beta = stream.empty(DType::F32, *a.shape())?;
    gated_delta_gates_into(stream, a, b, options, &g, &beta)?;
    Ok((g, beta))
}

/// [`gated_delta_gates`] into `g` and `beta`. With f32 inputs `g` may be `a` itself, and `beta` may be `b`.
pub fn gated_delta_gates_into(
    stream: &mut Stream,
    a: &Tensor,
    b: &Tensor,
    options: GatedDeltaGates,
    g: &Tensor,
    beta: &Tensor,
) -> Result<()> {
    let GatedDeltaGates { rate, dt_bias, log } = options;
    let rows = Rows::of(OP, "a", a)?;
    check(OP, a.dtype().is_float(), || format!("a: got {a:?}, wanted f32, f16 or bf16"))?;
    let like_a = |name: &str, t: &Tensor, dtype: DType| {
        check(OP, t.shape() == a.shape() && t.dtype() == dtype, || {
            format!("{name}: got {t:?}, wanted {dtype}{}", a.shape())
        })?;
        Rows::of(OP, name, t)
    };
    let b_rows = like_a("b", b, a.dtype())?;
    let (g_rows, beta_rows) = (like_a("g", g, DType::F32)?, like_a("beta", beta, DType::F32)?);
    let (name, rate, log_rate) = match rate {
        DecayRate::Log(t) => ("rate (A_log)", t, true),
        DecayRate::Negative(t) => ("rate (A)", t, false),
    };
    for (name, t) in [(name, rate), ("dt_bias", dt_bias)] {
        let fits = t.shape()[..] == [rows.len as usize] && t.dtype() == DType::F32 && t.is_contiguous();
        check(OP, fits, || format!("{name}: got {t:?}, wanted f32[{}], contiguous", rows.len))?;
    }
    if rows.is_empty() {
        return Ok(());
    }
    // Each is written where only its own input may lie: the other is read later.
    for (out, input, name) in [(g, b, "g"), (beta, a, "beta")] {
        let apart = !out.buffer().is_same(input.buffer())
            || out.byte_range().end <= input.byte_range().start
            || input.byte_range().end <= out.byte_range().start;
        check(OP, apart, || format!("{name}: got the memory of the other's input; give it memory of its own"))?;
    }
    let params = Params {
        rows: rows.count,
        heads: rows.len,
        a_stride: rows.stride,
        b_stride: b_rows.stride,
        g_stride: g_rows.stride,
        beta_stride: beta_rows.stride,
        log_rate: log_rate.into(),
        log: log.into(),
    };
    let launch = Launch::new(OP, &params)
        .read(a)
        .read(b)
        .read_apart_optional(Some(rate))
        .read_apart_optional(Some(dt_bias))
        .write_in_place(g)
        .write_in_place(beta)
        .flops(12 * a.elements());
    stream.launch(launch, float_entry!(a.dtype(), T => cpu::run::<T>), || Gpu {
        source: &SOURCE,
        defines: String::new(),
        entry: format!("gated_delta_gates_{}", a.dtype()),
        threadgroups: [rows.len.div_ceil(32), rows.count.div_ceil(8), 1],
        threads: [32, 8, 1],
    })
}

const OP: &str = "gated_delta_gates";

kernel_params! {
    /// Strides are elements from one row to the next.
    struct Params {
        rows: u32,
        heads: u32,
        a_stride: u32,
        b_stride: u32,
        g_stride: u32,
        beta_stride: u32,
        /// Whether the rate is `A_log`.
        log_rate: u32,
        /// Whether the decay's logarithm is wanted.
        log: u32,
    }
}

pub(super) static SOURCE: KernelSource =
    KernelSource { name: "gated_delta_gates", params: &[Params::DECLARATION], body: include_str!("kernel.metal") };
