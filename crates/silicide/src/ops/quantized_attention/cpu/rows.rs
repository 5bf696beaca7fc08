//! Rows of codes as numbers.

use std::ops::Range;

use half::bf16;

use crate::DType;
use crate::device::cpu::simd::{LANES, Simd};
use crate::device::cpu::{Call, Features, View};
use crate::ops::quantized_attention::{Params, Side};

/// Keys or values.
pub(super) struct Rows<'a> {
    codes: View<'a, u8>,
    scales: View<'a, u8>,
    biases: View<'a, u8>,
    dtype: DType,
    side: Side,
    dim: usize,
    /// Rows of a ring.
    ring: Option<usize>,
    pub(super) rotated: bool,
    levels: [f32; 256],
    lookup: Lookup,
}

impl<'a> Rows<'a> {
    /// Those whose codes are argument `arg` of the call; scales and biases, or norms and levels, follow.
    pub(super) fn new(call: &Call<'a>, arg: usize, p: &Params, side: Side, lookup: Lookup) -> Rows<'a> {
        let mut levels = [0.0; 256];
        if side.rotated != 0 {
            let count = 1 << side.bits;
            levels[..count].copy_from_slice(&call.slice::<f32>(arg + 2)[..count]);
        }
        Rows {
            codes: call.bits(arg),
            scales: call.bits(arg + 1),
            biases: call.bits(arg + 2),
            dtype: call.dtype(arg + 1),
            side,
            dim: p.dim as usize,
            ring: (p.ring != 0).then_some(p.keys as usize),
            rotated: side.rotated != 0,
            levels,
            lookup,
        }
    }

    /// Whether elements come with those of even number first, of each pair of vectors: as nibbles lie.
    pub(super) fn even_first(&self) -> bool {
        self.side.bits == 4
    }

    /// How a [`Block`] of them is read.
    pub(super) fn source(&self) -> Source {
        match (self.rotated, self.side.bits) {
            (true, _) => Source::Numbers,
            (_, 8) => Source::Bytes,
            _ => Source::Nibbles,
        }
    }

    /// The codes of a row.
    #[inline(always)]
    fn codes(&self, row: usize, head: usize) -> &[u8] {
        let at = row * self.side.code_strides[0] as usize + head * self.side.code_strides[1] as usize;
        // SAFETY: nothing writes keys and values.
        unsafe { self.codes.row(4 * at, self.dim * self.side.bits as usize / 8) }
    }

    /// The scales or biases of some rows, as `f32`.
    #[inline(always)]
    fn widen<S: Simd>(&self, of: &View<u8>, strides: [u32; 2], first: usize, len: usize, head: usize, to: &mut Scales) {
        let (size, groups) = (self.dtype.size(), self.groups());
        let at = |row: usize| (row * strides[0] as usize + head * strides[1] as usize) * size;
        if strides[0] as usize == groups {
            // SAFETY: nothing writes keys and values.
            let bytes = unsafe { of.row(at(first), len * groups * size) };
            for (bytes, to) in bytes.chunks(LANES * size).zip(to.chunks_exact_mut(LANES)) {
                let mut all = [0u8; 4 * LANES];
                let whole = bytes.len() == LANES * size;
                if !whole {
                    all[..bytes.len()].copy_from_slice(bytes);
                }
                let from = if whole { bytes } else { &all };
                // SAFETY: there are sixteen numbers, and sixteen places.
                unsafe { S::store(to.as_mut_ptr(), S::load_float(from.as_ptr(), self.dtype)) };
            }
            return;
        }
        for (i, to) in to.chunks_exact_mut(groups).enumerate().take(len) {
            // SAFETY: nothing writes keys and values.
            let bytes = unsafe { of.row(at(first + i), groups * size) };
            for (bytes, to) in bytes.chunks_exact(size).zip(to) {
                *to = match self.dtype {
                    DType::F16 => widened(bytemuck::pod_read_unaligned(bytes)),
                    DType::BF16 => bytemuck::pod_read_unaligned::<bf16>(bytes).to_f32(),
                    _ => bytemuck::pod_read_unaligned(bytes),
                };
            }
        }
    }

    /// In a row.
    fn groups(&self) -> usize {
        self.dim >> self.side.group_shift
    }
}

/// An f16 by its bits. For one number `half` takes longer to ask what the processor can do.
#[inline(always)]
fn widened(bits: u16) -> f32 {
    let magnitude = (bits as u32 & 0x7fff) << 13;
    // Exponents are 112 less; those of what is not finite stay the greatest.
    let x = f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23);
    let x = if bits & 0x7c00 == 0x7c00 { f32::from_bits(magnitude | 0x7f80_0000) } else { x };
    f32::from_bits(x.to_bits() | (bits as u32 & 0x8000) << 16)
}

