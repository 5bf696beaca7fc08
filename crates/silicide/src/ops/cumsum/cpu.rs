//! A block at a time, in parts whose additions do not wait for one another. Long rows are shared out: the totals of their
//! chunks first.

use half::{bf16, f16};

use super::Params;
use crate::Element;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::vectorized;
use crate::device::cpu::{Call, View};
use crate::ops::walk::{BLOCK, load, store};

/// Elements of a long row that are summed apart; fixed, so that sums do not depend on the number of threads.
const CHUNK: usize = 64 * 1024;

/// Parts of a block that are summed side by side.
const PARTS: usize = 8;

/// Sums of a total that are kept apart.
const LANES: usize = 16;

/// The type of sums.
pub(super) trait Sum: Element {
    const ZERO: Self;
    fn plus(self, other: Self) -> Self;
}

impl Sum for f32 {
    const ZERO: f32 = 0.0;
    #[inline(always)]
    fn plus(self, other: f32) -> f32 {
        self + other
    }
}

impl Sum for u32 {
    const ZERO: u32 = 0;
    #[inline(always)]
    fn plus(self, other: u32) -> u32 {
        self.wrapping_add(other)
    }
}

/// The type of elements.
pub(super) trait Summed: Element {
    type Sum: Sum;
    /// # Safety
    ///
    /// As [`load`].
    unsafe fn load(from: View<Self>, at: usize, stride: usize, out: &mut [Self::Sum]);
    /// # Safety
    ///
    /// As [`store`].
    unsafe fn store(x: &[Self::Sum], to: View<Self>, at: usize, stride: usize);
}

macro_rules! floats {
    ($($t:ty),*) => {
        $(impl Summed for $t {
            type Sum = f32;
            #[inline(always)]
            unsafe fn load(from: View<$t>, at: usize, stride: usize, out: &mut [f32]) {
                // SAFETY: the caller's promise.
                unsafe { load(from, at, stride, out) }
            }
            #[inline(always)]
            unsafe fn store(x: &[f32], to: View<$t>, at: usize, stride: usize) {
                // SAFETY: the caller's promise.
                unsafe { store(x, to, at, stride) }
            }
        })*
    };
}
floats!(f32, f16, bf16);

macro_rules! integers {
    ($($t:ty),*) => {
        $(impl Summed for $t {
            type Sum = u32;
            #[inline(always)]
            unsafe fn load(from: View<$t>, at: usize, stride: usize, out: &mut [u32]) {
                // SAFETY: the caller's promise.
                out.iter_mut().enumerate().for_each(|(i, o)| *o = unsafe { from.get(at + i * stride) } as u32);
            }
            #[inline(always)]
            unsafe fn store(x: &[u32], to: View<$t>, at: usize, stride: usize) {
                // SAFETY: the caller's promise.
                x.iter().enumerate().for_each(|(i, &x)| unsafe { to.set(at + i * stride, x as $t) });
            }
        })*
    };
}
integers!(i32, u32);

pub(super) fn run<T: Summed>(call: &Call) {
    let p: Params = call.params();
    let walk = p.walk;
    let scan = Scan::<T> { p, x: call.view(0), out: call.view(2) };
    let (rows, len) = (walk.row_count() as usize, walk.row_len());
    if len <= CHUNK {
        return walk.for_each_row(call.pool, |_, at| _ = scan.sums([at[0], at[1]], 0, len, T::Sum::ZERO));
    }
    let chunks = len.div_ceil(CHUNK);
    with_scratch(rows * chunks, |carries: &mut [T::Sum]| {
        let shared = View::over(carries);
        let part = |task: usize| (walk.start(task / chunks), task % chunks * CHUNK);
        call.pool.parallel(rows * chunks, &|task| {
            let (at, start) = part(task);
            let total = scan.total(at[0], start, CHUNK.min(len - start));
            // SAFETY: a place a task.
            unsafe { shared.set(task, total) };
        });
        for row in carries.chunks_mut(chunks) {
            let mut sum = T::Sum::ZERO;
            row.iter_mut().for_each(|total| sum = std::mem::replace(total, sum).plus(sum));
        }
        let carries = &*carries;
        call.pool.parallel(rows * chunks, &|task| {
            let (at, start) = part(task);
            scan.sums([at[0], at[1]], start, CHUNK.min(len - start), carries[task]);
        });
    });
}

