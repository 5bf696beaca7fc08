//! A row at a time, in scratch memory.

use super::Params;
use crate::Float;
use crate::device::cpu::Call;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::{sum_squares, vectorized};
use crate::ops::walk::{load, store};

pub(super) fn run<T: Float>(call: &Call) {
    let Params { walk, eps, .. } = call.params();
    let (x, out) = (call.view::<T>(0), call.view::<T>(1));
    let len = walk.row_len();
    walk.for_each_row(call.pool, |_, at| {
        with_scratch(len, |s| {
            vectorized(
                #[inline(always)]
                || {
                    // SAFETY: a row is read before the same row of the output is written, and by no other task.
                    unsafe { load(x, at[0], walk.stride(0), s) };
                    let scale = 1.0 / (sum_squares(s) + eps).sqrt();
                    for s in s.iter_mut() {
                        *s *= scale;
                    }
                    // SAFETY: as above.
                    unsafe { store(s, out, at[1], walk.stride(1)) };
                },
            )
        });
    });
}
