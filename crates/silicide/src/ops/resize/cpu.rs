//! A task makes some rows of the result: each is first the sum of the rows that count for it, then resampled within.

use super::{Axis, Params};
use crate::Float;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::vectorized;
use crate::device::cpu::{Call, View};
use crate::ops::walk::{load, store};

pub(super) fn run<T: Float>(call: &Call) {
    let p: Params = call.params();
    let (x, out) = (call.view::<T>(0), call.view::<T>(1));
    let (width, dim) = (p.x.from as usize, p.dim as usize);
    // Weights of columns serve every row: a line of them for each column.
    let line = p.x.most_taps();
    with_scratch(p.x.to as usize * line, |columns| {
        for (column, weights) in columns.chunks_exact_mut(line).enumerate() {
            weights_of(&p, &p.x, column as u32, weights);
        }
        let columns = &*columns;
        call.pool.parallel_ranges(p.y.to as usize, call.grain(p.x.to as usize * dim), &|rows| {
            let most = p.y.most_taps();
            with_scratch(most + 2 * width * dim, |scratch| {
                let (weights, scratch) = scratch.split_at_mut(most);
                let (sum, element) = scratch.split_at_mut(width * dim);
                vectorized(
                    #[inline(always)]
                    || {
                        for row in rows {
                            weights_of(&p, &p.y, row as u32, weights);
                            sum_rows(&p, row as u32, weights, x, sum, element);
                            make_row(&p, row, columns, line, sum, &mut element[..dim], out);
                        }
                    },
                );
            });
        });
    });
}

/// The weights of the elements that count for element `i` of an axis.
fn weights_of(p: &Params, axis: &Axis, i: u32, weights: &mut [f32]) {
    let at = i64::from(i) * axis.step + axis.start;
    let a = if p.antialias != 0 { -0.5f32 } else { -0.75 };
    let mut total = 0.0;
    let taps = axis.taps(i, p.antialias);
    let count = (taps.end - taps.start) as usize;
    for (tap, weight) in taps.zip(weights.iter_mut()) {
        let d = (tap * axis.divisor - at).unsigned_abs() as f32 / axis.width as f32;
        *weight = match (p.cubic, d <= 1.0) {
            (0, _) => 1.0 - d,
            (_, true) => 1.0 - d * d * ((a + 3.0) - (a + 2.0) * d),
            _ => a * (d - 1.0) * (2.0 - d) * (2.0 - d),
        };
        total += *weight;
    }
    if p.antialias != 0 {
        weights[..count].iter_mut().for_each(|w| *w /= total);
    }
}

/// Each element that counts for element `i` of an axis, with its weight; the edge stands for those past it.
#[inline(always)]
fn counting<'a>(p: &Params, axis: &'a Axis, i: u32, weights: &'a [f32]) -> impl Iterator<Item = (usize, f32)> + 'a {
    let last = i64::from(axis.from) - 1;
    let taps = axis.taps(i, p.antialias).zip(weights).filter(|(_, w)| **w != 0.0);
    taps.map(move |(tap, w)| (tap.clamp(0, last) as usize, *w))
}

/// `sum` is the weighted sum of the rows that count for one of the result, dense.
#[inline(always)]
fn sum_rows<T: Float>(p: &Params, row: u32, weights: &[f32], x: View<T>, sum: &mut [f32], element: &mut [f32]) {
    let (width, dim) = (p.x.from as usize, p.dim as usize);
    let dense = p.x_strides[2] == 1 && p.x_strides[1] == dim as u64;
    let len = if dense { width * dim } else { dim };
    sum.fill(0.0);
    for (y, weight) in counting(p, &p.y, row, weights) {
        for (column, sum) in sum.chunks_exact_mut(len).enumerate() {
            let at = y * p.x_strides[0] as usize + column * p.x_strides[1] as usize;
            // SAFETY: nothing writes the input.
            unsafe { load(x, at, p.x_strides[2] as usize, &mut element[..len]) };
            sum.iter_mut().zip(element.iter()).for_each(|(s, e)| *s += weight * e);
        }
    }
}

#[inline(always)]
fn make_row<T: Float>(
    p: &Params,
    row: usize,
    columns: &[f32],
    line: usize,
    sum: &[f32],
    element: &mut [f32],
    out: View<T>,
) {
    let dim = p.dim as usize;
    for (column, weights) in columns.chunks_exact(line).enumerate() {
        element.fill(0.0);
        for (from, weight) in counting(p, &p.x, column as u32, weights) {
            let from = &sum[from * dim..][..dim];
            element.iter_mut().zip(from).for_each(|(e, s)| *e += weight * s);
        }
        let at = row * p.out_strides[0] as usize + column * p.out_strides[1] as usize;
        // SAFETY: a row of the result is one task's alone.
        unsafe { store(element, out, at, p.out_strides[2] as usize) };
    }
}
