//! A task takes a block of channels through all tokens; the window is a ring of widened rows.

use super::Params;
use crate::Float;
use crate::device::cpu::Call;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::{narrow, silu, vectorized, widen};
use crate::ops::walk::{load, store};

/// Channels that are filtered together: the window and the weights of a block stay in the first-level cache.
const CHANNELS: usize = 128;

pub(super) fn run<T: Float, W: Float>(call: &Call) {
    let p: Params = call.params();
    let (x, weight, bias) = (call.view::<T>(0), call.view::<W>(1), (p.has_bias != 0).then(|| call.slice::<W>(2)));
    let initial = (p.has_state != 0).then(|| call.view::<T>(3));
    let last = (p.has_final != 0).then(|| call.view::<T>(4));
    let out = call.view::<T>(5);
    let (tokens, channels, width) = (p.tokens as usize, p.channels as usize, p.width as usize);
    let [state_stride, state_step] = p.state_strides.map(|s| s as usize);
    let [final_stride, final_step] = p.final_strides.map(|s| s as usize);
    let grain = call.grain(CHANNELS * width * (tokens + 1));
    call.pool.parallel_ranges(channels.div_ceil(CHANNELS), grain, &|blocks| {
        for first in blocks.map(|block| block * CHANNELS) {
            let n = CHANNELS.min(channels - first);
            with_scratch((2 * width + 1) * n, |scratch: &mut [f32]| {
                vectorized(
                    #[inline(always)]
                    || {
                        let (sum, scratch) = scratch.split_at_mut(n);
                        let (taps, ring) = scratch.split_at_mut(width * n);
                        let together = if p.weight_stride == p.width { n } else { 1 };
                        for c in (0..n).step_by(together) {
                            let at = (first + c) * p.weight_stride as usize;
                            // SAFETY: nothing writes the weight.
                            let rows = unsafe { weight.row(at, together * width) };
                            widen(rows, &mut ring[c * width..][..rows.len()]);
                        }
                        for (c, row) in ring.chunks_exact(width).enumerate() {
                            for (i, &w) in row.iter().enumerate() {
                                taps[i * n + c] = w;
                            }
                        }
                        for i in 0..width - 1 {
                            let row = &mut ring[i * n..][..n];
                            match initial {
                                // SAFETY: a task reads its channels of the state before it writes them below, and
                                // touches no others.
                                Some(state) => unsafe {
                                    load(state, i * state_stride + first * state_step, state_step, row)
                                },
                                None => row.fill(0.0),
                            }
                        }
                        for token in 0..tokens {
                            let newest = (token + width - 1) % width;
                            // SAFETY: nothing writes `x`.
                            let row = unsafe { x.row(token * p.x_stride as usize + first, n) };
                            widen(row, &mut ring[newest * n..][..n]);
                            match bias {
                                Some(bias) => widen(&bias[first..][..n], sum),
                                None => sum.fill(0.0),
                            }
                            for (i, taps) in taps.chunks_exact(n).enumerate() {
                                let inputs = &ring[(token + i) % width * n..][..n];
                                for ((sum, w), x) in sum.iter_mut().zip(taps).zip(inputs) {
                                    *sum += w * x;
                                }
                            }
                            if p.silu != 0 {
                                sum.iter_mut().for_each(|s| *s = silu(*s));
                            }
                            // SAFETY: a task writes its channels of each row of the output.
                            narrow(sum, unsafe { out.row_mut(token * p.out_stride as usize + first, n) });
                        }
                        if let Some(last) = last {
                            for i in 0..width - 1 {
                                let row = &ring[(tokens + i) % width * n..][..n];
                                // SAFETY: as above.
                                unsafe { store(row, last, i * final_stride + first * final_step, final_step) };
                            }
                        }
                    },
                );
            });
        }
    });
}
