//! A task takes a tile of queries and the heads that share a key head, and walks the keys in blocks that stay in cache.
//!
//! Each query's arithmetic is its own: the order of its sums depends on the keys it sees and on nothing else, so a
//! prompt gives the same result whole, in chunks or token by token.

use super::{POSITIONS, Params};
use crate::Float;
use crate::device::cpu::vector::{exp, max, sum, tanh, vectorized, widen, with_scratch};
use crate::device::cpu::{Call, View};

/// Queries in a tile.
const TILE: usize = 8;
/// Keys in a block.
const BLOCK: usize = 32;
/// Lanes of a dot product.
const LANES: usize = 16;

pub(super) fn run<T: Float, C: Float>(call: &Call) {
    let p: Params = call.params();
    let work = Work::<T, C> {
        p,
        q: call.view(0),
        k: call.view(1),
        v: call.view(2),
        positions: (p.mask == POSITIONS).then(|| call.slice::<u32>(3)),
        sinks: (p.has_sinks != 0).then(|| call.slice::<f32>(4)),
        out: call.view(5),
    };
    let tiles = (p.queries as usize).div_ceil(TILE);
    let (kv_heads, q_heads) = (p.kv_heads as usize, p.q_heads as usize);
    // Heads that share keys go together where there are tasks enough; a single token's heads go apart.
    let together = if tiles * kv_heads >= 4 * call.pool.threads() { q_heads / kv_heads } else { 1 };
    let groups = q_heads / together;
    // The last tiles see the most keys, so they come first.
    call.pool.parallel(tiles * groups, &|task| {
        let (tile, group) = (tiles - 1 - task / groups, task % groups);
        work.tile(tile * TILE, group * together..(group + 1) * together);
    });
}

struct Work<'a, T, C> {
    p: Params,
    q: View<'a, T>,
    k: View<'a, C>,
    v: View<'a, C>,
    positions: Option<&'a [u32]>,
    sinks: Option<&'a [f32]>,
    out: View<'a, T>,
}

/// Some queries and heads, and the keys that any of them sees.
struct Tile {
    first: usize,
    heads: std::ops::Range<usize>,
    /// The keys that each query sees.
    visible: [std::ops::Range<usize>; TILE],
    start: usize,
    end: usize,
    /// `head_dim`, rounded up to whole vectors.
    padded: usize,
    rows: usize,
}

impl<T: Float, C: Float> Work<'_, T, C> {
    fn tile(&self, first: usize, heads: std::ops::Range<usize>) {
        let p = &self.p;
        let padded = (p.dim as usize).next_multiple_of(LANES);
        let queries = TILE.min(p.queries as usize - first);
        let rows = queries * heads.len();
        let mut visible: [std::ops::Range<usize>; TILE] = Default::default();
        for (i, range) in visible[..queries].iter_mut().enumerate() {
            let query = first + i;
            *range = p.visible(query as u32, self.positions.map_or(0, |p| p[query] as i32 as i64));
        }
        let start = visible[..queries].iter().map(|r| r.start).min().unwrap_or(0) / BLOCK * BLOCK;
        let end = visible[..queries].iter().map(|r| r.end).max().unwrap_or(0);
        let keys = end.saturating_sub(start);
        let kv_head = heads.start / (p.q_heads / p.kv_heads) as usize;
        let tile = Tile { first, heads: heads.clone(), visible, start, end, padded, rows };
        with_scratch(rows * (2 * padded + keys) + BLOCK * padded, |scratch| {
            vectorized(
                #[inline(always)]
                || self.attend(&tile, kv_head, scratch),
            );
        });
    }

    #[inline(always)]
    fn attend(&self, tile: &Tile, kv_head: usize, scratch: &mut [f32]) {
        let p = &self.p;
        let dim = p.dim as usize;
        let Tile { first, ref heads, ref visible, start, end, padded, rows } = *tile;
        let keys = end.saturating_sub(start);
        let (q, scratch) = scratch.split_at_mut(rows * padded);
        let (acc, scratch) = scratch.split_at_mut(rows * padded);
        let (scores, block) = scratch.split_at_mut(rows * keys);
        q.fill(0.0);
        acc.fill(0.0);
        block.fill(0.0);
        for (row, q) in q.chunks_exact_mut(padded).enumerate() {
            let at = (first + row / heads.len()) * p.q_strides[0] as usize
                + (heads.start + row % heads.len()) * p.q_strides[1] as usize;
            // SAFETY: nothing writes the queries.
            widen(unsafe { self.q.row(at, dim) }, q);
            q.iter_mut().for_each(|x| *x *= p.scale);
        }
        // Scores.
        for from in (start..end).step_by(BLOCK) {
            let to = end.min(from + BLOCK);
            self.load(&self.k, &p.k_strides, from..to, kv_head, block, padded);
            for row in 0..rows {
                let seen = clip(&visible[row / heads.len()], from, to);
                let (q, scores) = (&q[row * padded..][..padded], &mut scores[row * keys..][..keys]);
                for key in seen {
                    scores[key - start] = dot(q, &block[(key - from) * padded..][..padded]);
                }
            }
        }
        // Softmax, each row over the keys it sees.
        for row in 0..rows {
            let seen = &visible[row / heads.len()];
            let scores = &mut scores[row * keys..][..keys];
            if !seen.is_empty() {
                let sink = self.sinks.map(|s| s[heads.start + row % heads.len()]);
                softmax(&mut scores[seen.start - start..seen.end - start], p.softcap, sink);
            }
        }
        // Values.
        for from in (start..end).step_by(BLOCK) {
            let to = end.min(from + BLOCK);
            self.load(&self.v, &p.v_strides, from..to, kv_head, block, padded);
            for row in 0..rows {
                let seen = clip(&visible[row / heads.len()], from, to);
                let (acc, scores) = (&mut acc[row * padded..][..padded], &scores[row * keys..][..keys]);
                let weights = &scores[seen.start.max(start) - start..seen.end.max(start) - start];
                let values = &block[seen.start.saturating_sub(from) * padded..];
                add_weighted(acc, weights, values);
            }
        }
        for (row, acc) in acc.chunks_exact(padded).enumerate() {
            let at = (first + row / heads.len()) * p.out_strides[0] as usize
                + (heads.start + row % heads.len()) * p.out_strides[1] as usize;
            // SAFETY: this task alone has these queries and heads.
            let out = unsafe { self.out.row_mut(at, dim) };
            for (o, &a) in out.iter_mut().zip(acc) {
                *o = T::from_f32(a);
            }
        }
    }

    /// Widens a block of keys or values into rows of `padded`, whose ends stay zero.
    #[inline(always)]
    fn load(
        &self,
        from: &View<C>,
        strides: &[u32; 2],
        keys: std::ops::Range<usize>,
        head: usize,
        block: &mut [f32],
        padded: usize,
    ) {
        for (row, key) in block.chunks_exact_mut(padded).zip(keys) {
            let at = key * strides[0] as usize + head * strides[1] as usize;
            // SAFETY: nothing writes keys and values.
            widen(unsafe { from.row(at, self.p.dim as usize) }, row);
        }
    }
}

