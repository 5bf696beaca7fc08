//! Making tokens less likely that were there a short while ago.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::check::{check, size};
use crate::{DType, Result, Tensor};

/// What [`penalize_in_place`] takes from the logits of recent tokens. The default takes nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Penalties {
    /// Divides positive and multiplies negative logits; 1 for none. Above 0.
    pub repetition: f32,
    /// Subtracted once; 0 for none.
    pub presence: f32,
    /// Subtracted for each time that a token occurs; 0 for none.
    pub frequency: f32,
}

impl Default for Penalties {
    fn default() -> Self {
        Penalties { repetition: 1.0, presence: 0.0, frequency: 0.0 }
    }
}

/// Lowers the logits of the tokens in `recent`, in place, as mlx-lm's processors do one after the other.
///
/// `logits` is f32 `[rows, vocab]` with contiguous rows, `recent` u32 `[rows, n]`, contiguous: a row's last tokens in any
/// order. Ids that are no token's, such as `u32::MAX`, count for nothing, so that a list may be filled up with them. A
/// logit `l` of a token that occurs `c` times becomes `l * repetition` where it is negative, else `l * (1 / repetition)`,
/// less `presence + frequency * c`; each product and sum is rounded once, so that results are the same on every device. A
/// GPU compares each pair of a row's recent tokens.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes, types or penalties do not fit.
///
/// ```
/// use silicide::{Device, ops};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let logits = device.tensor(&[3.0f32, -1.0, 2.0], [1, 3])?;
/// let recent = device.tensor(&[1u32, 2, 1, u32::MAX], [1, 4])?;
/// ops::penalize_in_place(stream, &logits, &recent, ops::Penalties { repetition: 2.0, presence: 0.5, frequency: 1.0 })?;
/// assert_eq!(logits.to_vec::<f32>(stream)?, [3.0, -4.5, -0.5]);
/// # Ok(())
/// # }
/// ```
pub fn penalize_in_place(stream: &mut Stream, logits: &Tensor, recent: &Tensor, penalties: Penalties) -> Result<()> {
    let Penalties { repetition, presence, frequency } = penalties;
    let rows_fit = logits.rank() == 2 && (logits.dim(1) <= 1 || logits.strides()[1] == 1);
    check(OP, rows_fit && logits.dtype() == DType::F32, || {
        format!("logits: got {logits:?}, wanted f32 [rows, vocab] with contiguous rows")
    })?;
    let recent_fit = recent.rank() == 2 && recent.dim(0) == logits.dim(0) && recent.is_contiguous();
    check(OP, recent_fit && recent.dtype() == DType::U32, || {
        format!("recent: got {recent:?}, wanted u32[{}, n], contiguous", logits.dim(0))
    })?;
    // 1 / repetition has to be a number too.
    check(OP, repetition > 0.0 && (1.0 / repetition).is_normal(), || {
        format!("repetition: got {repetition}, wanted above 0 (1 for none)")
    })?;
    for (name, penalty) in [("presence", presence), ("frequency", frequency)] {
        check(OP, penalty.is_finite(), || format!("{name}: got {penalty}, wanted a number (0 for none)"))?;
    }
    if penalties == Penalties::default() || recent.elements() == 0 || logits.elements() == 0 {
        return Ok(());
    }
    let params = Params {
        stride: logits.strides()[0] as u64,
        rows: size(OP, "rows", logits.dim(0))?,
        vocab: size(OP, "vocab", logits.dim(1))?,
        count: size(OP, "recent", recent.dim(1))?,
        repetition,
        inverse: 1.0 / repetition,
        presence,
        frequency,
        pad: 0,
    };
    let threads = size(OP, "recent", recent.elements())?;
    let launch = Launch::new(OP, &params).read_write(logits).read(recent);
    let touched = recent.elements() * size_of::<f32>();
    stream.launch(launch.reads_bytes(2 * touched).writes_bytes(touched), cpu::run, || Gpu {
        source: &SOURCE,
        defines: String::new(),
        entry: "penalize".into(),
        threadgroups: [threads.div_ceil(64), 1, 1],
        threads: [64, 1, 1],
    })
}

const OP: &str = "penalize";

kernel_params! {
    struct Params {
        /// Elements from a row of logits to the next.
        stride: u64,
        rows: u32,
        vocab: u32,
        /// Recent tokens of a row.
        count: u32,
        repetition: f32,
        inverse: f32,
        presence: f32,
        frequency: f32,
        /// Makes the size a multiple of 8.
        pad: u32,
    }
}

pub(super) static SOURCE: KernelSource =
    KernelSource { name: "penalize", params: &[Params::DECLARATION], body: include_str!("kernel.metal") };
