//! Tokens are shared out; a token's sum stays in the first-level cache while its rows pass.

use super::Params;
use crate::Float;
use crate::device::cpu::Call;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::{narrow, sigmoid, vectorized, widen};

pub(super) fn run<T: Float>(call: &Call) {
    let p: Params = call.params();
    let (slots, n) = (p.slots as usize, p.n as usize);
    let (y, weights, out) = (call.view::<T>(0), call.slice::<f32>(1), call.view::<T>(5));
    let logits = if p.has_gate != 0 { call.slice::<T>(2) } else { &[] };
    let (shared, residual) = (call.view::<T>(3), call.view::<T>(4));
    let [shared_stride, residual_stride, out_stride] = p.strides.map(|stride| stride as usize);
    call.pool.parallel_ranges(p.tokens as usize, call.grain(n * (slots + 1)), &|tokens| {
        with_scratch(2 * n, |scratch: &mut [f32]| {
            let (sum, wide) = scratch.split_at_mut(n);
            vectorized(
                #[inline(always)]
                || {
                    for token in tokens {
                        sum.fill(0.0);
                        let mut add = |factor: f32, row: &[T]| {
                            widen(row, wide);
                            sum.iter_mut().zip(wide.iter()).for_each(|(s, w)| *s += factor * w);
                        };
                        // SAFETY: a task reads its tokens' rows before it writes over them, and touches no others; each
                        // slice of an input ends before the output that may lie in its place begins.
                        unsafe {
                            for (slot, &weight) in weights[token * slots..][..slots].iter().enumerate() {
                                add(weight, y.row((token * slots + slot) * p.y_stride as usize, n));
                            }
                            if p.has_shared != 0 {
                                let gate = logits.get(token).map_or(1.0, |logit| sigmoid(logit.to_f32()));
                                add(gate, shared.row(token * shared_stride, n));
                            }
                            if p.has_residual != 0 {
                                add(1.0, residual.row(token * residual_stride, n));
                            }
                            narrow(sum, out.row_mut(token * out_stride, n));
                        }
                    }
                },
            );
        });
    });
}
