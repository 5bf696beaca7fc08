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

/// Replaces each element; a macro, since a closure may stay outside of the loop.
macro_rules! each {
    ($s:ident, $x:ident => $y:expr) => {
        vectorized(
            #[inline(always)]
            || {
                for at in $s {
                    let $x = *at;
                    *at = $y;
                }
            },
        )
    };
}

fn apply(function: Unary, s: &mut [f32]) {
    match function {
        Unary::Neg => each!(s, x => -x),
        Unary::Abs => each!(s, x => x.abs()),
        Unary::Exp => each!(s, x => vector::exp(x)),
        Unary::Log => each!(s, x => vector::log(x)),
        Unary::Sqrt => each!(s, x => x.sqrt()),
        Unary::Rsqrt => each!(s, x => 1.0 / x.sqrt()),
        Unary::Square => each!(s, x => x * x),
        Unary::Sigmoid => each!(s, x => vector::sigmoid(x)),
        Unary::Silu => each!(s, x => vector::silu(x)),
        Unary::Tanh => each!(s, x => vector::tanh(x)),
        Unary::GeluTanh => each!(s, x => vector::gelu_tanh(x)),
        Unary::GeluErf => each!(s, x => vector::gelu_erf(x)),
        Unary::Relu => each!(s, x => if x < 0.0 { 0.0 } else { x }),
        Unary::Softplus => each!(s, x => vector::softplus(x)),
        Unary::Sin => each!(s, x => x.sin()),
        Unary::Cos => each!(s, x => x.cos()),
        Unary::Softcap { cap } => each!(s, x => cap * vector::tanh(x / cap)),
        Unary::ScaleShift { scale, shift } => each!(s, x => scale * x + shift),
        Unary::Clamp { min, max } => each!(s, x => {
            let x = if x < min { min } else { x };
            if x > max { max } else { x }
        }),
    }
}