/// The part of `range` within `from..to`; empty ranges start at `from`.
#[inline(always)]
fn clip(range: &std::ops::Range<usize>, from: usize, to: usize) -> std::ops::Range<usize> {
    let (start, end) = (range.start.clamp(from, to), range.end.clamp(from, to));
    if start < end { start..end } else { from..from }
}

/// The inner product of rows whose length is a multiple of [`LANES`].
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for (a, b) in a.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
        for i in 0..LANES {
            lanes[i] = a[i].mul_add(b[i], lanes[i]);
        }
    }
    sum(&lanes)
}

/// `acc += weights[i] * rows[i]`, in order of `i`.
#[inline(always)]
fn add_weighted(acc: &mut [f32], weights: &[f32], rows: &[f32]) {
    const WIDE: usize = 4 * LANES;
    let padded = acc.len();
    let mut at = 0;
    while at < padded {
        let n = WIDE.min(padded - at);
        if n == WIDE {
            let mut sums = [0.0f32; WIDE];
            sums.copy_from_slice(&acc[at..at + WIDE]);
            for (row, &w) in weights.iter().enumerate() {
                let values = &rows[row * padded + at..][..WIDE];
                for i in 0..WIDE {
                    sums[i] = w.mul_add(values[i], sums[i]);
                }
            }
            acc[at..at + WIDE].copy_from_slice(&sums);
        } else {
            for (row, &w) in weights.iter().enumerate() {
                let values = &rows[row * padded + at..][..n];
                for (a, &v) in acc[at..at + n].iter_mut().zip(values) {
                    *a = w.mul_add(v, *a);
                }
            }
        }
        at += n;
    }
}

/// Turns scores into weights that sum to 1, or to less where there is a sink.
#[inline(always)]
fn softmax(scores: &mut [f32], softcap: f32, sink: Option<f32>) {
    if softcap != 0.0 {
        scores.iter_mut().for_each(|s| *s = softcap * tanh(*s / softcap));
    }
    // By comparison, which keeps NaN, as `f32::max` would not.
    let highest = max(scores);
    let highest = sink.map_or(highest, |s| if s > highest { s } else { highest });
    if highest == f32::NEG_INFINITY {
        scores.fill(0.0);
        return;
    }
    scores.iter_mut().for_each(|s| *s = exp(*s - highest));
    let total = sum(scores) + sink.map_or(0.0, |s| exp(s - highest));
    let scale = 1.0 / total;
    scores.iter_mut().for_each(|s| *s *= scale);
}
