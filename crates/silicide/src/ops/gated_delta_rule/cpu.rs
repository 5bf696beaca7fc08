//! Token by token: a task takes a block of rows of one head's state, turned so that a lane is a row, through all tokens.
//! Nothing is summed across lanes, and a row's sums run along the key in one order, so that a prompt gives the same bits
//! whole or in parts.
//!
//! In chunks there would be no fewer operations: what products of matrices save in passes over the state they spend on
//! pairs of tokens, and here a block of the state is in the first-level cache.
#![allow(unsafe_op_in_unsafe_fn, reason = "pointers are into scratch whose sizes `block` sets")]

use super::Params;
use crate::Float;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::simd::{self, Kernel, LANES, Simd};
use crate::device::cpu::vector::{exp, narrow, vectorized, widen};
use crate::device::cpu::{Call, Features, View};

/// Tokens that are widened together.
const TILE: usize = 16;

pub(super) fn run<T: Float>(call: &Call) {
    let p: Params = call.params();
    let work = Work {
        p,
        features: call.features,
        q: call.view::<T>(0),
        k: call.view::<T>(1),
        v: call.view::<T>(2),
        g: call.view::<f32>(3),
        beta: call.view::<f32>(4),
        state: call.view::<f32>(5),
        out: call.view::<T>(6),
    };
    let blocks = (p.dv as usize).div_ceil(LANES);
    let tasks = p.value_heads as usize * blocks;
    let grain = call.grain(LANES * p.dk as usize * (p.tokens as usize + 1));
    call.pool.parallel_ranges(tasks, grain, &|tasks| {
        tasks.for_each(|task| work.block(task / blocks, task % blocks * LANES));
    });
}

struct Work<'a, T> {
    p: Params,
    features: Features,
    q: View<'a, T>,
    k: View<'a, T>,
    v: View<'a, T>,
    g: View<'a, f32>,
    beta: View<'a, f32>,
    state: View<'a, f32>,
    out: View<'a, T>,
}

impl<T: Float> Work<'_, T> {
    /// Takes the rows from `first` on, at most [`LANES`], through all tokens.
    fn block(&self, head: usize, first: usize) {
        let p = &self.p;
        let (dk, dv) = (p.dk as usize, p.dv as usize);
        let rows = LANES.min(dv - first);
        let key_head = match p.tiled != 0 {
            true => head % p.key_heads as usize,
            false => head / (p.value_heads / p.key_heads) as usize,
        };
        with_scratch(dk * LANES + 2 * TILE * dk + 2 * TILE * LANES, |scratch: &mut [f32]| {
            let (turned, scratch) = scratch.split_at_mut(dk * LANES);
            let (queries, scratch) = scratch.split_at_mut(TILE * dk);
            let (keys, scratch) = scratch.split_at_mut(TILE * dk);
            let (values, results) = scratch.split_at_mut(TILE * LANES);
            // SAFETY: no other task touches these rows of the state.
            let state = unsafe { self.state.row_mut((head * dv + first) * dk, rows * dk) };
            // SAFETY: both have as many elements as the kernel says.
            unsafe { simd::run(self.features, Turn { rows: state, dk, turned, back: false }) };
            for start in (0..p.tokens as usize).step_by(TILE) {
                let tokens = TILE.min(p.tokens as usize - start);
                let (mut decay, mut beta) = ([0.0; TILE], [0.0; TILE]);
                let at = |strides: [u32; 2], token: usize, head: usize| {
                    (start + token) * strides[0] as usize + head * strides[1] as usize
                };
                vectorized(
                    #[inline(always)]
                    || {
                        for t in 0..tokens {
                            // SAFETY: nothing writes the inputs.
                            unsafe {
                                let q = self.q.row(at(p.q_strides, t, key_head), dk);
                                widen(q, &mut queries[t * dk..][..dk]);
                                let k = self.k.row(at(p.k_strides, t, key_head), dk);
                                widen(k, &mut keys[t * dk..][..dk]);
                                let v = self.v.row(at(p.v_strides, t, head) + first, rows);
                                let lanes = &mut values[t * LANES..][..LANES];
                                widen(v, lanes);
                                lanes[rows..].fill(0.0);
                                let g = self.g.get((start + t) * p.g_stride as usize + head);
                                decay[t] = if p.log != 0 { exp(g) } else { g };
                                beta[t] = self.beta.get((start + t) * p.beta_stride as usize + head);
                            }
                        }
                    },
                );
                let tile = Tile {
                    tokens,
                    dk,
                    scale: p.scale,
                    state: turned.as_mut_ptr(),
                    queries: queries.as_ptr(),
                    keys: keys.as_ptr(),
                    values: values.as_ptr(),
                    results: results.as_mut_ptr(),
                    decay: &decay,
                    beta: &beta,
                };
                // SAFETY: the pointers are to as many elements as `tokens` and `dk` say.
                unsafe { simd::run(self.features, tile) };
                vectorized(
                    #[inline(always)]
                    || {
                        for t in 0..tokens {
                            // SAFETY: no other task touches these elements of the output.
                            let out = unsafe { self.out.row_mut(at(p.out_strides, t, head) + first, rows) };
                            narrow(&results[t * LANES..][..rows], out);
                        }
                    },
                );
            }
            // SAFETY: as above.
            unsafe { simd::run(self.features, Turn { rows: state, dk, turned, back: true }) };
        });
    }
}

