//! A block of each row at a time, widened.

use super::{Gate, Params};
use crate::Float;
use crate::device::cpu::Call;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::{gelu_erf, gelu_tanh, sigmoid, silu, vectorized};
use crate::ops::walk::{BLOCK, load, store};

/// `g = activation(g) * u`, for callers inside of `vectorized`. `gate` is the code of a [`Gate`].
#[inline(always)]
pub(in crate::ops) fn multiply_gated(gate: u32, g: &mut [f32], u: &[f32]) {
    #[inline(always)]
    fn apply(g: &mut [f32], u: &[f32], activation: impl Fn(f32) -> f32) {
        g.iter_mut().zip(u).for_each(|(g, u)| *g = activation(*g) * u);
    }
    match gate {
        code if code == Gate::Silu.code() => apply(g, u, silu),
        code if code == Gate::GeluTanh.code() => apply(g, u, gelu_tanh),
        code if code == Gate::GeluErf.code() => apply(g, u, gelu_erf),
        _ => apply(g, u, sigmoid),
    }
}

pub(super) fn run<T: Float>(call: &Call) {
    let Params { walk, gate: code, .. } = call.params();
    let (gate, up, out) = (call.view::<T>(0), call.view::<T>(1), call.view::<T>(2));
    walk.for_each_run(call.pool, BLOCK, |at, len| {
        with_scratch(2 * len, |s| {
            vectorized(
                #[inline(always)]
                || {
                    let (g, u) = s.split_at_mut(len);
                    // SAFETY: a run is read before the same run of the output is written, and by no other task.
                    unsafe {
                        load(gate, at[0], walk.stride(0), g);
                        load(up, at[1], walk.stride(1), u);
                    }
                    multiply_gated(code, g, u);
                    // SAFETY: as above.
                    unsafe { store(g, out, at[2], walk.stride(2)) };
                },
            )
        });
    });
}
