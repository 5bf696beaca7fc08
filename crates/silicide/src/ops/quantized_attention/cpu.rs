//! Keys are taken in parts of [`PART`], each with a softmax of its own; the parts are then joined in their order. One task
//! takes one part of one head of keys, for a tile of queries.
//!
//! Affine codes become numbers in the registers in which they meet several rows of queries; levels are looked up into
//! scratch memory first. Each query's arithmetic is its own: the order of its sums depends on the keys it sees and on nothing else.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "pointers are into scratch whose sizes `run` sets; codes and scales are checked"
)]

mod rows;

use std::ops::Range;

use self::rows::{BLOCK, Block, Bytes, Codes, Lookup, Nibbles, Numbers, Rows, Source};
use super::{Params, Side};
use crate::Float;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::simd::{self, Kernel, LANES, Simd};
use crate::device::cpu::vector::{exp, max, narrow, sum, tanh, vectorized, widen};
use crate::device::cpu::{Call, Features, View};
use crate::ops::attention::cpu::tile::{self, PART, Sight};
use crate::ops::hadamard_transform::cpu::{butterflies, flip};

/// Queries in a tile.
const TILE: usize = 4;
type Tile = tile::Tile<TILE>;

pub(super) fn run<T: Float>(call: &Call) {
    let p: Params = call.params();
    let sight = Sight::new(call, 8, [p.queries, p.keys, p.window, p.mask, p.ring]);
    let signs = |side: Side, arg: usize| if side.has_signs != 0 { call.slice::<u32>(arg) } else { &[] };
    let lookup = Lookup::of(call.features);
    let work = Work {
        p,
        features: call.features,
        k: Rows::new(call, 1, &p, p.k, lookup),
        v: Rows::new(call, 4, &p, p.v, lookup),
        k_signs: signs(p.k, 7),
        v_signs: signs(p.v, 9),
        sight,
        sinks: (p.has_sinks != 0).then(|| call.slice::<f32>(10)),
        padded: (p.dim as usize).next_multiple_of(2 * LANES),
    };
    let (q, out) = (call.view::<T>(0), call.view::<T>(11));
    let (tiles, kv_heads) = ((p.queries as usize).div_ceil(TILE), p.kv_heads as usize);
    for tile in 0..tiles {
        let heads = |head| work.tile(tile, head);
        let Tile { rows, .. } = heads(0);
        let parts = heads(0).parts();
        let (queries, states) = (rows * work.padded, rows * work.state());
        let most = work.sight.most_parts();
        with_scratch(kv_heads * (most * states + queries), |scratch: &mut [f32]| {
            let (all_queries, parts_of) = scratch.split_at_mut(kv_heads * queries);
            for (head, q_rows) in all_queries.chunks_exact_mut(queries).enumerate() {
                work.load_queries(&heads(head), &q, q_rows);
            }
            let all_queries = &*all_queries;
            let to = View::over(&mut *parts_of);
            call.pool.parallel(kv_heads * parts.len(), &|task| {
                // Parts of one head lie in one stretch of memory.
                let (head, part) = (task / parts.len(), task % parts.len());
                // SAFETY: each task has a place of its own.
                let to = unsafe { to.row_mut(task * states, states) };
                with_scratch(work.room(rows), |room: &mut [f32]| {
                    work.part(&heads(head), parts.start + part, &all_queries[head * queries..][..queries], to, room);
                });
            });
            let parts_of = &*parts_of;
            call.pool.parallel(kv_heads, &|head| {
                let tile = heads(head);
                with_scratch(states, |joined: &mut [f32]| {
                    tile.begin(work.sinks, joined);
                    for part in 0..parts.len() {
                        tile.join(joined, &parts_of[(head * parts.len() + part) * states..][..states]);
                    }
                    work.store(&tile, joined, &out);
                });
            });
        });
    }
}

