//! A block at a time. Long rows are reduced in chunks, of which all threads take some.

use super::{Params, Reduce};
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::{ask_ahead, max, min, sum, vectorized};
use crate::device::cpu::{Call, View};
use crate::ops::walk::{BLOCK, load};
use crate::{DType, Element, Float};

/// Elements of a long row that are reduced apart; fixed, so that sums do not depend on the number of threads.
const CHUNK: usize = 64 * 1024;

fn operator(p: &Params) -> Reduce {
    let all = [Reduce::Sum, Reduce::Mean, Reduce::Max, Reduce::Min, Reduce::Prod];
    all.into_iter().find(|op| op.code() == p.op).expect("made from a Reduce")
}

pub(super) fn floats<T: Float, O: Float>(call: &Call) {
    let p: Params = call.params();
    let (op, x, out) = (operator(&p), call.view::<T>(0), call.view::<O>(1));
    let stride = p.walk.stride(0);
    let identity = match op {
        Reduce::Max => f32::NEG_INFINITY,
        Reduce::Min => f32::INFINITY,
        Reduce::Prod => 1.0,
        Reduce::Sum | Reduce::Mean => 0.0,
    };
    let combine = |a: f32, b: f32| match op {
        Reduce::Sum | Reduce::Mean => a + b,
        Reduce::Prod => a * b,
        // Where the first is NaN the comparison is false, where the second is the choice is it.
        Reduce::Max => {
            if a > b || a.is_nan() {
                a
            } else {
                b
            }
        }
        Reduce::Min => {
            if a < b || a.is_nan() {
                a
            } else {
                b
            }
        }
    };
    let part = |at: usize, n: usize| {
        let mut all = identity;
        with_scratch(BLOCK.min(n), |scratch| {
            for first in (0..n).step_by(BLOCK) {
                let s = &mut scratch[..BLOCK.min(n - first)];
                let of_block = vectorized(
                    #[inline(always)]
                    || {
                        let s = if T::DTYPE == DType::F32 && stride == 1 {
                            // SAFETY: nothing writes the input.
                            let row = unsafe { x.row(at + first, s.len()) };
                            ask_ahead(row);
                            bytemuck::cast_slice(row)
                        } else {
                            // SAFETY: as above.
                            unsafe { load(x, at + first * stride, stride, s) };
                            &*s
                        };
                        match op {
                            Reduce::Sum | Reduce::Mean => sum(s),
                            Reduce::Max => max(s),
                            Reduce::Min => min(s),
                            Reduce::Prod => product(s),
                        }
                    },
                );
                all = combine(all, of_block);
            }
        });
        all
    };
    let write = |row: usize, all: f32| {
        let result = if op == Reduce::Mean { all / p.count } else { all };
        // SAFETY: one task a row.
        unsafe { out.set(row, O::from_f32(result)) };
    };
    rows(call, &p, identity, part, combine, write);
}

/// The product, in lanes that do not wait for one another.
#[inline(always)]
fn product(x: &[f32]) -> f32 {
    let mut lanes = [1.0f32; 16];
    for part in x.chunks(lanes.len()) {
        lanes.iter_mut().zip(part).for_each(|(lane, x)| *lane *= x);
    }
    lanes.into_iter().product()
}

/// Integers whose arithmetic wraps.
pub(super) trait Integer: Element + Ord {
    const ONE: Self;
    const LEAST: Self;
    const GREATEST: Self;
    fn plus(self, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
}

macro_rules! integer {
    ($t:ty) => {
        impl Integer for $t {
            const ONE: $t = 1;
            const LEAST: $t = <$t>::MIN;
            const GREATEST: $t = <$t>::MAX;
            #[inline(always)]
            fn plus(self, other: $t) -> $t {
                self.wrapping_add(other)
            }
            #[inline(always)]
            fn times(self, other: $t) -> $t {
                self.wrapping_mul(other)
            }
        }
    };
}
integer!(i32);
integer!(u32);

pub(super) fn integers<T: Integer>(call: &Call) {
    match operator(&call.params()) {
        Reduce::Sum => fold(call, T::zeroed(), T::plus),
        Reduce::Prod => fold(call, T::ONE, T::times),
        Reduce::Max => fold(call, T::LEAST, T::max),
        Reduce::Min => fold(call, T::GREATEST, T::min),
        Reduce::Mean => unreachable!("refused before"),
    }
}

fn fold<T: Integer>(call: &Call, identity: T, combine: impl Fn(T, T) -> T + Sync + Copy) {
    let p: Params = call.params();
    let (x, out, stride) = (call.view::<T>(0), call.view::<T>(1), p.walk.stride(0));
    let part = |at: usize, n: usize| {
        vectorized(
            #[inline(always)]
            || {
                if stride == 1 {
                    // SAFETY: nothing writes the input.
                    return unsafe { x.row(at, n) }.iter().copied().fold(identity, combine);
                }
                // SAFETY: as above.
                (0..n).map(|i| unsafe { x.get(at + i * stride) }).fold(identity, combine)
            },
        )
    };
    // SAFETY: one task a row.
    rows(call, &p, identity, part, combine, |row, all| unsafe { out.set(row, all) });
}

/// Calls `write` with each row's number and its parts, combined. `part` takes a first element and how many there are.
fn rows<A: Element>(
    call: &Call,
    p: &Params,
    identity: A,
    part: impl Fn(usize, usize) -> A + Sync,
    combine: impl Fn(A, A) -> A + Sync,
    write: impl Fn(usize, A) + Sync,
) {
    let (rows, len, stride) = (p.walk.row_count() as usize, p.walk.row_len(), p.walk.stride(0));
    if len <= CHUNK {
        return p.walk.for_each_row(call.pool, |row, at| write(row, part(at[0], len)));
    }
    let chunks = len.div_ceil(CHUNK);
    with_scratch(rows * chunks, |parts: &mut [A]| {
        let shared = View::over(parts);
        call.pool.parallel(rows * chunks, &|task| {
            let start = task % chunks * CHUNK;
            let all = part(p.walk.start(task / chunks)[0] + start * stride, CHUNK.min(len - start));
            // SAFETY: a place a task.
            unsafe { shared.set(task, all) };
        });
        for (row, parts) in parts.chunks(chunks).enumerate() {
            write(row, parts.iter().copied().fold(identity, &combine));
        }
    });
}