struct Scan<'a, T> {
    p: Params,
    x: View<'a, T>,
    out: View<'a, T>,
}

impl<T: Summed> Scan<'_, T> {
    /// Loads elements `start..` of the row at `row`, counted from the end that sums start from.
    ///
    /// # Safety
    ///
    /// Nothing writes them meanwhile.
    #[inline(always)]
    unsafe fn load(&self, row: usize, start: usize, s: &mut [T::Sum]) {
        let stride = self.p.walk.stride(0);
        // SAFETY: the caller's promise.
        unsafe { T::load(self.x, row + self.place(start, s.len()) * stride, stride, s) };
        if self.p.reverse != 0 {
            s.reverse();
        }
    }

    /// The first of `n` elements, as they lie.
    fn place(&self, start: usize, n: usize) -> usize {
        if self.p.reverse != 0 { self.p.walk.row_len() - start - n } else { start }
    }

    /// The sum of `n` elements from `start` on.
    fn total(&self, row: usize, start: usize, n: usize) -> T::Sum {
        with_scratch(BLOCK, |scratch: &mut [T::Sum]| {
            let mut lanes = [T::Sum::ZERO; LANES];
            for first in (start..start + n).step_by(BLOCK) {
                let s = &mut scratch[..BLOCK.min(start + n - first)];
                vectorized(
                    #[inline(always)]
                    || {
                        // SAFETY: all totals are known before the first sum is written.
                        unsafe { self.load(row, first, s) };
                        for part in s.chunks(LANES) {
                            lanes.iter_mut().zip(part).for_each(|(lane, &x)| *lane = lane.plus(x));
                        }
                    },
                );
            }
            lanes.into_iter().fold(T::Sum::ZERO, T::Sum::plus)
        })
    }

    /// Writes the sums of `n` elements from `start` on, above `carry`, and gives the last.
    fn sums(&self, [from, to]: [usize; 2], start: usize, n: usize, mut carry: T::Sum) -> T::Sum {
        let stride = self.p.walk.stride(1);
        // The sum before the first element stands before them.
        with_scratch(BLOCK + 1, |scratch: &mut [T::Sum]| {
            for first in (start..start + n).step_by(BLOCK) {
                let n = BLOCK.min(start + n - first);
                let s = &mut scratch[..n + 1];
                vectorized(
                    #[inline(always)]
                    || {
                        s[0] = carry;
                        // SAFETY: elements are read before the same ones of the output are written, and by no other task.
                        unsafe { self.load(from, first, &mut s[1..]) };
                        carry = scan(&mut s[1..], carry);
                        let sums = if self.p.exclusive != 0 { &mut s[..n] } else { &mut s[1..] };
                        if self.p.reverse != 0 {
                            sums.reverse();
                        }
                        // SAFETY: as above.
                        unsafe { T::store(sums, self.out, to + self.place(first, n) * stride, stride) };
                    },
                );
            }
        });
        carry
    }
}

/// Replaces each element by the sum up to it, above `carry`; gives the last.
#[inline(always)]
fn scan<A: Sum>(s: &mut [A], mut carry: A) -> A {
    let len = s.len() / PARTS;
    let (whole, rest) = s.split_at_mut(PARTS * len);
    if len > 0 {
        let mut parts = whole.chunks_exact_mut(len);
        let mut parts: [&mut [A]; PARTS] = std::array::from_fn(|_| parts.next().expect("as many as there are"));
        let mut sums = [A::ZERO; PARTS];
        for i in 0..len {
            for (part, sum) in parts.iter_mut().zip(&mut sums) {
                *sum = sum.plus(part[i]);
                part[i] = *sum;
            }
        }
        for (part, sum) in parts.iter_mut().zip(sums) {
            part.iter_mut().for_each(|x| *x = carry.plus(*x));
            carry = carry.plus(sum);
        }
    }
    for x in rest {
        carry = carry.plus(*x);
        *x = carry;
    }
    carry
}
