//! One task a row; a single row runs on the caller's thread.

use super::Params;
use crate::Float;
use crate::device::cpu::Call;
use crate::device::cpu::vector::{narrow, sum_squares, vectorized, widen, with_scratch};

pub(super) fn run<T: Float, W: Float>(call: &Call) {
    let p: Params = call.params();
    let dim = p.dim as usize;
    let (x, weight, residual) = (call.view::<T>(0), call.view::<W>(1), call.view::<T>(2));
    let (sum, out) = (call.view::<T>(3), call.view::<T>(4));
    call.pool.parallel(p.rows as usize, &|row| {
        with_scratch(dim, |s| {
            vectorized(
                #[inline(always)]
                || {
                    // SAFETY: a task reads its row of the inputs before it writes the same row of the outputs, and
                    // touches no other; the slices of inputs end here.
                    unsafe {
                        widen(x.row(row * p.x_stride as usize, dim), s);
                        if p.has_residual != 0 {
                            let r = residual.row(row * p.residual_stride as usize, dim);
                            for (s, r) in s.iter_mut().zip(r) {
                                // Rounded here, so that what is normalised is what the next layer reads.
                                *s = T::from_f32(*s + r.to_f32()).to_f32();
                            }
                        }
                        if p.has_sum != 0 {
                            narrow(s, sum.row_mut(row * p.sum_stride as usize, dim));
                        }
                    }
                    let scale = 1.0 / (sum_squares(s) / dim as f32 + p.eps).sqrt();
                    // SAFETY: as above; nothing writes the weight.
                    let out = unsafe { out.row_mut(row * p.out_stride as usize, dim) };
                    if p.has_weight == 0 {
                        for (o, s) in out.iter_mut().zip(s.iter()) {
                            *o = T::from_f32(s * scale);
                        }
                    } else {
                        // SAFETY: as above.
                        let w = unsafe { weight.row(0, dim) };
                        for ((o, s), w) in out.iter_mut().zip(s.iter()).zip(w) {
                            *o = T::from_f32(s * scale * (w.to_f32() + p.weight_offset));
                        }
                    }
                },
            );
        });
    });
}
