//! A block of each row at a time, widened.

use super::{Params, Unary};
use crate::Float;
use crate::device::cpu::Call;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::{self, vectorized};
use crate::ops::walk::{BLOCK, load, store};

pub(super) fn run<T: Float>(call: &Call) {
    let p: Params = call.params();
    let (walk, function) = (p.walk, p.function());
    let (x, out) = (call.view::<T>(0), call.view::<T>(1));
    walk.for_each_run(call.pool, BLOCK, |at, len| {
        with_scratch(len, |s| {
            // SAFETY: a run is read before the same run of the output is written, and by no other task.
            vectorized(
                #[inline(always)]
                || unsafe { load(x, at[0], walk.stride(0), s) },
            );
            apply(function, s);
            // SAFETY: as above.
            vectorized(
                #[inline(always)]
                || unsafe { store(s, out, at[1], walk.stride(1)) },
            );
        });
    });
}

impl Params {
    /// The function that the parameters were made from.
    fn function(&self) -> Unary {
        use Unary::*;
        let all = [
            Neg,
            Abs,
            Exp,
            Log,
            Sqrt,
            Rsqrt,
            Square,
            Sigmoid,
            Silu,
            Tanh,
            GeluTanh,
            GeluErf,
            Relu,
            Softplus,
            Sin,
            Cos,
            Softcap { cap: self.a },
            ScaleShift { scale: self.a, shift: self.b },
            Clamp { min: self.a, max: self.b },
        ];
        all.into_iter().find(|f| f.code() == self.function).expect("made from a Unary")
    }
}

fn apply(function: Unary, s: &mut [f32]) {
    match function {
        Unary::Neg => each(s, |x| -x),
        Unary::Abs => each(s, f32::abs),
        Unary::Exp => each(s, vector::exp),
        Unary::Log => each(s, vector::log),
        Unary::Sqrt => each(s, f32::sqrt),
        Unary::Rsqrt => each(s, |x| 1.0 / x.sqrt()),
        Unary::Square => each(s, |x| x * x),
        Unary::Sigmoid => each(s, vector::sigmoid),
        Unary::Silu => each(s, vector::silu),
        Unary::Tanh => each(s, vector::tanh),
        Unary::GeluTanh => each(s, vector::gelu_tanh),
        Unary::GeluErf => each(s, vector::gelu_erf),
        Unary::Relu => each(s, |x| if x < 0.0 { 0.0 } else { x }),
        Unary::Softplus => each(s, vector::softplus),
        Unary::Sin => each(s, f32::sin),
        Unary::Cos => each(s, f32::cos),
        Unary::Softcap { cap } => each(s, |x| cap * vector::tanh(x / cap)),
        Unary::ScaleShift { scale, shift } => each(s, |x| scale * x + shift),
        Unary::Clamp { min, max } => each(s, |x| {
            if x < min {
                min
            } else if x > max {
                max
            } else {
                x
            }
        }),
    }
}

fn each(s: &mut [f32], f: impl Fn(f32) -> f32) {
    vectorized(
        #[inline(always)]
        || s.iter_mut().for_each(|x| *x = f(*x)),
    );
}
