//! What a token's experts come to: their weighted sum, a shared expert's output, and the residual.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::check::{Rows, check, float_entry};
use crate::{DType, Result, Shape, Tensor};

/// What [`weighted_reduce`] adds to the weighted sum.
#[derive(Clone, Copy, Debug, Default)]
pub struct WeightedReduce<'a> {
    /// The output of an expert that all tokens go through: `[.., n]` in `y`'s type.
    pub shared: Option<&'a Tensor>,
    /// Multiplies it by `sigmoid` of this: the gate's output as it is, with no sigmoid taken yet. `[..]` or `[.., 1]` in
    /// `y`'s type.
    pub shared_gate_logit: Option<&'a Tensor>,
    /// `[.., n]` in `y`'s type.
    pub residual: Option<&'a Tensor>,
}

/// `sum(weights[.., s] * y[.., s, :])` over slots `s`, plus `sigmoid(shared_gate_logit) * shared`, plus `residual`.
///
/// `y` is `[.., slots, n]` in f32, f16 or bf16, `weights` `[.., slots]` in f32, both as
/// [`expert_matmul`](crate::ops::expert_matmul) and [`router`](crate::ops::router) give them; rows may have any one stride
/// between them. The arithmetic is in f32, in the order above, and rounded once. The result is contiguous `[.., n]` in `y`'s
/// type.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes or types do not fit, or there is a gate and no shared expert.
///
/// ```
/// use silicide::{Device, ops};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let y = device.tensor(&[1.0f32, 2.0, 10.0, 20.0], [1, 2, 2])?;
/// let weights = device.tensor(&[0.5f32, 0.1], [1, 2])?;
/// let shared = device.tensor(&[6.0f32, 8.0], [1, 2])?;
/// // Half of the shared expert.
/// let logit = device.tensor(&[0.0f32], [1, 1])?;
/// let options =
///     ops::WeightedReduce { shared: Some(&shared), shared_gate_logit: Some(&logit), ..Default::default() };
/// let out = ops::weighted_reduce(stream, &y, &weights, options)?;
/// assert_eq!(out.to_vec::<f32>(stream)?, [4.5, 7.0]);
/// # Ok(())
/// # }
/// ```
pub fn weighted_reduce(stream: &mut Stream, y: &Tensor, weights: &Tensor, options: WeightedReduce) -> Result<Tensor> {
    check_y(y)?;
    let shape = [&y.shape()[..y.rank() - 2], &[y.dim(-1)]].concat();
    let shape = Shape::new(&shape).expect("it has fewer axes than y");
    let out = stream.empty(y.dtype(), shape)?;
    weighted_reduce_into(stream, y, weights, options, &out)?;
    Ok(out)
}

/// [`weighted_reduce`] into `out`, which may be the shared expert's output or the residual itself.
pub fn weighted_reduce_into(
    stream: &mut Stream,
    y: &Tensor,
    weights: &Tensor,
    options: WeightedReduce,
    out: &Tensor,
) -> Result<()> {
    let WeightedReduce { shared, shared_gate_logit, residual } = options;
    check_y(y)?;
    let dtype = y.dtype();
    let (lead, n) = (&y.shape()[..y.rank() - 2], y.dim(-1));
    let with = |last: &[usize]| [lead, last].concat();
    let slots = with(&y.shape()[y.rank() - 2..][..1]);
    check(OP, weights.dtype() == DType::F32 && weights.shape()[..] == slots && weights.is_contiguous(), || {
        format!("weights: got {weights:?}, wanted f32 {slots:?}, contiguous")
    })?;
    let row = with(&[n]);
    let rows = |name: &'static str, t: Option<&Tensor>| {
        let Some(t) = t else { return Ok(0) };
        check(OP, t.dtype() == dtype && t.shape()[..] == row, || format!("{name}: got {t:?}, wanted {dtype} {row:?}"))?;
        if t.elements() == 0 { Ok(0) } else { Rows::of(OP, name, t).map(|rows| rows.stride) }
    };
    let strides = [rows("shared", shared)?, rows("residual", residual)?, rows("out", Some(out))?];
    if let Some(logit) = shared_gate_logit {
        check(OP, shared.is_some(), || "shared_gate_logit: got one without a shared expert".into())?;
        let fits = logit.shape()[..] == *lead || logit.shape()[..] == with(&[1]);
        check(OP, logit.dtype() == dtype && fits && logit.is_contiguous(), || {
            format!("shared_gate_logit: got {logit:?}, wanted {dtype} {lead:?} or {:?}, contiguous", with(&[1]))
        })?;
    }
    if out.elements() == 0 {
        return Ok(());
    }
    // No slots are an empty sum.
    let y_rows = if y.elements() == 0 { None } else { Some(Rows::of(OP, "y", y)?) };
    let out_rows = Rows::of(OP, "out", out)?;
    let params = Params {
        tokens: out_rows.count,
        slots: y_rows.map_or(0, |y| y.count / out_rows.count),
        n: out_rows.len,
        y_stride: y_rows.map_or(0, |y| y.stride),
        strides,
        has_shared: shared.is_some().into(),
        has_gate: shared_gate_logit.is_some().into(),
        has_residual: residual.is_some().into(),
    };
    let launch = Launch::new(OP, &params)
        .read(y)
        .read(weights)
        .read_apart_optional(shared_gate_logit)
        .read_optional(shared)
        .read_optional(residual)
        .write_in_place(out)
        .flops(2 * y.elements() + 2 * out.elements());
    stream.launch(launch, float_entry!(dtype, T => cpu::run::<T>), || {
        let threads = params.n.div_ceil(4).next_multiple_of(32).min(256);
        Gpu {
            source: &SOURCE,
            defines: String::new(),
            entry: format!("weighted_reduce_{dtype}"),
            threadgroups: [params.tokens, params.n.div_ceil(4 * threads), 1],
            threads: [threads, 1, 1],
        }
    })
}

fn check_y(y: &Tensor) -> Result<()> {
    check(OP, y.dtype().is_float() && y.rank() >= 2, || format!("y: got {y:?}, wanted floats [.., slots, n]"))
}

const OP: &str = "weighted_reduce";

kernel_params! {
    /// Strides are elements from one row to the next; those of `y` between slots too.
    struct Params {
        tokens: u32,
        slots: u32,
        n: u32,
        y_stride: u32,
        /// Of the shared expert's output, the residual, and the result.
        strides: [u32; 3],
        has_shared: u32,
        has_gate: u32,
        has_residual: u32,
    }
}

pub(super) static SOURCE: KernelSource =
    KernelSource { name: "weighted_reduce", params: &[Params::DECLARATION], body: include_str!("kernel.metal") };
