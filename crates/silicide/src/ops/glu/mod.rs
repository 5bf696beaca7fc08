//! Gated linear units: one tensor through an activation, times another.

pub(super) mod cpu;
#[cfg(test)]
pub(super) mod tests;

use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_enum, kernel_params};
use crate::ops::check::{check, float_entry};
use crate::ops::rows::{packet, whole};
use crate::ops::walk::Walk;
use crate::{Result, Tensor};

kernel_enum! {
    /// What [`glu`] does to the gate.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Gate {
        /// `g * sigmoid(g)`: SwiGLU.
        Silu,
        /// `g * (1 + tanh(sqrt(2 / pi) * (g + 0.044715 g^3))) / 2`: GeGLU as Gemma has it.
        GeluTanh,
        /// `g * (1 + erf(g / sqrt 2)) / 2`.
        GeluErf,
        /// `sigmoid(g)`: the gates of attention outputs.
        Sigmoid,
    }
}

/// `activation(gate) * up`, element by element.
///
/// `gate` and `up` are of one shape and type (f32, f16 or bf16) with any strides. The arithmetic is in f32 and rounded
/// once. The result is row-major. Mathematics: Shazeer, "GLU Variants Improve Transformer", 2020; Hendrycks and Gimpel,
/// "Gaussian Error Linear Units", 2016.
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
/// let gate = device.tensor(&[0.0f32, 40.0], [2])?;
/// let up = device.tensor(&[5.0f32, 2.0], [2])?;
/// let y = ops::glu(stream, ops::Gate::Silu, &gate, &up)?;
/// assert_eq!(y.to_vec::<f32>(stream)?, [0.0, 80.0]);
/// # Ok(())
/// # }
/// ```
pub fn glu(stream: &mut Stream, activation: Gate, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let out = stream.empty(gate.dtype(), *gate.shape())?;
    glu_into(stream, activation, gate, up, &out)?;
    Ok(out)
}

/// [`glu`] of a tensor `[.., 2 * n]` whose first half of each row is the gate and whose second half is `up`.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where the last axis is odd, or there is none.
pub fn glu_halves(stream: &mut Stream, activation: Gate, x: &Tensor) -> Result<Tensor> {
    let axis = x.rank().wrapping_sub(1);
    let len = x.shape().last().copied().unwrap_or(1);
    check(OP, len % 2 == 0, || format!("x: got {x:?}, wanted an even last axis, the gate's half before the other"))?;
    glu(stream, activation, &x.slice(axis, 0..len / 2)?, &x.slice(axis, len / 2..len)?)
}

/// [`glu`] into `out`, which may be `gate` or `up` itself.
pub fn glu_into(stream: &mut Stream, activation: Gate, gate: &Tensor, up: &Tensor, out: &Tensor) -> Result<()> {
    check(OP, gate.dtype().is_float(), || format!("gate: got {gate:?}, wanted f32, f16 or bf16"))?;
    for (name, t) in [("up", up), ("out", out)] {
        check(OP, t.shape() == gate.shape() && t.dtype() == gate.dtype(), || {
            format!("{name}: got {t:?}, wanted {gate:?}")
        })?;
    }
    if out.elements() == 0 {
        return Ok(());
    }
    let walk = Walk::elements(OP, &[gate, up, out])?;
    let params = Params { walk, gate: activation.code(), pad: 0 };
    let launch = Launch::new(OP, &params).read(gate).read(up).write_in_place(out).flops(6 * out.elements());
    stream.launch(launch, float_entry!(gate.dtype(), T => cpu::run::<T>), || {
        let n = packet(gate.dtype());
        let aligned = walk.packets_align(n, &[gate, up, out]);
        let (threadgroups, threads) = walk.steps(if aligned { n } else { 1 });
        let defines = whole(aligned) + &activation.define();
        Gpu { source: &SOURCE, defines, entry: format!("glu_{}", gate.dtype()), threadgroups, threads }
    })
}

const OP: &str = "glu";

kernel_params! {
    struct Params {
        walk: Walk,
        /// A `Gate`.
        gate: u32,
        /// Makes the size a multiple of 8.
        pad: u32,
    }
}

pub(super) static SOURCE: KernelSource = KernelSource {
    name: "glu",
    params: &[Walk::DECLARATION, Gate::DECLARATION, Params::DECLARATION],
    body: include_str!("kernel.metal"),
};
