//! A row at a time, in scratch memory.

use super::Params;
use crate::Float;
use crate::device::cpu::Call;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::{silu, sum_squares, vectorized, widen};
use crate::ops::walk::{load, store};

pub(super) fn run<T: Float, W: Float>(call: &Call) {
    let Params { walk, eps, .. } = call.params();
    let (x, gate, weight, out) = (call.view::<T>(0), call.view::<T>(1), call.slice::<W>(2), call.view::<T>(3));
    let len = walk.row_len();
    walk.for_each_row(call.pool, |_, at| {
        with_scratch(3 * len, |scratch| {
            vectorized(
                #[inline(always)]
                || {
                    let (s, scratch) = scratch.split_at_mut(len);
                    let (g, w) = scratch.split_at_mut(len);
                    widen(weight, w);
                    // SAFETY: a row is read before the same row of the output is written, and by no other task.
                    unsafe {
                        load(x, at[0], walk.stride(0), s);
                        load(gate, at[1], walk.stride(1), g);
                    }
                    let scale = 1.0 / (sum_squares(s) / len as f32 + eps).sqrt();
                    for ((s, g), w) in s.iter_mut().zip(g.iter()).zip(w.iter()) {
                        *s = *s * scale * w * silu(*g);
                    }
                    // SAFETY: as above.
                    unsafe { store(s, out, at[2], walk.stride(2)) };
                },
            )
        });
    });
}
