//! One pass that keeps candidates above a rising bar; blocks without one are passed over by their greatest key.

use super::Params;
use crate::Float;
use crate::device::cpu::Call;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::{max_order_key, order_key, vectorized};
use crate::ops::walk::load;

/// Elements looked at at once.
const BLOCK: usize = 256;

pub(super) fn run<T: Float>(call: &Call) {
    let p: Params = call.params();
    let (walk, k) = (p.walk, p.k as usize);
    let (x, values, indices) = (call.view::<T>(0), call.view::<T>(1), call.view::<u32>(2));
    let (len, stride) = (walk.row_len(), walk.stride(0));
    walk.for_each_row(call.pool, |row, at| {
        with_scratch(room(len, k), |kept| {
            let mut candidates = Candidates { k, kept, count: 0, bar: 0 };
            with_scratch(BLOCK, |scratch| {
                for start in (0..len).step_by(BLOCK) {
                    let s = &mut scratch[..BLOCK.min(len - start)];
                    let most = vectorized(
                        #[inline(always)]
                        || {
                            // SAFETY: nothing writes the input.
                            unsafe { load(x, at[0] + start * stride, stride, s) };
                            max_order_key(s)
                        },
                    );
                    candidates.add(start, s, most);
                }
            });
            let best = candidates.into_sorted();
            // SAFETY: one task a row.
            let (values, indices) = unsafe { (values.row_mut(row * k, k), indices.row_mut(row * k, k)) };
            for ((v, i), &candidate) in values.iter_mut().zip(indices).zip(best) {
                *i = !(candidate as u32);
                // SAFETY: nothing writes the input.
                *v = unsafe { x.get(at[0] + *i as usize * stride) };
            }
        });
    });
}

/// How many candidates [`best_of`] has to hold.
pub(crate) fn room(len: usize, k: usize) -> usize {
    len.min(2 * k + BLOCK)
}

/// The best `k` of a row, best first: keys above the complements of indices.
pub(crate) fn best_of<'a>(x: &[f32], k: usize, kept: &'a mut [u64]) -> &'a [u64] {
    let mut candidates = Candidates { k, kept, count: 0, bar: 0 };
    for (block, x) in x.chunks(BLOCK).enumerate() {
        let most = vectorized(
            #[inline(always)]
            || max_order_key(x),
        );
        candidates.add(block * BLOCK, x, most);
    }
    candidates.into_sorted()
}

/// The best so far: keys above, the complement of indices below, so that of equals the first is greatest.
struct Candidates<'a> {
    k: usize,
    /// Room for `k`, those that come before the next cut, or a whole row.
    kept: &'a mut [u64],
    count: usize,
    /// What a candidate must exceed: the `k`th at the last cut.
    bar: u64,
}

impl<'a> Candidates<'a> {
    /// Looks at elements from `start` on, the greatest of whose keys is `most`.
    fn add(&mut self, start: usize, x: &[f32], most: u32) {
        if most < (self.bar >> 32) as u32 {
            return;
        }
        for (i, &x) in x.iter().enumerate() {
            let candidate = (order_key(x) as u64) << 32 | !((start + i) as u32) as u64;
            if candidate > self.bar {
                if self.count == self.kept.len() {
                    self.cut();
                    if candidate <= self.bar {
                        continue;
                    }
                }
                self.kept[self.count] = candidate;
                self.count += 1;
            }
        }
    }

    /// Drops all but the best `k`.
    fn cut(&mut self) {
        if self.count > self.k {
            self.kept[..self.count].select_nth_unstable_by(self.k - 1, |a, b| b.cmp(a));
            self.count = self.k;
            self.bar = self.kept[self.k - 1];
        }
    }

    /// The best `k`, best first.
    fn into_sorted(mut self) -> &'a [u64] {
        self.cut();
        let best = &mut self.kept[..self.count];
        best.sort_unstable_by(|a, b| b.cmp(a));
        best
    }
}