/// Keys or values that are taken together.
pub(super) const BLOCK: usize = LANES;

/// Of a block; a row has sixteen at most, in 512 elements.
type Scales = [f32; BLOCK * 16];

/// What a [`Block`] has of a row.
#[derive(Clone, Copy)]
pub(super) enum Source {
    /// Codes of 8 bits.
    Bytes,
    /// Codes of 4 bits.
    Nibbles,
    /// Numbers, in scratch memory.
    Numbers,
}

/// A [`Source`] that is known when it is compiled.
pub(super) trait Codes {
    /// Whether there are scales and biases.
    const SCALED: bool;

    /// Thirty-two of a row from `at` on, a multiple of 32.
    ///
    /// # Safety
    /// They are there.
    unsafe fn pair<S: Simd>(row: *const u8, at: usize) -> [S::F; 2];
}

pub(super) struct Bytes;

impl Codes for Bytes {
    const SCALED: bool = true;

    #[inline(always)]
    unsafe fn pair<S: Simd>(row: *const u8, at: usize) -> [S::F; 2] {
        // SAFETY: the caller's promise.
        unsafe { [S::to_f32(S::load_u8(row.add(at))), S::to_f32(S::load_u8(row.add(at + LANES)))] }
    }
}

pub(super) struct Nibbles;

impl Codes for Nibbles {
    const SCALED: bool = true;

    #[inline(always)]
    unsafe fn pair<S: Simd>(row: *const u8, at: usize) -> [S::F; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let codes = S::load_u8(row.add(at / 2));
            [S::to_f32(S::and(codes, S::splat_u32(15))), S::to_f32(S::shr(codes, 4))]
        }
    }
}

pub(super) struct Numbers;

impl Codes for Numbers {
    const SCALED: bool = false;

    #[inline(always)]
    unsafe fn pair<S: Simd>(row: *const u8, at: usize) -> [S::F; 2] {
        let row = row.cast::<f32>();
        // SAFETY: the caller's promise.
        unsafe { [S::load(row.add(at)), S::load(row.add(at + LANES))] }
    }
}

/// Some rows of keys or values: where they are, and their scales and biases.
pub(super) struct Block {
    rows: [*const u8; BLOCK],
    pub(super) len: usize,
    scales: Scales,
    biases: Scales,
    groups: usize,
    group_shift: u32,
}

impl Block {
    pub(super) fn new() -> Block {
        let none = [0.0; BLOCK * 16];
        Block { rows: [std::ptr::null(); BLOCK], len: 0, scales: none, biases: none, groups: 1, group_shift: 0 }
    }

    /// Takes these positions of a head. Numbers are written to `decoded`, a row of `head_dim` after another.
    #[inline(always)]
    pub(super) fn take<S: Simd>(&mut self, of: &Rows, positions: Range<usize>, head: usize, decoded: &mut [f32]) {
        self.len = positions.len();
        (self.groups, self.group_shift) = (of.groups(), of.side.group_shift);
        let place = |position: usize| of.ring.map_or(position, |rows| position % rows);
        for (position, row) in positions.clone().zip(&mut self.rows) {
            *row = of.codes(place(position), head).as_ptr();
        }
        if of.rotated {
            let strides = of.side.scale_strides;
            let mut norms = [[0.0; 2]; BLOCK];
            for (position, norms) in positions.clone().zip(&mut norms) {
                let at = place(position) * strides[0] as usize + head * strides[1] as usize;
                for (i, norm) in norms.iter_mut().enumerate().take(self.groups) {
                    // SAFETY: nothing writes keys and values.
                    let bytes = unsafe { of.scales.row(4 * (at + i * of.side.scale_stride as usize), 4) };
                    *norm = bytemuck::pod_read_unaligned::<f32>(bytes) * of.side.from_unit;
                }
                // So a half is like the whole.
                norms[1] = if self.groups == 1 { norms[0] } else { norms[1] };
            }
            let decoded = &mut decoded[..self.len * of.dim];
            of.lookup.levels(&self.rows[..self.len], &norms, of, decoded);
            for (row, to) in self.rows.iter_mut().zip(decoded.chunks_exact(of.dim)) {
                *row = to.as_ptr().cast();
            }
            return;
        }
        let (first, last) = (place(positions.start), place(positions.end - 1));
        let mut widen = |first, len, to: usize| {
            let side = &of.side;
            let mut some: Scales = [0.0; BLOCK * 16];
            for (view, strides, all) in
                [(&of.scales, side.scale_strides, &mut self.scales), (&of.biases, side.bias_strides, &mut self.biases)]
            {
                if to == 0 {
                    of.widen::<S>(view, strides, first, len, head, all);
                } else {
                    of.widen::<S>(view, strides, first, len, head, &mut some);
                    all[to * self.groups..][..len * self.groups].copy_from_slice(&some[..len * self.groups]);
                }
            }
        };
        if first <= last {
            widen(first, positions.len(), 0);
        } else {
            // Around the end of a ring.
            widen(first, positions.len() - last - 1, 0);
            widen(0, last + 1, positions.len() - last - 1);
        }
    }

