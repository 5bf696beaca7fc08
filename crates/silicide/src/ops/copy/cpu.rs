//! Runs of contiguous elements by `memcpy`, matrices that are turned by squares, other elements one by one.

use super::Params;
use crate::Element;
use crate::device::cpu::vector::{ask, vectorized};
use crate::device::cpu::{Call, View};
use crate::ops::walk::map;

pub(super) fn run<T: Element>(call: &Call) {
    let walk = call.params::<Params>().walk;
    let (x, out) = (call.bits::<T>(0), call.bits::<T>(1));
    if let Some(axis) = walk.turned() {
        let (from, to) = (walk.stride(0), walk.outer_stride(1, axis));
        return walk.for_each_slab(call.pool, axis, 4 * SIDE, |at, across| {
            vectorized(
                #[inline(always)]
                || turn((x, at[0], from), (out, at[1], to), across, walk.row_len()),
            );
        });
    }
    walk.for_each_run(call.pool, usize::MAX, |at, len| {
        // SAFETY: input and output are apart, and a run of the output is written by one task.
        unsafe {
            match (walk.stride(0), walk.stride(1)) {
                (1, 1) => out.row_mut(at[1], len).copy_from_slice(x.row(at[0], len)),
                (sx, so) => map((x, at[0], sx), (out, at[1], so), len, |x| x),
            }
        }
    });
}

/// Elements of a side of the squares that are turned in the first cache: a line of four-byte ones.
const SIDE: usize = 16;

/// Writes row `i` of the output as column `i` of the input, for `across` rows of `len` elements. Each line of either is
/// touched once: rows that are a power of two apart would drive each other from the cache.
#[inline(always)]
fn turn<T: Element>(
    (x, x_at, x_stride): (View<T>, usize, usize),
    (out, out_at, out_stride): (View<T>, usize, usize),
    across: usize,
    len: usize,
) {
    let mut square = [[T::zeroed(); SIDE]; SIDE];
    for first in (0..len).step_by(SIDE) {
        let height = SIDE.min(len - first);
        for left in (0..across).step_by(SIDE) {
            let width = SIDE.min(across - left);
            // SAFETY: input and output are apart, and these elements of the output are written by one task.
            unsafe {
                for (i, line) in square[..height].iter_mut().enumerate() {
                    let line = &mut line[..width];
                    let from = x.row(x_at + (first + i) * x_stride + left, width);
                    ask(from.as_ptr().wrapping_add(2 * SIDE * x_stride).cast());
                    line.copy_from_slice(from);
                }
                for j in 0..width {
                    let to = out.row_mut(out_at + (left + j) * out_stride + first, height);
                    match <&mut [T; SIDE]>::try_from(&mut *to) {
                        Ok(to) => *to = std::array::from_fn(|i| square[i][j]),
                        Err(_) => to.iter_mut().zip(&square).for_each(|(to, line)| *to = line[j]),
                    }
                }
            }
        }
    }
}
