//! Causal depthwise convolution along tokens, with the inputs before the first as state.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::check::{Rows, check, float_entry, same_or_f32, size};
use crate::ops::rows::{self, packet, packets_align};
use crate::{DType, Result, Tensor};

/// The widths that [`causal_conv1d`] takes.
const WIDTHS: std::ops::RangeInclusive<usize> = 2..=8;

/// What [`causal_conv1d`] does besides the convolution.
#[derive(Clone, Copy, Debug, Default)]
pub struct CausalConv1d<'a> {
    /// Added to every output: `[channels]`, of the weight's type. None for zeros.
    pub bias: Option<&'a Tensor>,
    /// Whether the result goes through `silu`.
    pub silu: bool,
    /// The inputs before the first, oldest first: `[width - 1, channels]`, of `x`'s type with any strides. None for zeros.
    pub initial_state: Option<&'a Tensor>,
    /// Takes the last `width - 1` inputs, those of the initial state included: as the initial state, which it may be.
    pub final_state: Option<&'a Tensor>,
}

/// `y[t, c] = sum over i of weight[c, i] * x[t - (width - 1) + i, c]`: each channel is filtered by itself and sees no
/// later token.
///
/// `x` is `[tokens, channels]` in f32, f16 or bf16 with any stride between tokens; `weight` is `[channels, width]` in
/// `x`'s type or in f32, with `width` from 2 to 8 (the axis of 1 that checkpoints have is taken out by a reshape). The
/// arithmetic is in f32, in the order of the window, and rounded once, so that a prompt gives the same bits whole, in
/// chunks or token by token. The result is row-major, of `x`'s shape and type. Mathematics: the short convolution of Gu
/// and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes or types do not fit.
///
/// ```
/// use silicide::ops::{self, CausalConv1d};
/// use silicide::{DType, Device};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let weight = device.tensor(&[10.0f32, 1.0], [1, 2])?;
/// let state = device.zeros(DType::F32, [1, 1])?;
/// let options = CausalConv1d { initial_state: Some(&state), final_state: Some(&state), ..Default::default() };
/// let first = ops::causal_conv1d(stream, &device.tensor(&[1.0f32, 2.0], [2, 1])?, &weight, options)?;
/// assert_eq!(first.to_vec::<f32>(stream)?, [1.0, 12.0]);
/// let next = ops::causal_conv1d(stream, &device.tensor(&[3.0f32], [1, 1])?, &weight, options)?;
/// assert_eq!(next.to_vec::<f32>(stream)?, [23.0]);
/// # Ok(())
/// # }
/// ```
pub fn causal_conv1d(stream: &mut Stream, x: &Tensor, weight: &Tensor, options: CausalConv1d) -> Result<Tensor> {
    let out = stream.empty(x.dtype(), *x.shape())?;
    causal_conv1d_into(stream, x, weight, options, &out)?;
    Ok(out)
}

