//! Rows are sorted apart; where there are fewer than threads, the parts of a long row are, and then merged.

use half::{bf16, f16};

use super::Params;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::order_key;
use crate::device::cpu::{Call, Pool, View};
use crate::{Element, Float};

/// Elements that a part of a row should have at least, for waking a thread to pay.
const GRAIN: usize = 8 * 1024;

/// An element type with an order.
pub(super) trait Key: Element {
    /// A number that orders as this does.
    fn key(self) -> u32;
}

macro_rules! keys {
    ($($t:ty => |$x:ident| $key:expr),* $(,)?) => {
        $(impl Key for $t {
            #[inline(always)]
            fn key(self) -> u32 {
                let $x = self;
                $key
            }
        })*
    };
}
keys! {
    f32 => |x| order_key(x),
    f16 => |x| order_key(x.to_f32()),
    bf16 => |x| order_key(Float::to_f32(x)),
    i32 => |x| x as u32 ^ 0x8000_0000,
    u32 => |x| x,
}

pub(super) fn run<T: Key>(call: &Call) {
    let p: Params = call.params();
    let (walk, keep) = (p.walk, p.keep as usize);
    let (x, out) = (call.view::<T>(0), call.view::<u32>(1));
    let (rows, len, stride) = (walk.row_count() as usize, walk.row_len(), walk.stride(0));
    let flip = if p.descending != 0 { u32::MAX } else { 0 };
    // The key with the index below it: no two are equal, which makes the order stable.
    let pair = |from: usize, i: usize| {
        // SAFETY: nothing writes the input.
        let key = unsafe { x.get(from + i * stride) }.key() ^ flip;
        // The highest bit is turned, as signed numbers have it.
        ((key ^ 0x8000_0000) as i32 as i64) << 32 | i as i64
    };
    let write = |row: usize, sorted: &[i64]| {
        // SAFETY: one task a row.
        let indices = unsafe { out.row_mut(row * keep, keep) };
        indices.iter_mut().zip(sorted).for_each(|(index, &pair)| *index = pair as u32);
    };
    if rows >= call.pool.threads() || len < 2 * GRAIN {
        let grain = GRAIN / len.max(1);
        return call.pool.parallel_ranges(rows, grain, &|range| {
            with_scratch(len, |pairs: &mut [i64]| {
                for row in range {
                    let from = walk.start(row)[0];
                    pairs.iter_mut().enumerate().for_each(|(i, p)| *p = pair(from, i));
                    pairs.sort_unstable();
                    write(row, pairs);
                }
            });
        });
    }
    with_scratch(2 * len, |pairs: &mut [i64]| {
        for row in 0..rows {
            let from = walk.start(row)[0];
            write(row, sorted(call.pool, pairs, &|i| pair(from, i)));
        }
    });
}

/// The numbers `pair(i)` in order, on all threads; `memory` holds twice as many.
fn sorted<'a>(pool: &Pool, memory: &'a mut [i64], pair: &(dyn Fn(usize) -> i64 + Sync)) -> &'a [i64] {
    let len = memory.len() / 2;
    let (mut from, mut to) = memory.split_at_mut(len);
    let parts = pool.threads().next_power_of_two();
    let mut run = len.div_ceil(parts);
    let piece = run;
    let shared = View::over(from);
    pool.parallel(parts, &|part| {
        let range = (part * run).min(len)..((part + 1) * run).min(len);
        // SAFETY: parts are disjoint.
        let part = unsafe { shared.row_mut(range.start, range.len()) };
        part.iter_mut().zip(range).for_each(|(p, i)| *p = pair(i));
        part.sort_unstable();
    });
    while run < len {
        let (source, target) = (&*from, View::over(to));
        pool.parallel(len.div_ceil(piece), &|i| {
            let start = i * piece;
            // Runs are multiples of a piece.
            let pair = start / (2 * run) * (2 * run);
            let pair = &source[pair..len.min(pair + 2 * run)];
            // SAFETY: pieces are disjoint.
            let out = unsafe { target.row_mut(start, piece.min(len - start)) };
            merge(pair.split_at(run.min(pair.len())), start % (2 * run), out);
        });
        std::mem::swap(&mut from, &mut to);
        run *= 2;
    }
    from
}

/// Merges two sorted runs, from the `before`th of the result on.
fn merge((a, b): (&[i64], &[i64]), before: usize, out: &mut [i64]) {
    // How many of those before are of the first run.
    let (mut low, mut high) = (before.saturating_sub(b.len()), before.min(a.len()));
    while low < high {
        let i = low + (high - low) / 2;
        if a[i] < b[before - 1 - i] {
            low = i + 1;
        } else {
            high = i;
        }
    }
    let (mut i, mut j) = (low, before - low);
    for out in out {
        let left = j == b.len() || (i < a.len() && a[i] < b[j]);
        *out = if left { a[i] } else { b[j] };
        i += usize::from(left);
        j += usize::from(!left);
    }
}
