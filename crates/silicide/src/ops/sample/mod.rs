//! Drawing tokens from logits on the device.

mod cpu;
mod gpu;
#[cfg(test)]
mod tests;

use crate::device::{Device, DeviceKind, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::argmax_into;
use crate::ops::check::{check, size};
use crate::ops::walk::Walk;
use crate::{DType, Result, Shape, Tensor};

/// How [`sample`] draws. The default is greedy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits before the draw; 0 takes the greatest, as [`argmax`](crate::ops::argmax()) does.
    pub temperature: f32,
    /// Draws from the fewest most probable tokens that hold this share of the probability at temperature 1, and from all
    /// that equal the last of them; 1 for no limit. Above 0.
    pub top_p: f32,
    /// Leaves out tokens below this share of the greatest probability; 0 for none.
    pub min_p: f32,
    /// Draws from this many most probable tokens, of equals the lowest ids; 0 for no limit. With 1 that is the greatest
    /// itself, found without weighing any.
    pub top_k: u32,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 0.0, top_p: 1.0, min_p: 0.0, top_k: 0 }
    }
}

/// One token a row of logits, drawn at random from what `options` leave, as mlx-lm's sampler leaves it.
///
/// `logits` is f32 `[.., vocab]`; the result is u32 in the shape of its leading axes. `state`, from [`sample_state`], is
/// u32 `[rows, 4]` and holds a row's seed and step; each call takes one step, so that a recorded plan draws anew in each
/// replay. Weights are integers made by integer arithmetic, so that the same seed, step and logits give the same token on
/// every device. A row that holds NaN or positive infinity, or nothing but negative infinity, gives `u32::MAX`, which is
/// no token. With a temperature of 0 the state is left alone, and the result is that of [`argmax`](crate::ops::argmax()).
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes, types or options do not fit.
///
/// ```
/// use silicide::{Device, ops};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let logits = device.tensor(&[2.0f32, 1.0, 0.0, -9.0], [1, 4])?;
/// let state = ops::sample_state(&device, &[42])?;
/// let options = ops::Sampling { temperature: 0.8, top_k: 3, ..Default::default() };
/// let token = ops::sample(stream, &logits, options, &state)?.to_vec::<u32>(stream)?[0];
/// assert!(token < 3);
/// # Ok(())
/// # }
/// ```
pub fn sample(stream: &mut Stream, logits: &Tensor, options: Sampling, state: &Tensor) -> Result<Tensor> {
    let leading = logits.rank().saturating_sub(1);
    let shape = Shape::new(&logits.shape()[..leading]).expect("a shape's start is a shape");
    let out = stream.empty(DType::U32, shape)?;
    sample_into(stream, logits, options, state, &out)?;
    Ok(out)
}

/// A state for [`sample`] with a seed a row, at step 0: u32 `[seeds, 4]`, the words of the seed and of the step, lower
/// first.
pub fn sample_state(device: &Device, seeds: &[u64]) -> Result<Tensor> {
    let words: Vec<u32> = seeds.iter().flat_map(|&seed| [seed as u32, (seed >> 32) as u32, 0, 0]).collect();
    device.tensor(&words, [seeds.len(), 4])
}

/// [`sample`] into `out`, which is contiguous and shares no memory with the others.
pub fn sample_into(
    stream: &mut Stream,
    logits: &Tensor,
    options: Sampling,
    state: &Tensor,
    out: &Tensor,
) -> Result<()> {
    let Sampling { temperature, top_p, min_p, top_k } = options;
    check(OP, logits.dtype() == DType::F32 && logits.rank() > 0 && logits.dim(-1) > 0, || {
        format!("logits: got {logits:?}, wanted f32 [.., vocab]")
    })?;
    let leading = &logits.shape()[..logits.rank() - 1];
    let rows: usize = leading.iter().product();
    check(OP, out.shape()[..] == *leading && out.dtype() == DType::U32 && out.is_contiguous(), || {
        format!("out: got {out:?}, wanted u32{leading:?}, contiguous")
    })?;
    check(OP, state.shape()[..] == [rows, 4] && state.dtype() == DType::U32 && state.is_contiguous(), || {
        format!("state: got {state:?}, wanted u32[{rows}, 4], contiguous; sample_state makes one")
    })?;
    check(OP, temperature.is_finite() && temperature >= 0.0, || {
        format!("temperature: got {temperature}, wanted 0 (greedy) or more")
    })?;
    check(OP, top_p > 0.0 && top_p <= 1.0, || format!("top_p: got {top_p}, wanted above 0, to 1 for no limit"))?;
    check(OP, (0.0..=1.0).contains(&min_p), || format!("min_p: got {min_p}, wanted 0 (no limit) to 1"))?;
    if temperature == 0.0 {
        return argmax_into(stream, logits, out);
    }
    if rows == 0 {
        return Ok(());
    }
    let vocab = size(OP, "vocab", logits.dim(-1))?;
    let params = Params {
        walk: Walk::rows(OP, &[logits])?,
        // A temperature near 0 leaves weight to the greatest alone, as an infinite scale would not.
        scale: (std::f64::consts::LOG2_E / temperature as f64).min(f32::MAX as f64) as f32,
        distance: if min_p > 0.0 { -min_p.ln() } else { f32::INFINITY },
        top_p: (top_p as f64 * 2f64.powi(32)) as u32,
        has_top_p: (top_p < 1.0).into(),
        top_k: if top_k == 0 { u32::MAX } else { top_k },
        has_top_k: (top_k != 0 && top_k < vocab).into(),
        parts: 1,
        has_cut: 0,
    };
    if stream.device().kind() == DeviceKind::Cpu {
        let launch = Launch::new(OP, &params).read(logits).read_write(state).write(out);
        return stream.launch(launch, cpu::run, || unreachable!("a CPU"));
    }
    gpu::run(stream, params, logits, state, out)
}

const OP: &str = "sample";

kernel_params! {
    struct Params {
        walk: Walk,
        /// Log2(e) over the temperature.
        scale: f32,
        /// The most that a logit may lie below the greatest.
        distance: f32,
        /// In units of 2^-32.
        top_p: u32,
        has_top_p: u32,
        top_k: u32,
        has_top_k: u32,
        /// Parts that a GPU takes a row in.
        parts: u32,
        /// Whether a GPU has to look for a cut.
        has_cut: u32,
    }
}

pub(super) static SOURCE: KernelSource = KernelSource {
    name: "sample",
    params: &[Walk::DECLARATION, Params::DECLARATION],
    body: include_str!("kernel.metal"),
};
