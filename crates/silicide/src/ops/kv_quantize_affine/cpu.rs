//! A row at a time, in scratch memory.

use super::{Params, Ring};
use crate::Float;
use crate::device::cpu::Call;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::{narrow, vectorized, widen};

pub(super) fn quantize<T: Float, S: Float>(call: &Call) {
    let p: Params = call.params();
    let dim = p.dim as usize;
    let (x, positions) = (call.view::<T>(0), call.slice::<u32>(1));
    let ring = Ring::of(positions, p.capacity, p.ring);
    let (codes, scales, biases) = (call.view::<u32>(2), call.view::<S>(3), call.view::<S>(4));
    let groups = dim / p.group_size as usize;
    call.pool.parallel_ranges(p.rows as usize, call.grain(4 * dim), &|rows| {
        with_scratch(dim, |row: &mut [f32]| {
            vectorized(
                #[inline(always)]
                || {
                    for i in rows.clone() {
                        let (token, head) = (i / p.heads as usize, i % p.heads as usize);
                        let Some(slot) = ring.row(positions[token]) else { continue };
                        // SAFETY: nothing writes the input.
                        widen(unsafe { x.row(at(p.row_strides, token, head), dim) }, row);
                        let (to_scales, to_biases) = (at(p.scale_strides, slot, head), at(p.bias_strides, slot, head));
                        // SAFETY: rows differ, so a row of the cache is one task's.
                        let (words, scales, biases) = unsafe {
                            let words = codes.row_mut(at(p.code_strides, slot, head), dim * p.bits as usize / 32);
                            (words, scales.row_mut(to_scales, groups), biases.row_mut(to_biases, groups))
                        };
                        let words = words.chunks_exact_mut(words.len() / groups);
                        for (group, (to, words)) in
                            row.chunks_exact(dim / groups).zip(scales.iter_mut().zip(biases).zip(words))
                        {
                            let (scale, bias) = affine(group, p.bits);
                            (*to.0, *to.1) = (S::from_f32(scale), S::from_f32(bias));
                            match p.bits {
                                4 => encode::<4>(group, scale, bias, words),
                                _ => encode::<8>(group, scale, bias, words),
                            }
                        }
                    }
                },
            );
        });
    });
}

pub(super) fn dequantize<T: Float, S: Float>(call: &Call) {
    let p: Params = call.params();
    let dim = p.dim as usize;
    let (codes, scales, biases) = (call.view::<u32>(0), call.view::<S>(1), call.view::<S>(2));
    let out = call.view::<T>(3);
    let groups = dim / p.group_size as usize;
    call.pool.parallel_ranges(p.rows as usize, call.grain(2 * dim), &|rows| {
        with_scratch(dim, |row: &mut [f32]| {
            vectorized(
                #[inline(always)]
                || {
                    for i in rows.clone() {
                        let (head, slot) = (i / p.capacity as usize, i % p.capacity as usize);
                        // SAFETY: nothing writes the inputs.
                        let (words, scales, biases) = unsafe {
                            let words = codes.row(at(p.code_strides, slot, head), dim * p.bits as usize / 32);
                            let scales = scales.row(at(p.scale_strides, slot, head), groups);
                            (words, scales, biases.row(at(p.bias_strides, slot, head), groups))
                        };
                        let words = words.chunks_exact(words.len() / groups);
                        for (group, (from, words)) in
                            row.chunks_exact_mut(dim / groups).zip(scales.iter().zip(biases).zip(words))
                        {
                            let (scale, bias) = (from.0.to_f32(), from.1.to_f32());
                            match p.bits {
                                4 => decode::<4>(words, scale, bias, group),
                                _ => decode::<8>(words, scale, bias, group),
                            }
                        }
                        // SAFETY: one task a row.
                        narrow(row, unsafe { out.row_mut(at(p.row_strides, slot, head), dim) });
                    }
                },
            );
        });
    });
}

fn at(strides: [u32; 2], slot: usize, head: usize) -> usize {
    slot * strides[0] as usize + head * strides[1] as usize
}

/// The scale and the bias of a group; NaN where something is not finite.
#[inline(always)]
fn affine(group: &[f32], bits: u32) -> (f32, f32) {
    const LANES: usize = 16;
    let (mut least, mut most, mut none) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES], [0.0f32; LANES]);
    for chunk in group.chunks_exact(LANES) {
        for i in 0..LANES {
            let x = chunk[i];
            least[i] = if x < least[i] { x } else { least[i] };
            most[i] = if x > most[i] { x } else { most[i] };
            // NaN for what is not finite.
            none[i] += x * 0.0;
        }
    }
    if none.iter().any(|x| x.is_nan()) {
        return (f32::NAN, f32::NAN);
    }
    let least = least.into_iter().fold(f32::INFINITY, f32::min);
    let most = most.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let scale = ((most - least) / ((1u32 << bits) - 1) as f32).max(1e-7);
    let (edge, scale) = if least.abs() > most.abs() { (least, scale) } else { (most, -scale) };
    // The edge is a whole number of steps from 0.
    let steps = (edge / scale).round_ties_even();
    if steps == 0.0 { (scale, 0.0) } else { (edge / steps, edge) }
}

/// The nearest codes, packed.
#[inline(always)]
fn encode<const BITS: usize>(group: &[f32], scale: f32, bias: f32, words: &mut [u32]) {
    let most = ((1u32 << BITS) - 1) as f32;
    let mut bytes = [0u8; 128];
    for (byte, &x) in bytes.iter_mut().zip(group) {
        let code = ((x - bias) / scale).round_ties_even();
        let code = if code > 0.0 { code } else { 0.0 };
        let code = if code < most { code } else { most };
        // Adding 2^23 leaves it in the lowest bits, without a conversion that has to mind what is not finite.
        *byte = (code + 8_388_608.0).to_bits() as u8;
    }
    if BITS == 8 {
        for (word, codes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*codes);
        }
        return;
    }
    for (word, codes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        // Two nibbles of each pair of bytes, then of pairs of pairs.
        let x = u64::from_le_bytes(*codes);
        let x = (x | x >> 4) & 0x00ff_00ff_00ff_00ff;
        let x = (x | x >> 8) & 0x0000_ffff_0000_ffff;
        *word = (x | x >> 16) as u32;
    }
}

#[inline(always)]
fn decode<const BITS: usize>(words: &[u32], scale: f32, bias: f32, group: &mut [f32]) {
    for (&word, out) in words.iter().zip(group.chunks_exact_mut(32 / BITS)) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = scale * (word >> (i * BITS) & ((1 << BITS) - 1)) as f32 + bias;
        }
    }
}
