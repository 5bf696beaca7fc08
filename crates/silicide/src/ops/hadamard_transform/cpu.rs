//! A row at a time, in scratch memory.

use super::Params;
use crate::Float;
use crate::device::cpu::Call;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::vectorized;
use crate::ops::walk::{load, store};

pub(super) fn run<T: Float>(call: &Call) {
    let Params { walk, scale, has_before, has_after, .. } = call.params();
    let (x, out) = (call.view::<T>(0), call.view::<T>(3));
    let before = if has_before != 0 { call.slice::<u32>(1) } else { &[] };
    let after = if has_after != 0 { call.slice::<u32>(2) } else { &[] };
    let len = walk.row_len();
    walk.for_each_rows(call.pool, |rows| {
        with_scratch(len, |s| {
            vectorized(
                #[inline(always)]
                || {
                    for row in rows {
                        let at = walk.start(row);
                        // SAFETY: a row is read before the same row of the output is written, and by no other task.
                        unsafe { load(x, at[0], walk.stride(0), s) };
                        s.iter_mut().for_each(|s| *s *= scale);
                        flip(s, before);
                        butterflies(s);
                        flip(s, after);
                        // SAFETY: as above.
                        unsafe { store(s, out, at[1], walk.stride(1)) };
                    }
                },
            )
        });
    });
}

/// Turns the signs of elements whose bit is set; none for no words.
#[inline(always)]
pub(in crate::ops) fn flip(s: &mut [f32], words: &[u32]) {
    for (s, &word) in s.chunks_mut(32).zip(words) {
        for (i, s) in s.iter_mut().enumerate() {
            *s = f32::from_bits(s.to_bits() ^ word >> i << 31);
        }
    }
}

/// The unscaled transform of a power of two of elements.
#[inline(always)]
pub(in crate::ops) fn butterflies(s: &mut [f32]) {
    const LANES: usize = 16;
    let n = s.len();
    let mut chunks = s.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        let chunk: &mut [f32; LANES] = chunk.try_into().expect("a chunk has this many");
        within::<1>(chunk);
        within::<2>(chunk);
        within::<4>(chunk);
        within::<8>(chunk);
    }
    let mut step = if n < LANES { 1 } else { LANES };
    while 2 * step < n {
        for four in s.chunks_exact_mut(4 * step) {
            // Two steps at a time halve what goes through memory.
            let (low, high) = four.split_at_mut(2 * step);
            let ((a, b), (c, d)) = (low.split_at_mut(step), high.split_at_mut(step));
            for (((a, b), c), d) in a.iter_mut().zip(b).zip(c).zip(d) {
                let [e, f, g, h] = [*a + *b, *a - *b, *c + *d, *c - *d];
                [*a, *b, *c, *d] = [e + g, f + h, e - g, f - h];
            }
        }
        step *= 4;
    }
    if step < n {
        for pair in s.chunks_exact_mut(2 * step) {
            let (a, b) = pair.split_at_mut(step);
            for (a, b) in a.iter_mut().zip(b) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
    }
}

/// The butterflies of elements `STEP` apart, written so that they are shuffles of one vector.
#[inline(always)]
fn within<const STEP: usize>(x: &mut [f32; 16]) {
    let mut y = [0.0; 16];
    for i in 0..16 {
        y[i] = if i & STEP == 0 { x[i ^ STEP] + x[i] } else { x[i ^ STEP] - x[i] };
    }
    *x = y;
}
