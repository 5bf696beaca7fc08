//! A row at a time, in scratch memory.

use super::Params;
use crate::Float;
use crate::device::cpu::Call;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::{narrow, sum_squares, vectorized, widen};
use crate::ops::hadamard_transform::cpu::{butterflies, flip};
use crate::ops::kv_quantize_affine::Ring;

/// As many as the longest codes have, so that no code is out of bounds.
type Table = [f32; 256];

pub(super) fn quantize<T: Float>(call: &Call) {
    let p: Params = call.params();
    let dim = p.dim as usize;
    let (x, positions) = (call.view::<T>(0), call.slice::<u32>(1));
    let ring = Ring::of(positions, p.capacity, p.ring);
    let signs = if p.has_signs != 0 { call.slice::<u32>(4) } else { &[] };
    let (codes, norms) = (call.view::<u8>(5), call.view::<f32>(6));
    let midpoints = table(call, 2, 1);
    call.pool.parallel_ranges(p.rows as usize, call.grain(8 * dim), &|rows| {
        with_scratch(dim, |s: &mut [f32]| {
            with_scratch(dim, |row_codes: &mut [u32]| {
                vectorized(
                    // The whole row is in here: a closure of its own would be compiled without wide vectors.
                    #[inline(always)]
                    || {
                        for row in rows.clone() {
                            let (token, head) = (row / p.heads as usize, row % p.heads as usize);
                            let Some(slot) = ring.row(positions[token]) else { continue };
                            // SAFETY: nothing writes the input.
                            widen(unsafe { x.row(at(p.row_strides, token, head), dim) }, s);
                            s.iter_mut().for_each(|s| *s *= p.rotation_scale);
                            flip(s, signs);
                            butterflies(s);
                            for (i, block) in s.chunks_mut(dim / p.norms as usize).enumerate() {
                                let norm = sum_squares(block).sqrt();
                                let norm = if norm < f32::INFINITY { norm } else { f32::NAN };
                                let to_unit = if norm > 0.0 { p.unit / norm } else { 0.0 };
                                block.iter_mut().for_each(|s| *s *= to_unit);
                                let place = at([p.norm_strides[0], p.norm_strides[1]], slot, head);
                                // SAFETY: rows differ, so a row of the caches is one task's.
                                unsafe { norms.set(place + i * p.norm_strides[2] as usize, norm) };
                            }
                            nearest(s, &midpoints, p.bits, row_codes);
                            let place = 4 * at(p.code_strides, slot, head);
                            // SAFETY: as above.
                            pack(row_codes, p.bits, unsafe { codes.row_mut(place, dim * p.bits as usize / 8) });
                        }
                    },
                );
            });
        });
    });
}

pub(super) fn dequantize<T: Float>(call: &Call) {
    let p: Params = call.params();
    let dim = p.dim as usize;
    let (codes, norms) = (call.view::<u8>(0), call.view::<f32>(1));
    let signs = if p.has_signs != 0 { call.slice::<u32>(3) } else { &[] };
    let out = call.view::<T>(4);
    let levels = table(call, 2, 0);
    let row = |row: usize, s: &mut [f32]| {
        let (head, slot) = (row / p.capacity as usize, row % p.capacity as usize);
        // SAFETY: nothing writes the inputs.
        let row_codes = unsafe { codes.row(4 * at(p.code_strides, slot, head), dim * p.bits as usize / 8) };
        unpack(row_codes, p.bits, &levels, s);
        let place = at([p.norm_strides[0], p.norm_strides[1]], slot, head);
        for (i, block) in s.chunks_mut(dim / p.norms as usize).enumerate() {
            // SAFETY: as above.
            let norm = unsafe { norms.get(place + i * p.norm_strides[2] as usize) };
            block.iter_mut().for_each(|s| *s *= norm / p.unit);
        }
        if p.rotated == 0 {
            butterflies(s);
            s.iter_mut().for_each(|s| *s *= p.rotation_scale);
            flip(s, signs);
        }
        // SAFETY: one task a row.
        narrow(s, unsafe { out.row_mut(at(p.row_strides, slot, head), dim) });
    };
    // Not `vectorized`: wide vectors would gather levels, which takes longer than loads of one number each.
    call.pool.parallel_ranges(p.rows as usize, call.grain(4 * dim), &|rows| {
        with_scratch(dim, |s: &mut [f32]| rows.for_each(|i| row(i, s)));
    });
}

fn at(strides: [u32; 2], slot: usize, head: usize) -> usize {
    slot * strides[0] as usize + head * strides[1] as usize
}

/// The levels, or their midpoints, as `which` has it.
fn table(call: &Call, arg: usize, which: usize) -> Table {
    let all = call.slice::<f32>(arg);
    let count = all.len() / 2;
    let mut table = [f32::INFINITY; 256];
    table[..count].copy_from_slice(&all[which * count..][..count]);
    table
}

/// How many midpoints are below each number, by bisection.
#[inline(always)]
fn nearest(units: &[f32], midpoints: &Table, bits: u32, codes: &mut [u32]) {
    codes.fill(0);
    for step in (0..bits).rev().map(|bit| 1 << bit) {
        for (code, unit) in codes.iter_mut().zip(units) {
            let above = *unit > midpoints[(*code + step - 1) as usize & 255];
            *code += if above { step } else { 0 };
        }
    }
}

/// Eight codes fill as many bytes as a code has bits.
#[inline(always)]
fn pack(codes: &[u32], bits: u32, out: &mut [u8]) {
    for (codes, out) in codes.chunks_exact(8).zip(out.chunks_exact_mut(bits as usize)) {
        let all = codes.iter().rev().fold(0u64, |all, &code| all << bits | code as u64);
        out.copy_from_slice(&all.to_le_bytes()[..bits as usize]);
    }
}

#[inline(always)]
fn unpack(codes: &[u8], bits: u32, levels: &Table, out: &mut [f32]) {
    let mask = (1 << bits) - 1;
    for (codes, out) in codes.chunks_exact(bits as usize).zip(out.chunks_exact_mut(8)) {
        let mut bytes = [0; 8];
        bytes[..codes.len()].copy_from_slice(codes);
        let all = u64::from_le_bytes(bytes);
        for (i, out) in out.iter_mut().enumerate() {
            *out = levels[(all >> (i as u32 * bits)) as usize & mask & 255];
        }
    }
}
