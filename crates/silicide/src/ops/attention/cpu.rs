//! Keys are taken in parts of [`PART`], each with a softmax of its own; the parts are then joined in their order. One task
//! takes all parts of a tile of queries, or, where queries are few, one part.
//!
//! Each query's arithmetic is its own: the order of its sums depends on the keys it sees and on nothing else, so a
//! prompt gives the same bits whole, in chunks or token by token.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "pointers are into scratch whose sizes `run` sets; keys and values are checked"
)]

mod cache;
mod mask;
pub(in crate::ops) mod tile;

use std::ops::Range;

use self::cache::Cache;
use self::mask::{MaskTensor, Terms};
use self::tile::{PART, Sight};
use super::Params;
use crate::Float;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::simd::{self, Kernel, LANES, Simd};
use crate::device::cpu::vector::{exp, max, sum, tanh, vectorized, widen};
use crate::device::cpu::{Call, Features, View};

/// Queries in a tile.
const TILE: usize = 8;
type Tile = tile::Tile<TILE>;
/// Values that are widened together.
const BLOCK: usize = 32;

pub(super) fn run<T: Float>(call: &Call) {
    let p: Params = call.params();
    let sight = Sight::new(call, 3, [p.queries, p.keys, p.window, p.mask, p.ring]);
    let table = (p.pages != 0).then(|| call.slice::<u32>(5));
    let work = Work {
        p,
        features: call.features,
        k: Cache::new(call, 1, p.k_strides, p.page_strides[0], &p, table),
        v: Cache::new(call, 2, p.v_strides, p.page_strides[1], &p, table),
        mask: (p.masked != 0).then(|| MaskTensor::new(call, 6, &p)),
        sight,
        sinks: (p.has_sinks != 0).then(|| call.slice::<f32>(4)),
        padded: (p.dim as usize).next_multiple_of(LANES),
    };
    let (q, out) = (call.view::<T>(0), call.view::<T>(7));
    let load = |tile: &Tile, to: &mut [f32]| work.load_queries(tile, &q, to);
    let store = |tile: &Tile, states: &[f32]| work.store(tile, states, &out);
    let (tiles, kv_heads) = ((p.queries as usize).div_ceil(TILE), p.kv_heads as usize);
    if tiles * kv_heads >= 2 * call.pool.threads() {
        // The last tiles see the most keys, so they come first.
        call.pool.parallel(tiles * kv_heads, &|task| {
            let tile = work.tile(tiles - 1 - task / kv_heads, task % kv_heads);
            let (queries, states) = (tile.rows * work.padded, tile.rows * work.state());
            with_scratch(queries + 2 * states + work.room(tile.rows), |scratch: &mut [f32]| {
                let (q, scratch) = scratch.split_at_mut(queries);
                let (joined, scratch) = scratch.split_at_mut(states);
                let (states, room) = scratch.split_at_mut(states);
                load(&tile, q);
                tile.begin(work.sinks, joined);
                for part in tile.parts() {
                    work.part(&tile, part, q, states, room);
                    tile.join(joined, states);
                }
                store(&tile, joined);
            });
        });
        return;
    }
    for tile in 0..tiles {
        let heads = |head| work.tile(tile, head);
        let Tile { rows, .. } = heads(0);
        let parts = heads(0).parts();
        let (queries, states) = (rows * work.padded, rows * work.state());
        let most = work.sight.most_parts();
        with_scratch(kv_heads * (most + 1) * states, |scratch: &mut [f32]| {
            let (joined, parts_of) = scratch.split_at_mut(kv_heads * states);
            let to = View::over(&mut *parts_of);
            call.pool.parallel(kv_heads * parts.len(), &|task| {
                let tile = heads(task % kv_heads);
                // SAFETY: each task has a place of its own.
                let to = unsafe { to.row_mut(task * states, states) };
                with_scratch(queries + work.room(rows), |scratch: &mut [f32]| {
                    let (q, room) = scratch.split_at_mut(queries);
                    load(&tile, q);
                    work.part(&tile, parts.start + task / kv_heads, q, to, room);
                });
            });
            for (head, joined) in joined.chunks_exact_mut(states).enumerate() {
                let tile = heads(head);
                tile.begin(work.sinks, joined);
                for part in 0..parts.len() {
                    tile.join(joined, &parts_of[(part * kv_heads + head) * states..][..states]);
                }
                store(&tile, joined);
            }
        });
    }
}

/// Turns [`LANES`] rows of `padded` elements into `[element][row]`.
#[inline(always)]
unsafe fn transpose<S: Simd>(rows: *const f32, padded: usize, to: *mut f32) {
    for at in (0..padded).step_by(LANES) {
        let mut square: [S::F; LANES] = std::array::from_fn(|i| S::load(rows.add(i * padded + at)));
        S::transpose(&mut square);
        for (i, column) in square.into_iter().enumerate() {
            S::store(to.add((at + i) * LANES), column);
        }
    }
}

