//! A block of each row at a time, widened.

use super::{Gate, Params};
use crate::Float;
use crate::device::cpu::Call;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::{gelu_erf, gelu_tanh, sigmoid, silu, vectorized};
use crate::ops::walk::{BLOCK, load, store};

pub(super) fn run<T: Float>(call: &Call) {
    match call.params::<Params>().gate {
        g if g == Gate::Silu.code() => apply::<T>(call, silu),
        g if g == Gate::GeluTanh.code() => apply::<T>(call, gelu_tanh),
        g if g == Gate::GeluErf.code() => apply::<T>(call, gelu_erf),
        _ => apply::<T>(call, sigmoid),
    }
}

fn apply<T: Float>(call: &Call, activation: impl Fn(f32) -> f32 + Sync) {
    let walk = call.params::<Params>().walk;
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
                    for (g, u) in g.iter_mut().zip(u.iter()) {
                        *g = activation(*g) * u;
                    }
                    // SAFETY: as above.
                    unsafe { store(g, out, at[2], walk.stride(2)) };
                },
            )
        });
    });
}
