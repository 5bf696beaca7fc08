//! A task takes a run of tokens. Cosine and sine are made once a token and serve all its heads.

use super::Params;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::{narrow, sum_squares, vectorized, widen};
use crate::device::cpu::{Call, View};
use crate::ops::rope::cpu::{angles, rotate};
use crate::{DType, Float};

pub(super) fn run<T: Float, W: Float, C: Float>(call: &Call) {
    let p: Params = call.params();
    let (dim, pairs) = (p.rotary.head_dim as usize, p.rotary.pairs as usize);
    let [q_heads, kv_heads] = p.rotary.heads.map(|heads| heads as usize);
    let (q, k, v) = (call.view::<T>(0), call.view::<T>(1), call.view::<T>(2));
    let weights = (p.has_norm != 0).then(|| [call.slice::<W>(3), call.slice::<W>(4)]);
    let (positions, frequencies, axes) = (call.slice::<u32>(5), call.slice::<i64>(6), call.slice::<u32>(7));
    let slots = call.slice::<u32>(8);
    let (keys, values) = (call.view::<C>(9), call.view::<C>(10));
    let grain = call.grain((q_heads + 2 * kv_heads) * dim);
    call.pool.parallel_ranges(p.rotary.tokens as usize, grain, &|range| {
        with_scratch(2 * pairs + 4 * dim, |scratch: &mut [f32]| {
            let (cos, rest) = scratch.split_at_mut(pairs);
            let (sin, rest) = rest.split_at_mut(pairs);
            let [row, spare, q_weight, k_weight] = parts(rest, dim);
            with_scratch(dim, |turned: &mut [T]| {
                vectorized(
                    #[inline(always)]
                    || {
                        for (to, from) in
                            [&mut *q_weight, &mut *k_weight].into_iter().zip(weights.into_iter().flatten())
                        {
                            widen(from, to);
                            to.iter_mut().for_each(|w| *w += p.weight_offset);
                        }
                        for token in range {
                            angles(&p.rotary, positions, frequencies, axes, token, cos, sin);
                            for head in 0..q_heads {
                                let at = place(token, head, &p.rotary.x_strides[..2]);
                                // SAFETY: a task reads a head before it writes the same head, and touches only heads of
                                // its own tokens, which outputs do not share; the input's slice ends here.
                                norm(&p, unsafe { q.row(at, dim) }, q_weight, turned, row);
                                // SAFETY: as above.
                                rotate(&p.rotary, row, cos, sin, spare, unsafe { q.row_mut(at, dim) });
                            }
                            let slot = slots[token];
                            if slot >= p.capacity {
                                continue;
                            }
                            for head in 0..kv_heads {
                                let at = place(token, head, &p.rotary.x_strides[2..]);
                                // SAFETY: nothing writes keys.
                                norm(&p, unsafe { k.row(at, dim) }, k_weight, turned, row);
                                rotate(&p.rotary, row, cos, sin, spare, turned);
                                cache(turned, spare, keys, place(slot as usize, head, &p.key_strides));
                                // SAFETY: nothing writes values.
                                let from = unsafe { v.row(place(token, head, &p.v_strides), dim) };
                                cache(from, spare, values, place(slot as usize, head, &p.value_strides));
                            }
                        }
                    },
                );
            });
        });
    });
}

fn parts<const N: usize>(mut memory: &mut [f32], len: usize) -> [&mut [f32]; N] {
    std::array::from_fn(|_| {
        let (part, rest) = std::mem::take(&mut memory).split_at_mut(len);
        memory = rest;
        part
    })
}

fn place(row: usize, head: usize, strides: &[u32]) -> usize {
    row * strides[0] as usize + head * strides[1] as usize
}

/// A head, normalised where that is asked for and rounded as rms_norm stores it. `rounded` is room for one.
#[inline(always)]
fn norm<T: Float>(p: &Params, x: &[T], weight: &[f32], rounded: &mut [T], out: &mut [f32]) {
    widen(x, out);
    if p.has_norm == 0 {
        return;
    }
    let scale = 1.0 / (sum_squares(out) / out.len() as f32 + p.eps).sqrt();
    for (o, w) in out.iter_mut().zip(weight) {
        *o = *o * scale * w;
    }
    if T::DTYPE != DType::F32 {
        narrow(out, rounded);
        widen(rounded, out);
    }
}

/// Stores a head in a cache. `wide` is room for one.
#[inline(always)]
fn cache<T: Float, C: Float>(from: &[T], wide: &mut [f32], to: View<C>, at: usize) {
    // SAFETY: slots differ, so a row of a cache is one task's alone.
    let to = unsafe { to.row_mut(at, from.len()) };
    if T::DTYPE == DType::F32 {
        return narrow(bytemuck::cast_slice(from), to);
    }
    widen(from, wide);
    narrow(wide, to);
}