struct Work<'a> {
    p: Params,
    features: Features,
    k: Rows<'a>,
    v: Rows<'a>,
    k_signs: &'a [u32],
    v_signs: &'a [u32],
    sight: Sight<'a>,
    sinks: Option<&'a [f32]>,
    /// `head_dim`, rounded up to whole pairs of vectors.
    padded: usize,
}

impl Work<'_> {
    fn tile(&self, tile: usize, kv_head: usize) -> Tile {
        self.sight.tile(tile, kv_head, (self.p.q_heads / self.p.kv_heads) as usize)
    }

    /// Floats of a row's state: weighted values, and in the vector behind them the greatest score and the sum of weights.
    fn state(&self) -> usize {
        self.padded + LANES
    }

    /// Floats that [`part`](Self::part) works in.
    fn room(&self, rows: usize) -> usize {
        rows * PART + BLOCK * self.padded + rows * BLOCK * LANES
    }

    /// Queries scaled, turned as the keys were, in the order that keys come in.
    fn load_queries<T: Float>(&self, tile: &Tile, q: &View<T>, to: &mut [f32]) {
        let dim = self.p.dim as usize;
        vectorized(
            #[inline(always)]
            || {
                for (row, to) in to.chunks_exact_mut(self.padded).enumerate() {
                    // SAFETY: nothing writes the queries.
                    widen(unsafe { q.row(tile.place(row, &self.p.q_strides), dim) }, to);
                    let scale = if self.k.rotated { self.p.scale * self.p.rotation_scale } else { self.p.scale };
                    to[dim..].fill(0.0);
                    to.iter_mut().for_each(|x| *x *= scale);
                    if self.k.rotated {
                        flip(to, self.k_signs);
                        butterflies(to);
                    }
                    if self.k.even_first() {
                        part_evens(to);
                    }
                }
            },
        );
    }

    /// The state of the rows after the keys of one part alone.
    fn part(&self, tile: &Tile, part: usize, q: &[f32], states: &mut [f32], room: &mut [f32]) {
        let keys = tile.keys_of(part);
        // SAFETY: the slices have the sizes that `state` and `room` give.
        unsafe { simd::run(self.features, Part { work: self, tile, keys, q, states, room }) };
    }

    /// Results from states, turned back where values are behind a rotation, in their own order.
    fn store<T: Float>(&self, tile: &Tile, states: &mut [f32], out: &View<T>) {
        let dim = self.p.dim as usize;
        vectorized(
            #[inline(always)]
            || {
                for (row, state) in states.chunks_exact_mut(self.state()).enumerate().take(tile.rows) {
                    let (values, total) = state.split_at_mut(self.padded);
                    let scale = if total[1] == 0.0 { 0.0 } else { 1.0 / total[1] };
                    let scale = if self.v.rotated { scale * self.p.rotation_scale } else { scale };
                    values.iter_mut().for_each(|x| *x *= scale);
                    if self.v.even_first() {
                        join_evens(values);
                    }
                    if self.v.rotated {
                        butterflies(values);
                        flip(values, self.v_signs);
                    }
                    // SAFETY: this task alone has these queries and heads.
                    narrow(&values[..dim], unsafe { out.row_mut(tile.place(row, &self.p.out_strides), dim) });
                }
            },
        );
    }
}

/// Of each pair of vectors, first the elements with even numbers and then the odd ones.
#[inline(always)]
fn part_evens(x: &mut [f32]) {
    for pair in x.chunks_exact_mut(2 * LANES) {
        let from: [f32; 2 * LANES] = std::array::from_fn(|i| pair[i]);
        for i in 0..LANES {
            (pair[i], pair[LANES + i]) = (from[2 * i], from[2 * i + 1]);
        }
    }
}

/// Undoes [`part_evens`].
#[inline(always)]
fn join_evens(x: &mut [f32]) {
    for pair in x.chunks_exact_mut(2 * LANES) {
        let from: [f32; 2 * LANES] = std::array::from_fn(|i| pair[i]);
        for i in 0..LANES {
            (pair[2 * i], pair[2 * i + 1]) = (from[i], from[LANES + i]);
        }
    }
}

