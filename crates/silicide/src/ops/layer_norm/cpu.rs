//! A row at a time, in scratch memory.

use super::Params;
use crate::Float;
use crate::device::cpu::Call;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::{narrow, sum, sum_squares, vectorized, widen};

pub(super) fn run<T: Float, W: Float>(call: &Call) {
    let p: Params = call.params();
    let dim = p.dim as usize;
    let (x, weight) = (call.view::<T>(0), call.view::<W>(1));
    let (bias, out) = (call.view::<W>(2), call.view::<T>(3));
    call.pool.parallel_ranges(p.rows as usize, call.grain(dim), &|rows| {
        with_scratch(dim, |s| {
            for row in rows {
                vectorized(
                    #[inline(always)]
                    || {
                        // SAFETY: a row is read before the same row of the output is written, and by no other task.
                        unsafe { widen(x.row(row * p.x_stride as usize, dim), s) };
                        let mean = sum(s) / dim as f32;
                        for s in s.iter_mut() {
                            *s -= mean;
                        }
                        let scale = 1.0 / (sum_squares(s) / dim as f32 + p.eps).sqrt();
                        for s in s.iter_mut() {
                            *s *= scale;
                        }
                        if p.has_weight != 0 {
                            // SAFETY: nothing writes the weight.
                            for (s, w) in s.iter_mut().zip(unsafe { weight.row(0, dim) }) {
                                *s *= w.to_f32();
                            }
                        }
                        if p.has_bias != 0 {
                            // SAFETY: nothing writes the bias.
                            for (s, b) in s.iter_mut().zip(unsafe { bias.row(0, dim) }) {
                                *s += b.to_f32();
                            }
                        }
                        // SAFETY: as above.
                        narrow(s, unsafe { out.row_mut(row * p.out_stride as usize, dim) });
                    },
                );
            }
        });
    });
}
