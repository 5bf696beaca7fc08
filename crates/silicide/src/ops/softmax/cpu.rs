//! A row at a time, in scratch memory.

use super::Params;
use crate::Float;
use crate::device::cpu::Call;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::{exp, max, sum, vectorized};
use crate::ops::walk::{load, store};

pub(super) fn run<T: Float, M: Float>(call: &Call) {
    let Params { walk, scale, has_mask, .. } = call.params();
    let (x, mask, out) = (call.view::<T>(0), call.view::<M>(1), call.view::<T>(2));
    let len = walk.row_len();
    walk.for_each_row(call.pool, |_, at| {
        with_scratch(2 * len, |scratch| {
            vectorized(
                #[inline(always)]
                || {
                    let (s, m) = scratch.split_at_mut(len);
                    // SAFETY: a row is read before the same row of the output is written, and by no other task.
                    unsafe {
                        load(x, at[0], walk.stride(0), s);
                        if has_mask != 0 {
                            load(mask, at[1], walk.stride(1), m);
                        }
                    }
                    if has_mask != 0 {
                        for (s, m) in s.iter_mut().zip(m.iter()) {
                            *s = *s * scale + m;
                        }
                    } else {
                        for s in s.iter_mut() {
                            *s *= scale;
                        }
                    }
                    let most = max(s);
                    if most == f32::NEG_INFINITY {
                        s.fill(0.0);
                    } else {
                        for s in s.iter_mut() {
                            *s = exp(*s - most);
                        }
                        let factor = 1.0 / sum(s);
                        for s in s.iter_mut() {
                            *s *= factor;
                        }
                    }
                    // SAFETY: as above.
                    unsafe { store(s, out, at[2], walk.stride(2)) };
                },
            )
        });
    });
}
