//! Functions of one tensor, element by element.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_enum, kernel_params};
use crate::ops::check::{check, float_entry};
use crate::ops::rows::{packet, quick, whole};
use crate::ops::walk::Walk;
use crate::{Result, Tensor};

kernel_enum! {
    /// What [`unary`] computes.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub enum Unary {
        /// `-x`.
        Neg,
        /// `|x|`.
        Abs,
        /// `e^x`.
        Exp,
        /// The natural logarithm.
        Log,
        /// The square root.
        Sqrt,
        /// `1 / sqrt(x)`.
        Rsqrt,
        /// `x * x`.
        Square,
        /// `1 / (1 + e^-x)`.
        Sigmoid,
        /// `x * sigmoid(x)`.
        Silu,
        /// The hyperbolic tangent.
        Tanh,
        /// `x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2`.
        GeluTanh,
        /// `x * (1 + erf(x / sqrt 2)) / 2`.
        GeluErf,
        /// `max(x, 0)`; NaN for NaN.
        Relu,
        /// `log(1 + e^x)`, exact to rounding for large and for negative `x`.
        Softplus,
        /// The sine of radians.
        Sin,
        /// The cosine of radians.
        Cos,
        /// `cap * tanh(x / cap)`: keeps scores within `cap`.
        Softcap {
            /// The bound, above 0.
            cap: f32,
        },
        /// `scale * x + shift`.
        ScaleShift {
            /// Multiplies.
            scale: f32,
            /// Is added after.
            shift: f32,
        },
        /// The nearest number from `min` to `max`; NaN for NaN.
        Clamp {
            /// The least; negative infinity for no bound.
            min: f32,
            /// The greatest, no less than `min`; infinity for no bound.
            max: f32,
        },
    }
}

/// `function(x)`, element by element.
///
/// `x` is f32, f16 or bf16 with any strides. The arithmetic is in f32, to a few units in its last place, or on GPUs to some
/// 1e-5 where results have 16 bits, and rounded once. Outside a function's domain the result is NaN, as IEEE 754 has it. The
/// result is row-major.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where types do not fit, a softcap is not above 0, or bounds are in the wrong order.
///
/// ```
/// use silicide::{Device, ops};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let x = device.tensor(&[-2.0f32, 3.0], [2])?;
/// assert_eq!(ops::unary(stream, ops::Unary::Relu, &x)?.to_vec::<f32>(stream)?, [0.0, 3.0]);
/// let line = ops::Unary::ScaleShift { scale: 2.0, shift: 1.0 };
/// assert_eq!(ops::unary(stream, line, &x)?.to_vec::<f32>(stream)?, [-3.0, 7.0]);
/// # Ok(())
/// # }
/// ```
pub fn unary(stream: &mut Stream, function: Unary, x: &Tensor) -> Result<Tensor> {
    let out = stream.empty(x.dtype(), *x.shape())?;
    unary_into(stream, function, x, &out)?;
    Ok(out)
}

/// [`unary`] into `out`, which may be `x` itself.
pub fn unary_into(stream: &mut Stream, function: Unary, x: &Tensor, out: &Tensor) -> Result<()> {
    let dtype = x.dtype();
    check(OP, dtype.is_float(), || format!("x: got {x:?}, wanted f32, f16 or bf16"))?;
    check(OP, x.shape() == out.shape() && dtype == out.dtype(), || format!("out: got {out:?}, wanted {x:?}"))?;
    let (a, b) = match function {
        Unary::Softcap { cap } => {
            check(OP, cap > 0.0, || format!("cap: got {cap}, wanted a number above 0"))?;
            (cap, 0.0)
        }
        Unary::ScaleShift { scale, shift } => (scale, shift),
        Unary::Clamp { min, max } => {
            check(OP, min <= max, || format!("min: got {min}, wanted {max} or less, as max is"))?;
            (min, max)
        }
        _ => (0.0, 0.0),
    };
    if out.elements() == 0 {
        return Ok(());
    }
    let params = Params { walk: Walk::elements(OP, &[x, out])?, function: function.code(), a, b, pad: 0 };
    let launch = Launch::new(OP, &params).read(x).write_in_place(out).flops(4 * x.elements());
    stream.launch(launch, float_entry!(dtype, T => cpu::run::<T>), || {
        let aligned = params.walk.packets_align(packet(dtype), &[x, out]);
        let (threadgroups, threads) = params.walk.steps(if aligned { packet(dtype) } else { 1 });
        let defines = whole(aligned) + quick(dtype) + &function.define();
        Gpu { source: &SOURCE, defines, entry: format!("unary_{dtype}"), threadgroups, threads }
    })
}

const OP: &str = "unary";

kernel_params! {
    struct Params {
        walk: Walk,
        /// A `Unary`.
        function: u32,
        /// The cap, the scale, or the least.
        a: f32,
        /// The shift, or the greatest.
        b: f32,
        /// Makes the size a multiple of 8.
        pad: u32,
    }
}

pub(super) static SOURCE: KernelSource = KernelSource {
    name: "unary",
    params: &[Walk::DECLARATION, Unary::DECLARATION, Params::DECLARATION],
    body: include_str!("kernel.metal"),
};
