//! A task solves for a block of columns of one batch, row by row, in scratch memory.

use super::Params;
use crate::Float;
use crate::device::cpu::Call;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::{narrow, vectorized, widen};

/// Columns that are solved together.
const COLUMNS: usize = 64;

/// Takes the solved rows off another, which stays in registers.
#[inline(always)]
fn subtract(row: &mut [f32; COLUMNS], solved: &[f32], low: &[f32]) {
    let mut sums = *row;
    for (x, &l) in solved.as_chunks::<COLUMNS>().0.iter().zip(low) {
        for i in 0..COLUMNS {
            sums[i] -= l * x[i];
        }
    }
    *row = sums;
}

pub(super) fn run<T: Float>(call: &Call) {
    let p: Params = call.params();
    let (b, l, out) = (call.view::<T>(0), call.view::<T>(1), call.view::<T>(2));
    let (n, m) = (p.n as usize, p.m as usize);
    let blocks = m.div_ceil(COLUMNS);
    let at = |strides: [u32; 2], batch: usize, row: usize| batch * strides[0] as usize + row * strides[1] as usize;
    call.pool.parallel_ranges(p.batch as usize * blocks, call.grain(n * n * m.min(COLUMNS) / 2), &|tasks| {
        for task in tasks {
            let (batch, first) = (task / blocks, task % blocks * COLUMNS);
            let width = COLUMNS.min(m - first);
            with_scratch(n * (width + 1), |scratch: &mut [f32]| {
                vectorized(
                    #[inline(always)]
                    || {
                        let (x, low) = scratch.split_at_mut(n * width);
                        for i in 0..n {
                            let (solved, rest) = x.split_at_mut(i * width);
                            let row = &mut rest[..width];
                            // SAFETY: a task reads its columns of `b` before it writes the same of the output, and touches
                            // no others; nothing writes `l`.
                            unsafe {
                                widen(b.row(at(p.b_strides, batch, i) + first, width), row);
                                widen(l.row(at(p.l_strides, batch, i), i), low);
                            }
                            if let Ok(row) = <&mut [f32; COLUMNS]>::try_from(&mut *row) {
                                subtract(row, solved, &low[..i]);
                            } else {
                                for (x, &l) in solved.chunks_exact(width).zip(low.iter()) {
                                    for (r, x) in row.iter_mut().zip(x) {
                                        *r -= l * x;
                                    }
                                }
                            }
                            // SAFETY: as above.
                            narrow(row, unsafe { out.row_mut(at(p.out_strides, batch, i) + first, width) });
                        }
                    },
                );
            });
        }
    });
}