struct Work<'a> {
    p: Params,
    features: Features,
    k: Cache<'a>,
    v: Cache<'a>,
    sight: Sight<'a>,
    sinks: Option<&'a [f32]>,
    mask: Option<MaskTensor<'a>>,
    /// `head_dim`, rounded up to whole vectors.
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
        rows * PART * (1 + self.may_hide() as usize) + self.padded * (BLOCK + LANES)
    }

    /// Whether positions are rows, and a query sees all between its first and its last key.
    fn is_plain(&self) -> bool {
        self.p.ring == 0 && !self.may_hide()
    }

    /// Whether keys between those that a query sees may be hidden.
    fn may_hide(&self) -> bool {
        self.mask.is_some() || self.p.pages != 0
    }

    fn load_queries<T: Float>(&self, tile: &Tile, q: &View<T>, to: &mut [f32]) {
        let dim = self.p.dim as usize;
        vectorized(
            #[inline(always)]
            || {
                for (row, to) in to.chunks_exact_mut(self.padded).enumerate() {
                    // SAFETY: nothing writes the queries.
                    widen(unsafe { q.row(tile.place(row, &self.p.q_strides), dim) }, to);
                    to[..dim].iter_mut().for_each(|x| *x *= self.p.scale);
                }
            },
        );
    }

    /// The state of the rows after the keys of one part alone.
    fn part(&self, tile: &Tile, part: usize, q: &[f32], states: &mut [f32], room: &mut [f32]) {
        let keys = tile.keys_of(part);
        // SAFETY: the slices have the sizes that `state` and `room` give.
        unsafe {
            if self.is_plain() {
                simd::run(self.features, Part::<true> { work: self, tile, keys, q, states, room });
            } else {
                simd::run(self.features, Part::<false> { work: self, tile, keys, q, states, room });
            }
        }
    }

    fn store<T: Float>(&self, tile: &Tile, states: &[f32], out: &View<T>) {
        let dim = self.p.dim as usize;
        vectorized(
            #[inline(always)]
            || {
                for (row, state) in states.chunks_exact(self.state()).enumerate().take(tile.rows) {
                    let total = state[self.padded + 1];
                    let scale = if total == 0.0 { 0.0 } else { 1.0 / total };
                    // SAFETY: this task alone has these queries and heads.
                    let out = unsafe { out.row_mut(tile.place(row, &self.p.out_strides), dim) };
                    for (o, &x) in out.iter_mut().zip(state) {
                        *o = T::from_f32(x * scale);
                    }
                }
            },
        );
    }
}

/// The rows of a tile with the keys of a part; `PLAIN` where [`Work::is_plain`].
struct Part<'a, const PLAIN: bool> {
    work: &'a Work<'a>,
    tile: &'a Tile,
    keys: Range<usize>,
    q: &'a [f32],
    states: &'a mut [f32],
    room: &'a mut [f32],
}

impl<const PLAIN: bool> Kernel for Part<'_, PLAIN> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Part { work, tile, keys, q, states, room } = self;
        let (padded, size) = (work.padded, work.state());
        let (scores, room) = room.split_at_mut(tile.rows * PART);
        let may_hide = !PLAIN && work.may_hide();
        let (terms, room) = room.split_at_mut(if may_hide { tile.rows * PART } else { 0 });
        let (block, columns) = room.split_at_mut(BLOCK * padded);
        let terms = if may_hide { Terms::new(work, tile, &keys, terms) } else { None };
        let hides =
            |some: Range<usize>| terms.as_ref().is_some_and(|t| t.hide(some.start - keys.start..some.end - keys.start));
        for from in keys.clone().step_by(LANES) {
            if hides(from..keys.end.min(from + LANES)) {
                continue;
            }
            for (i, key) in (from..keys.end.min(from + LANES)).enumerate() {
                work.k.widen::<S, PLAIN>(key, tile.kv_head, block.as_mut_ptr().add(i * padded));
                // Memory answers late, so the value is asked for while there is other work.
                let value = work.v.row::<PLAIN>(key, tile.kv_head);
                for line in value.unwrap_or_default().chunks(64) {
                    S::prefetch(line.as_ptr());
                }
            }
            // Where keys are missing the rows hold anything, and so do scores that no row sees.
            transpose::<S>(block.as_ptr(), padded, columns.as_mut_ptr());
            let scores = scores.as_mut_ptr().add(from - keys.start);
            let (q, columns) = (q.as_ptr(), columns.as_ptr());
            let mut row = 0;
            if S::TILE.0 >= 12 {
                score_rows::<S, 8>(work, tile.rows, &mut row, q, columns, scores);
            }
            score_rows::<S, 4>(work, tile.rows, &mut row, q, columns, scores);
            score_rows::<S, 2>(work, tile.rows, &mut row, q, columns, scores);
            score_rows::<S, 1>(work, tile.rows, &mut row, q, columns, scores);
        }
        for (row, state) in states.chunks_exact_mut(size).enumerate() {
            let seen = tile.seen(row, &keys);
            let seen = seen.start - keys.start..seen.end - keys.start;
            let terms = terms.as_ref().map(|t| &t.row(row)[seen.clone()]);
            state[..padded].fill(0.0);
            (state[padded], state[padded + 1]) = weigh(&mut scores[row * PART..][seen], work.p.softcap, terms);
        }
        for from in keys.clone().step_by(BLOCK) {
            let some = from..keys.end.min(from + BLOCK);
            if hides(some.clone()) {
                continue;
            }
            for (i, key) in some.clone().enumerate() {
                work.v.widen::<S, PLAIN>(key, tile.kv_head, block.as_mut_ptr().add(i * padded));
            }
            let states = states.as_mut_ptr();
            let values = |row: usize, keys_of: Range<usize>| Values {
                count: keys_of.len(),
                values: block.as_ptr().add((keys_of.start - from) * padded),
                padded,
                weights: scores.as_ptr().add(row * PART + keys_of.start - keys.start),
                states: states.add(row * size),
                size,
            };
            if let Some(terms) = &terms
                && !mask::all_finite(&block[..some.len() * padded])
            {
                // A weight of zero would make NaN of what is hidden.
                for row in 0..tile.rows {
                    for key in tile.seen(row, &some).filter(|key| terms.row(row)[key - keys.start] != f32::NEG_INFINITY)
                    {
                        values(row, key..key + 1).rows::<S, 1, 4>(1, &mut 0);
                    }
                }
                continue;
            }
            for first in (0..tile.rows).step_by(tile.group) {
                let values = values(first, tile.seen(first, &some));
                let mut row = 0;
                if S::TILE.0 >= 12 {
                    values.rows::<S, 4, 4>(tile.group, &mut row);
                    values.rows::<S, 2, 4>(tile.group, &mut row);
                }
                values.rows::<S, 2, 2>(tile.group, &mut row);
                values.rows::<S, 1, 4>(tile.group, &mut row);
            }
        }
    }
}

