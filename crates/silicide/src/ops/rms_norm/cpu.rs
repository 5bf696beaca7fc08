//! Rows are shared out where there are enough of them; a decode step's row stays on the caller's thread.

use super::Params;
use crate::Float;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::{narrow, sum_squares, vectorized, widen};
use crate::device::cpu::{Call, View};

pub(super) fn run<T: Float, W: Float>(call: &Call) {
    let p: Params = call.params();
    let dim = p.dim as usize;
    let work = Work {
        p,
        x: call.view::<T>(0),
        weight: call.view::<W>(1),
        residual: call.view::<T>(2),
        sum: call.view::<T>(3),
        out: call.view::<T>(4),
    };
    call.pool.parallel_ranges(p.rows as usize, call.grain(dim), &|rows| {
        with_scratch(dim, |scratch| {
            vectorized(
                #[inline(always)]
                || rows.for_each(|row| work.row(row, scratch)),
            );
        });
    });
}

struct Work<'a, T, W> {
    p: Params,
    x: View<'a, T>,
    weight: View<'a, W>,
    residual: View<'a, T>,
    sum: View<'a, T>,
    out: View<'a, T>,
}

impl<T: Float, W: Float> Work<'_, T, W> {
    #[inline(always)]
    fn row(&self, row: usize, s: &mut [f32]) {
        let p = &self.p;
        let dim = s.len();
        // SAFETY: a task reads its row of the inputs before it writes the same row of the outputs, and touches no other
        // row; each slice of an input ends before the output that may lie in its place begins.
        unsafe {
            widen(self.x.row(row * p.x_stride as usize, dim), s);
            if p.has_residual != 0 {
                let r = self.residual.row(row * p.residual_stride as usize, dim);
                for (s, r) in s.iter_mut().zip(r) {
                    // Rounded here, so that what is normalised is what the next layer reads.
                    *s = T::from_f32(*s + r.to_f32()).to_f32();
                }
            }
            if p.has_sum != 0 {
                narrow(s, self.sum.row_mut(row * p.sum_stride as usize, dim));
            }
        }
        let scale = 1.0 / (sum_squares(s) / dim as f32 + p.eps).sqrt();
        // SAFETY: as above.
        let out = unsafe { self.out.row_mut(row * p.out_stride as usize, dim) };
        if p.has_weight == 0 {
            for (o, s) in out.iter_mut().zip(s.iter()) {
                *o = T::from_f32(s * scale);
            }
        } else {
            // SAFETY: nothing writes the weight.
            let weight = unsafe { self.weight.row(0, dim) };
            for ((o, s), w) in out.iter_mut().zip(s.iter()).zip(weight) {
                *o = T::from_f32(s * scale * (w.to_f32() + p.weight_offset));
            }
        }
    }
}