/// Turns up to sixteen rows of `dk` into `dk` vectors of sixteen lanes, or back.
struct Turn<'a> {
    rows: &'a mut [f32],
    dk: usize,
    turned: &'a mut [f32],
    back: bool,
}

impl Kernel for Turn<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Turn { rows, dk, turned, back } = self;
        let count = rows.len() / dk;
        let whole = if count == LANES { dk / LANES * LANES } else { 0 };
        let (rows, turned) = (rows.as_mut_ptr(), turned.as_mut_ptr());
        for d in (0..whole).step_by(LANES) {
            let row = |i: usize| rows.add(i * dk + d);
            let column = |i: usize| turned.add((d + i) * LANES);
            let mut square: [S::F; LANES] = std::array::from_fn(|i| S::load(if back { column(i) } else { row(i) }));
            S::transpose(&mut square);
            for (i, x) in square.into_iter().enumerate() {
                S::store(if back { row(i) } else { column(i) }, x);
            }
        }
        for d in whole..dk {
            for i in 0..LANES {
                let (at, lane) = (i * dk + d, turned.add(d * LANES + i));
                match (back, i < count) {
                    (false, true) => *lane = *rows.add(at),
                    (false, false) => *lane = 0.0,
                    (true, true) => *rows.add(at) = *lane,
                    (true, false) => {}
                }
            }
        }
    }
}

/// Some tokens of one block. Queries and keys are `[tokens, dk]`, values and results `[tokens, LANES]`, the state
/// `[dk, LANES]`.
struct Tile<'a> {
    tokens: usize,
    dk: usize,
    scale: f32,
    state: *mut f32,
    queries: *const f32,
    keys: *const f32,
    values: *const f32,
    results: *mut f32,
    decay: &'a [f32; TILE],
    beta: &'a [f32; TILE],
}

/// Sums that run side by side, since each waits for its own last addition.
const SUMS: usize = 4;

impl Kernel for Tile<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut predicted = [S::splat(0.0); SUMS];
        for d in 0..self.dk {
            let sum = &mut predicted[d % SUMS];
            *sum = S::fma(S::load(self.state.add(d * LANES)), S::splat(*self.keys.add(d)), *sum);
        }
        for t in 0..self.tokens - 1 {
            predicted = self.step::<S, true>(t, predicted);
        }
        self.step::<S, false>(self.tokens - 1, predicted);
    }
}

impl Tile<'_> {
    /// Takes one token, given what the state says of its key; gives the same of the next token's key, which saves a pass
    /// over the state.
    #[inline(always)]
    unsafe fn step<S: Simd, const NEXT: bool>(&self, t: usize, predicted: [S::F; SUMS]) -> [S::F; SUMS] {
        let decay = S::splat(self.decay[t]);
        // (v - decay * predicted) * beta
        let u = S::fma(S::splat(-self.decay[t]), total::<S>(predicted), S::load(self.values.add(t * LANES)));
        let u = S::mul(u, S::splat(self.beta[t]));
        let (key, query) = (self.keys.add(t * self.dk), self.queries.add(t * self.dk));
        let next_key = if NEXT { key.add(self.dk) } else { key };
        let mut y = [S::splat(0.0); SUMS];
        let mut next = [S::splat(0.0); SUMS];
        let mut element = |d: usize, i: usize| {
            let at = self.state.add(d * LANES);
            let s = S::fma(S::splat(*key.add(d)), u, S::mul(S::load(at), decay));
            S::store(at, s);
            y[i] = S::fma(s, S::splat(*query.add(d)), y[i]);
            if NEXT {
                next[i] = S::fma(s, S::splat(*next_key.add(d)), next[i]);
            }
        };
        let whole = self.dk / SUMS * SUMS;
        for d in (0..whole).step_by(SUMS) {
            for i in 0..SUMS {
                element(d + i, i);
            }
        }
        for d in whole..self.dk {
            element(d, d - whole);
        }
        S::store(self.results.add(t * LANES), S::mul(total::<S>(y), S::splat(self.scale)));
        next
    }
}

#[inline(always)]
unsafe fn total<S: Simd>(sums: [S::F; SUMS]) -> S::F {
    let one = S::splat(1.0);
    let add = |a, b| S::fma(a, one, b);
    add(add(sums[0], sums[1]), add(sums[2], sums[3]))
}