/// The rows of a tile with the keys of a part.
struct Part<'a> {
    work: &'a Work<'a>,
    tile: &'a Tile,
    keys: Range<usize>,
    q: &'a [f32],
    states: &'a mut [f32],
    room: &'a mut [f32],
}

impl Kernel for Part<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Part { work, tile, keys, q, states, room } = self;
        let (padded, size, rows) = (work.padded, work.state(), tile.rows);
        let (scores, room) = room.split_at_mut(rows * PART);
        let (decoded, sums) = room.split_at_mut(BLOCK * padded);
        let mut block = Block::new();
        for from in keys.clone().step_by(BLOCK) {
            block.take::<S>(&work.k, from..keys.end.min(from + BLOCK), tile.kv_head, decoded);
            let mut row = 0;
            let dots = Dots { block: &block, padded, rows, q: q.as_ptr(), sums: sums.as_mut_ptr() };
            match work.k.source() {
                Source::Bytes => dots.all::<S, Bytes>(&mut row),
                Source::Nibbles => dots.all::<S, Nibbles>(&mut row),
                Source::Numbers => dots.all::<S, Numbers>(&mut row),
            }
            // Where keys are missing the sums hold anything, and so do scores that no row sees.
            for row in 0..rows {
                let sums = sums.as_ptr().add(row * BLOCK * LANES);
                let mut square: [S::F; LANES] = std::array::from_fn(|i| S::load(sums.add(i * LANES)));
                S::transpose(&mut square);
                let one = S::splat(1.0);
                let mut half = LANES / 2;
                while half > 0 {
                    for i in 0..half {
                        square[i] = S::fma(square[i + half], one, square[i]);
                    }
                    half /= 2;
                }
                S::store(scores.as_mut_ptr().add(row * PART + from - keys.start), square[0]);
            }
        }
        for (row, state) in states.chunks_exact_mut(size).enumerate().take(rows) {
            let seen = tile.seen(row, &keys);
            let scores = &mut scores[row * PART..][seen.start - keys.start..seen.end - keys.start];
            state[..padded].fill(0.0);
            (state[padded], state[padded + 1]) = weigh(scores, work.p.softcap);
        }
        for from in keys.clone().step_by(BLOCK) {
            let some = from..keys.end.min(from + BLOCK);
            block.take::<S>(&work.v, some.clone(), tile.kv_head, decoded);
            for first in (0..rows).step_by(tile.group) {
                let seen = tile.seen(first, &some);
                let values = Values {
                    block: &block,
                    seen: seen.start - from..seen.end - from,
                    padded,
                    weights: scores.as_ptr().add(first * PART + from - keys.start),
                    states: states.as_mut_ptr().add(first * size),
                    size,
                };
                let mut row = 0;
                match work.v.source() {
                    Source::Bytes => values.all::<S, Bytes>(tile.group, &mut row),
                    Source::Nibbles => values.all::<S, Nibbles>(tile.group, &mut row),
                    Source::Numbers => values.all::<S, Numbers>(tile.group, &mut row),
                }
            }
        }
    }
}

/// Products of rows of queries with the keys of a block, each as a vector of sums for [`Kernel::run`] to add up.
struct Dots<'a> {
    block: &'a Block,
    padded: usize,
    rows: usize,
    q: *const f32,
    sums: *mut f32,
}