/// Scores of `M` rows at a time with the keys of a block.
#[inline(always)]
unsafe fn score_rows<S: Simd, const M: usize>(
    work: &Work,
    rows: usize,
    row: &mut usize,
    q: *const f32,
    keys: *const f32,
    scores: *mut f32,
) {
    while *row + M <= rows {
        let q = q.add(*row * work.padded);
        let mut sums = [S::splat(0.0); M];
        for d in 0..work.p.dim as usize {
            let key = S::load(keys.add(d * LANES));
            for (m, sum) in sums.iter_mut().enumerate() {
                *sum = S::fma(S::splat(*q.add(m * work.padded + d)), key, *sum);
            }
        }
        for (m, sum) in sums.into_iter().enumerate() {
            S::store(scores.add((*row + m) * PART), sum);
        }
        *row += M;
    }
}

/// Turns scores into weights; gives the greatest score and the sum of the weights.
#[inline(always)]
fn weigh(scores: &mut [f32], softcap: f32, terms: Option<&[f32]>) -> (f32, f32) {
    if softcap != 0.0 {
        scores.iter_mut().for_each(|s| *s = softcap * tanh(*s / softcap));
    }
    if let Some(terms) = terms {
        // What is hidden may have no score.
        let hidden = f32::NEG_INFINITY;
        scores.iter_mut().zip(terms).for_each(|(s, &t)| *s = if t == hidden { hidden } else { *s + t });
    }
    let highest = max(scores);
    if highest == f32::NEG_INFINITY {
        return (highest, 0.0);
    }
    scores.iter_mut().for_each(|s| *s = exp(*s - highest));
    (highest, sum(scores))
}

/// The values that the heads of a query see of a block, and what they weigh.
struct Values {
    count: usize,
    values: *const f32,
    padded: usize,
    /// [`PART`] apart.
    weights: *const f32,
    /// `size` apart.
    states: *mut f32,
    size: usize,
}

impl Values {
    /// Adds the weighted values to the states, `M` rows and `V` vectors at a time.
    #[inline(always)]
    unsafe fn rows<S: Simd, const M: usize, const V: usize>(&self, rows: usize, row: &mut usize) {
        while *row + M <= rows {
            let mut at = 0;
            while at + V * LANES <= self.padded {
                self.tile::<S, M, V>(*row, at);
                at += V * LANES;
            }
            while at < self.padded {
                self.tile::<S, M, 1>(*row, at);
                at += LANES;
            }
            *row += M;
        }
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const V: usize>(&self, row: usize, at: usize) {
        let states = self.states.add(row * self.size + at);
        let mut sums = [[S::splat(0.0); V]; M];
        for (m, sums) in sums.iter_mut().enumerate() {
            for (v, sum) in sums.iter_mut().enumerate() {
                *sum = S::load(states.add(m * self.size + v * LANES));
            }
        }
        for i in 0..self.count {
            let mut values = [S::splat(0.0); V];
            for (v, value) in values.iter_mut().enumerate() {
                *value = S::load(self.values.add(i * self.padded + at + v * LANES));
            }
            for (m, sums) in sums.iter_mut().enumerate() {
                let weight = S::splat(*self.weights.add((row + m) * PART + i));
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum = S::fma(weight, value, *sum);
                }
            }
        }
        for (m, sums) in sums.into_iter().enumerate() {
            for (v, sum) in sums.into_iter().enumerate() {
                S::store(states.add(m * self.size + v * LANES), sum);
            }
        }
    }
}
