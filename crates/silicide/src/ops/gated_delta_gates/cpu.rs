//! A row at a time, widened; there is one number a head, so few threads are worth waking.

use super::Params;
use crate::Float;
use crate::device::cpu::Call;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::{exp, sigmoid, softplus, vectorized, widen};

pub(super) fn run<T: Float>(call: &Call) {
    let p: Params = call.params();
    let heads = p.heads as usize;
    let (a, b) = (call.view::<T>(0), call.view::<T>(1));
    let (rate, dt_bias) = (call.slice::<f32>(2), call.slice::<f32>(3));
    let (g, beta) = (call.view::<f32>(4), call.view::<f32>(5));
    call.pool.parallel_ranges(p.rows as usize, call.grain(8 * heads), &|rows| {
        with_scratch(2 * heads, |scratch| {
            vectorized(
                #[inline(always)]
                || {
                    let (s, rates) = scratch.split_at_mut(heads);
                    for (to, &rate) in rates.iter_mut().zip(rate) {
                        *to = if p.log_rate != 0 { -exp(rate) } else { rate };
                    }
                    for row in rows {
                        // SAFETY: a row of an input is read before the same row of the output that may lie in its place is
                        // written, and by no other task.
                        unsafe {
                            widen(a.row(row * p.a_stride as usize, heads), s);
                            let g = g.row_mut(row * p.g_stride as usize, heads);
                            for (((g, &a), &rate), &bias) in g.iter_mut().zip(&*s).zip(&*rates).zip(dt_bias) {
                                let log = rate * softplus(a + bias);
                                *g = if p.log != 0 { log } else { exp(log) };
                            }
                            widen(b.row(row * p.b_stride as usize, heads), s);
                            let beta = beta.row_mut(row * p.beta_stride as usize, heads);
                            for (beta, &b) in beta.iter_mut().zip(&*s) {
                                *beta = sigmoid(b);
                            }
                        }
                    }
                },
            );
        });
    });
}