    /// Thirty-two numbers of a row from `at` on.
    ///
    /// # Safety
    /// They are there, what [`take`](Self::take) was given still is, and `C` is its source.
    #[inline(always)]
    pub(super) unsafe fn pair<S: Simd, C: Codes>(&self, row: usize, at: usize) -> [S::F; 2] {
        // SAFETY: the caller's promise; scales are as many as groups.
        unsafe {
            let [a, b] = C::pair::<S>(*self.rows.get_unchecked(row), at);
            if !C::SCALED {
                return [a, b];
            }
            let group = row * self.groups + (at >> self.group_shift);
            let (scale, bias) =
                (S::splat(*self.scales.get_unchecked(group)), S::splat(*self.biases.get_unchecked(group)));
            [S::fma(a, scale, bias), S::fma(b, scale, bias)]
        }
    }
}

/// How codes find their levels.
#[derive(Clone, Copy)]
pub(super) enum Lookup {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Lookup {
    pub(super) fn of(features: Features) -> Lookup {
        match features.level() {
            #[cfg(target_arch = "x86_64")]
            level if level >= crate::device::cpu::Level::Avx512 => Lookup::Avx512,
            _ => Lookup::Portable,
        }
    }

    /// Writes the levels of rows of codes, times the norm of each half.
    #[inline(always)]
    fn levels(self, rows: &[*const u8], norms: &[[f32; 2]], of: &Rows, to: &mut [f32]) {
        assert!(to.len() == rows.len() * of.dim && of.dim.is_multiple_of(64));
        // SAFETY: the rows are there, `to` has room, and the processor is of the level.
        unsafe {
            match (self, of.side.bits) {
                #[cfg(target_arch = "x86_64")]
                (Lookup::Avx512, 4) => avx512::levels::<4>(rows, norms, &of.levels, of.dim, to.as_mut_ptr()),
                #[cfg(target_arch = "x86_64")]
                (Lookup::Avx512, 5) => avx512::levels::<5>(rows, norms, &of.levels, of.dim, to.as_mut_ptr()),
                #[cfg(target_arch = "x86_64")]
                (Lookup::Avx512, 6) => avx512::levels::<6>(rows, norms, &of.levels, of.dim, to.as_mut_ptr()),
                #[cfg(target_arch = "x86_64")]
                (Lookup::Avx512, _) => avx512::levels::<8>(rows, norms, &of.levels, of.dim, to.as_mut_ptr()),
                (Lookup::Portable, 4) => portable::<4>(rows, norms, &of.levels, of.dim, to),
                (Lookup::Portable, 5) => portable::<5>(rows, norms, &of.levels, of.dim, to),
                (Lookup::Portable, 6) => portable::<6>(rows, norms, &of.levels, of.dim, to),
                (Lookup::Portable, _) => portable::<8>(rows, norms, &of.levels, of.dim, to),
            }
        }
    }
}

/// Eight codes fill as many bytes as a code has bits.
///
/// # Safety
/// The rows are there.
#[inline(always)]
unsafe fn portable<const BITS: usize>(
    rows: &[*const u8],
    norms: &[[f32; 2]],
    levels: &[f32; 256],
    dim: usize,
    to: &mut [f32],
) {
    for ((&row, norms), to) in rows.iter().zip(norms).zip(to.chunks_exact_mut(dim)) {
        // SAFETY: the caller's promise.
        let codes = unsafe { std::slice::from_raw_parts(row, dim * BITS / 8) };
        for ((codes, to), norm) in codes.chunks_exact(dim * BITS / 16).zip(to.chunks_exact_mut(dim / 2)).zip(norms) {
            for (codes, to) in codes.chunks_exact(4 * BITS).zip(to.chunks_exact_mut(2 * LANES)) {
                for (i, codes) in codes.chunks_exact(BITS).enumerate() {
                    let mut bytes = [0; 8];
                    bytes[..BITS].copy_from_slice(codes);
                    let all = u64::from_le_bytes(bytes);
                    for j in 0..8 {
                        let at = 8 * i + j;
                        let at = if BITS == 4 { at % 2 * LANES + at / 2 } else { at };
                        to[at] = levels[(all >> (j * BITS)) as usize & ((1 << BITS) - 1)] * norm;
                    }
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use crate::device::cpu::simd::LANES;

    /// Sixteen codes at a time: their bits by a permutation of 16-bit words, their levels by permutations of tables of 32. Of
    /// 4 bits thirty-two, those of even number first.
    ///
    /// # Safety
    /// The processor has the features, the rows are there, and `to` has room for them.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) unsafe fn levels<const BITS: usize>(
        rows: &[*const u8],
        norms: &[[f32; 2]],
        levels: &[f32; 256],
        dim: usize,
        mut to: *mut f32,
    ) {
        // SAFETY: the caller's promise; loads are of whole codes.
        unsafe {
            let lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
            let bit = _mm512_mullo_epi32(lane, _mm512_set1_epi32(BITS as i32));
            // The word that a code starts in, and the one behind it.
            let word = _mm512_srli_epi32::<4>(bit);
            let words = _mm512_or_si512(word, _mm512_slli_epi32::<16>(_mm512_add_epi32(word, _mm512_set1_epi32(1))));
            let shift = _mm512_and_si512(bit, _mm512_set1_epi32(15));
            let tables: [__m512; 16] = std::array::from_fn(|i| _mm512_loadu_ps(levels.as_ptr().add(16 * i)));
            for (&row, norms) in rows.iter().zip(norms) {
                for (half, &norm) in norms.iter().enumerate() {
                    let norm = _mm512_set1_ps(norm);
                    let mut at = half * dim / 2;
                    let end = at + dim / 2;
                    while at < end {
                        let codes = row.add(at * BITS / 8);
                        if BITS == 4 {
                            // A permutation minds the lowest four bits alone.
                            let pair = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.cast()));
                            let low = _mm512_permutexvar_ps(pair, tables[0]);
                            let high = _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(pair), tables[0]);
                            _mm512_storeu_ps(to, _mm512_mul_ps(low, norm));
                            _mm512_storeu_ps(to.add(LANES), _mm512_mul_ps(high, norm));
                            to = to.add(2 * LANES);
                            at += 2 * LANES;
                            continue;
                        }
                        let code = if BITS == 8 {
                            _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.cast()))
                        } else {
                            let there = (1u32 << (2 * BITS)).wrapping_sub(1) as u16;
                            let bytes = _mm512_castsi128_si512(_mm_maskz_loadu_epi8(there, codes.cast()));
                            _mm512_srlv_epi32(_mm512_permutexvar_epi16(words, bytes), shift)
                        };
                        let pair = |i: usize| _mm512_permutex2var_ps(tables[2 * i], code, tables[2 * i + 1]);
                        let bit_set = |bit: i32| _mm512_test_epi32_mask(code, _mm512_set1_epi32(bit));
                        let four = |i: usize| _mm512_mask_blend_ps(bit_set(32), pair(2 * i), pair(2 * i + 1));
                        let level = match BITS {
                            5 => pair(0),
                            6 => four(0),
                            _ => {
                                let eight = |i: usize| _mm512_mask_blend_ps(bit_set(64), four(2 * i), four(2 * i + 1));
                                _mm512_mask_blend_ps(bit_set(128), eight(0), eight(1))
                            }
                        };
                        _mm512_storeu_ps(to, _mm512_mul_ps(level, norm));
                        to = to.add(LANES);
                        at += LANES;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    #[test]
    fn every_half_is_widened() {
        for bits in 0..=u16::MAX {
            let (got, want) = (widened(bits), f16::from_bits(bits).to_f32());
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{bits:x}: {got}, wanted {want}");
        }
    }
}