impl Dots<'_> {
    #[inline(always)]
    unsafe fn all<S: Simd, C: Codes>(&self, row: &mut usize) {
        if S::TILE.0 >= 12 {
            self.some::<S, C, 8>(row);
        }
        self.some::<S, C, 4>(row);
        self.some::<S, C, 2>(row);
        self.some::<S, C, 1>(row);
    }

    /// `M` rows at a time, while there are so many.
    #[inline(always)]
    unsafe fn some<S: Simd, C: Codes, const M: usize>(&self, row: &mut usize) {
        while *row + M <= self.rows {
            let q = self.q.add(*row * self.padded);
            for key in 0..self.block.len {
                let mut dots = [S::splat(0.0); M];
                for at in (0..self.padded).step_by(2 * LANES) {
                    let pair = self.block.pair::<S, C>(key, at);
                    for (m, dot) in dots.iter_mut().enumerate() {
                        let q = q.add(m * self.padded + at);
                        *dot = S::fma(S::load(q), pair[0], *dot);
                        *dot = S::fma(S::load(q.add(LANES)), pair[1], *dot);
                    }
                }
                for (m, dot) in dots.into_iter().enumerate() {
                    S::store(self.sums.add(((*row + m) * BLOCK + key) * LANES), dot);
                }
            }
            *row += M;
        }
    }
}

/// Turns scores into weights; gives the greatest score and the sum of the weights.
#[inline(always)]
fn weigh(scores: &mut [f32], softcap: f32) -> (f32, f32) {
    if softcap != 0.0 {
        scores.iter_mut().for_each(|s| *s = softcap * tanh(*s / softcap));
    }
    let highest = max(scores);
    if highest == f32::NEG_INFINITY {
        return (highest, 0.0);
    }
    scores.iter_mut().for_each(|s| *s = exp(*s - highest));
    (highest, sum(scores))
}

/// The values that the heads of a query see of a block, and what they weigh.
struct Values<'a> {
    block: &'a Block,
    seen: Range<usize>,
    padded: usize,
    /// Of the block's keys; [`PART`] apart.
    weights: *const f32,
    /// `size` apart.
    states: *mut f32,
    size: usize,
}

impl Values<'_> {
    #[inline(always)]
    unsafe fn all<S: Simd, C: Codes>(&self, rows: usize, row: &mut usize) {
        if S::TILE.0 >= 12 {
            self.some::<S, C, 8, 1>(rows, row);
            self.some::<S, C, 4, 2>(rows, row);
        }
        self.some::<S, C, 2, 1>(rows, row);
        self.some::<S, C, 1, 2>(rows, row);
    }

    /// Adds the weighted values to the states, `M` rows and `P` pairs of vectors at a time.
    #[inline(always)]
    unsafe fn some<S: Simd, C: Codes, const M: usize, const P: usize>(&self, rows: usize, row: &mut usize) {
        while *row + M <= rows {
            let mut at = 0;
            while at + P * 2 * LANES <= self.padded {
                self.tile::<S, C, M, P>(*row, at);
                at += P * 2 * LANES;
            }
            while at < self.padded {
                self.tile::<S, C, M, 1>(*row, at);
                at += 2 * LANES;
            }
            *row += M;
        }
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, C: Codes, const M: usize, const P: usize>(&self, row: usize, at: usize) {
        let states = self.states.add(row * self.size + at);
        let mut sums = [[[S::splat(0.0); 2]; P]; M];
        for (m, sums) in sums.iter_mut().enumerate() {
            for (i, sum) in sums.as_flattened_mut().iter_mut().enumerate() {
                *sum = S::load(states.add(m * self.size + i * LANES));
            }
        }
        for key in self.seen.clone() {
            let mut values = [[S::splat(0.0); 2]; P];
            for (i, value) in values.iter_mut().enumerate() {
                *value = self.block.pair::<S, C>(key, at + i * 2 * LANES);
            }
            for (m, sums) in sums.iter_mut().enumerate() {
                let weight = S::splat(*self.weights.add((row + m) * PART + key));
                for (sum, value) in sums.iter_mut().zip(values) {
                    sum[0] = S::fma(weight, value[0], sum[0]);
                    sum[1] = S::fma(weight, value[1], sum[1]);
                }
            }
        }
        for (m, sums) in sums.into_iter().enumerate() {
            for (i, sum) in sums.as_flattened().iter().enumerate() {
                S::store(states.add(m * self.size + i * LANES), *sum);
            }
        }
    }
}