/// [`causal_conv1d`] into `out`, which shares no memory with the others.
pub fn causal_conv1d_into(
    stream: &mut Stream,
    x: &Tensor,
    weight: &Tensor,
    options: CausalConv1d,
    out: &Tensor,
) -> Result<()> {
    let CausalConv1d { bias, silu, initial_state, final_state } = options;
    let dtype = x.dtype();
    check(OP, x.rank() == 2 && dtype.is_float(), || {
        format!("x: got {x:?}, wanted [tokens, channels] in f32, f16 or bf16")
    })?;
    check(OP, out.shape() == x.shape() && out.dtype() == dtype, || format!("out: got {out:?}, wanted {x:?}"))?;
    let (x_rows, out_rows) = (Rows::of(OP, "x", x)?, Rows::of(OP, "out", out)?);
    let channels = x.dim(1);
    let fits = weight.rank() == 2 && weight.dim(0) == channels && WIDTHS.contains(&weight.dim(1));
    check(OP, fits, || format!("weight: got {weight:?}, wanted [{channels}, width] with a width of {WIDTHS:?}"))?;
    let weight_dtype = weight.dtype();
    same_or_f32(OP, "weight", weight, dtype)?;
    let (weight_rows, width) = (Rows::of(OP, "weight", weight)?, weight.dim(1));
    if let Some(b) = bias {
        let fits = b.shape()[..] == [channels] && b.dtype() == weight_dtype && b.is_contiguous();
        check(OP, fits, || format!("bias: got {b:?}, wanted {weight_dtype}[{channels}], contiguous"))?;
    }
    let state = |name: &str, t: Option<&Tensor>| {
        let Some(t) = t else { return Ok([0, 0]) };
        check(OP, t.shape()[..] == [width - 1, channels] && t.dtype() == dtype, || {
            format!("{name}: got {t:?}, wanted {dtype}[{}, {channels}]", width - 1)
        })?;
        Ok([size(OP, name, t.strides()[0])?, size(OP, name, t.strides()[1])?])
    };
    let (state_strides, final_strides) = (state("initial_state", initial_state)?, state("final_state", final_state)?);
    if let (Some(initial), Some(last)) = (initial_state, final_state) {
        let shared = last.buffer().is_same(initial.buffer()) && last.byte_range() == initial.byte_range();
        let same = (0..2).all(|i| last.shape()[i] == 1 || last.strides()[i] == initial.strides()[i]);
        check(OP, !shared || same, || {
            format!(
                "final_state: got the memory of initial_state in another order ({} and {})",
                last.strides(),
                initial.strides()
            )
        })?;
    }
    if channels == 0 {
        return Ok(());
    }
    let tokens = size(OP, "tokens", x.dim(0))?;
    // Of few tokens every channel is a thread's, for enough of them.
    let n = packet(dtype) / 2;
    let dense = |state: Option<&Tensor>| state.is_none_or(|state| state.strides()[1] == 1);
    let whole = tokens > FEW
        && packets_align(channels, n, &[Some(x), Some(out), bias, initial_state, final_state])
        && dense(initial_state)
        && dense(final_state)
        && weight.is_contiguous()
        && weight.starts_aligned(n * weight_dtype.size());
    let across = channels.div_ceil(if whole { n } else { 1 }) as u32;
    let params = Params {
        tokens,
        channels: size(OP, "channels", channels)?,
        x_stride: x_rows.stride,
        weight_stride: weight_rows.stride,
        out_stride: out_rows.stride,
        state_strides,
        final_strides,
        // Longer runs read fewer inputs twice, as long as a large GPU has threads.
        block: if across as usize * tokens as usize / 16 >= 1 << 18 { 16 } else { 8 },
        width: width as u32,
        has_bias: bias.is_some().into(),
        has_state: initial_state.is_some().into(),
        has_final: final_state.is_some().into(),
        silu: silu.into(),
    };
    let launch = Launch::new(OP, &params)
        .read_apart_optional(Some(x))
        .read_apart_optional(Some(weight))
        .read_apart_optional(bias)
        .read_optional(initial_state)
        .write_in_place_optional(final_state)
        .write(out)
        .flops(2 * width * x.elements());
    let entry = match weight_dtype == dtype {
        true => float_entry!(dtype, T => cpu::run::<T, T>),
        false => float_entry!(dtype, T => cpu::run::<T, f32>),
    };
    stream.launch(launch, entry, || Gpu {
        source: &SOURCE,
        defines: defines(dtype, width, if tokens == 1 { 1 } else { AHEAD }, whole),
        entry: format!("causal_conv1d_{dtype}_{weight_dtype}"),
        threadgroups: [across.div_ceil(ACROSS), tokens.div_ceil(params.block * DOWN).max(1), 1],
        threads: [ACROSS, DOWN, 1],
    })
}

const OP: &str = "causal_conv1d";

/// What the kernel is compiled with.
pub(super) fn defines(dtype: DType, width: usize, ahead: u32, whole: bool) -> String {
    format!("#define WIDTH {width}\n#define AHEAD {ahead}\n{}{}", rows::whole(whole), rows::quick(dtype))
}

/// Threads of a threadgroup along channels and along tokens: rows that follow each other are found in the first cache.
const ACROSS: u32 = 32;
const DOWN: u32 = 4;

/// Tokens of which inputs are loaded together.
const AHEAD: u32 = 4;

/// Tokens whose channels are not packed.
const FEW: u32 = 8;

kernel_params! {
    /// Strides are elements by token and, for states, by channel; the weight's by channel.
    struct Params {
        tokens: u32,
        channels: u32,
        x_stride: u32,
        weight_stride: u32,
        out_stride: u32,
        state_strides: [u32; 2],
        final_strides: [u32; 2],
        /// Tokens a thread.
        block: u32,
        width: u32,
        has_bias: u32,
        has_state: u32,
        has_final: u32,
        silu: u32,
    }
}

pub(super) static SOURCE: KernelSource =
    KernelSource { name: "causal_conv1d", params: &[Params::DECLARATION], body: include_str!("kernel.metal") };
