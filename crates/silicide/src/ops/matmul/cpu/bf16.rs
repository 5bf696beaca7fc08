//! Products of many activation rows in bf16 with sums in `f32`, by AVX512-BF16 or by AMX.
#![allow(clippy::needless_range_loop, reason = "tiles of registers are indexed by row and panel")]
#![allow(unsafe_op_in_unsafe_fn, reason = "pointers are into buffers whose sizes the callers of these kernels set")]

use std::arch::x86_64::*;
use std::ops::Range;

use super::pack::{Codes, PackLayout, UNIT};
use super::{Out, Rows, unpack};
use crate::device::cpu::Level;
use crate::device::cpu::simd::avx512::Avx512;
use crate::device::cpu::simd::{LANES, Simd};

/// Panels that are dequantised together.
pub(super) const PANELS: usize = 2;
/// Activation rows are padded to a multiple of this.
pub(super) const ROWS: usize = 32;

/// Rounds rows to bf16 at `to`, `units` units a row, zeros behind the last element and in rows past the last.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) unsafe fn round_rows(x: Rows<'_>, rows: Range<usize>, units: usize, to: *mut u16) {
    for row in rows {
        let to = to.add(row * units * UNIT);
        if row >= x.rows {
            to.write_bytes(0, units * UNIT);
            continue;
        }
        let x = x.row(row);
        let (chunks, rest) = x.as_chunks::<LANES>();
        for (i, x) in chunks.iter().enumerate() {
            store_bf16(to.add(i * LANES), x);
        }
        let mut at = chunks.len() * LANES;
        if !rest.is_empty() {
            let mut x = [0.0; LANES];
            x[..rest.len()].copy_from_slice(rest);
            store_bf16(to.add(at), &x);
            at += LANES;
        }
        to.add(at).write_bytes(0, units * UNIT - at);
    }
}

#[target_feature(enable = "avx512f,avx512bf16,avx512vl")]
unsafe fn store_bf16(to: *mut u16, x: &[f32; LANES]) {
    to.cast::<__m256bh>().write_unaligned(_mm512_cvtneps_pbh(_mm512_loadu_ps(x.as_ptr())));
}

/// Multiplies rounded activation rows with up to [`PANELS`] panels of a weight.
pub(super) struct Product<'a> {
    pub(super) layout: &'a PackLayout,
    pub(super) weight: *const u8,
    pub(super) panels: Range<usize>,
    /// From [`round_rows`].
    pub(super) x: *const u16,
    pub(super) rows: Range<usize>,
    pub(super) out: Out,
    /// Room for [`PANELS`] panels of `step` units in bf16.
    pub(super) scratch: *mut u16,
    pub(super) step: usize,
    pub(super) level: Level,
}

impl Product<'_> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
    pub(super) unsafe fn run(&self) {
        let size = self.step * UNIT * LANES;
        let mut first = 0;
        while first < self.layout.units {
            let count = self.step.min(self.layout.units - first);
            let mut weight = [std::ptr::null::<u16>(); PANELS];
            for (i, panel) in self.panels.clone().enumerate() {
                let from = self.weight.add(panel * self.layout.panel_bytes);
                if self.layout.codes == Codes::Bf16 {
                    weight[i] = from.cast::<u16>().add(first * UNIT * LANES);
                } else {
                    let to = self.scratch.add(i * size);
                    for unit in 0..count {
                        let codes = from.add(self.layout.codes_at(first + unit));
                        unpack::ask_ahead::<Avx512>(self.level, codes, self.layout.unit_bytes);
                        dequantize_unit(self.layout, from, first + unit, to.add(unit * UNIT * LANES));
                    }
                    weight[i] = to;
                }
            }
            let units = first..first + count;
            match (self.level == Level::Amx, self.panels.len()) {
                (true, PANELS) => self.amx_rows::<PANELS>(units, weight),
                (true, _) => self.amx_rows::<1>(units, [weight[0]]),
                (false, PANELS) => self.rows::<PANELS>(units, weight),
                (false, _) => self.rows::<1>(units, [weight[0]]),
            }
            first += count;
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn rows<const P: usize>(&self, units: Range<usize>, weight: [*const u16; P]) {
        let mut row = self.rows.start;
        while row < self.rows.end {
            // What twelve leave is shared out, since a tile of one or two rows takes as long as one of six.
            let rest = self.rows.end - row;
            let rows = if rest > 24 { 12 } else { rest.div_ceil(rest.div_ceil(12)) };
            match rows {
                1 => self.tile::<1, P>(row, &units, weight),
                2 => self.tile::<2, P>(row, &units, weight),
                3 => self.tile::<3, P>(row, &units, weight),
                4 => self.tile::<4, P>(row, &units, weight),
                5 => self.tile::<5, P>(row, &units, weight),
                6 => self.tile::<6, P>(row, &units, weight),
                7 => self.tile::<7, P>(row, &units, weight),
                8 => self.tile::<8, P>(row, &units, weight),
                9 => self.tile::<9, P>(row, &units, weight),
                10 => self.tile::<10, P>(row, &units, weight),
                11 => self.tile::<11, P>(row, &units, weight),
                _ => self.tile::<12, P>(row, &units, weight),
            }
            row += rows;
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn tile<const M: usize, const P: usize>(&self, row: usize, units: &Range<usize>, weight: [*const u16; P]) {
        let panel = self.panels.start;
        let mut sums = [[_mm512_setzero_ps(); P]; M];
        if units.start > 0 {
            for m in 0..M {
                for p in 0..P {
                    sums[m][p] = self.out.load::<Avx512>(row + m, panel + p);
                }
            }
        }
        let stride = self.layout.units * UNIT;
        let x = self.x.add(row * stride + units.start * UNIT);
        for pair in 0..units.len() * UNIT / 2 {
            let mut w = [_mm512_setzero_si512(); P];
            for p in 0..P {
                w[p] = _mm512_loadu_si512(weight[p].add(pair * LANES * 2).cast());
            }
            for m in 0..M {
                let x = x.add(m * stride + pair * 2).cast::<i32>().read_unaligned();
                let x = as_bf16(_mm512_set1_epi32(x));
                for p in 0..P {
                    sums[m][p] = _mm512_dpbf16_ps(sums[m][p], x, as_bf16(w[p]));
                }
            }
        }
        for m in 0..M {
            for p in 0..P {
                self.out.store::<Avx512>(row + m, panel + p, sums[m][p]);
            }
        }
    }
}

/// Writes one unit of a panel as bf16, `[k / 2][row][2]`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
unsafe fn dequantize_unit(layout: &PackLayout, panel: *const u8, unit: usize, to: *mut u16) {
    #[repr(align(64))]
    struct Wide([[f32; LANES]; UNIT]);
    let mut wide = Wide([[0.0; LANES]; UNIT]);
    unpack::dequantize::<Avx512>(layout, panel, unit, 1, wide.0.as_mut_ptr().cast());
    let interleave = {
        let mut index = [0u16; 32];
        for (i, index) in index.iter_mut().enumerate() {
            *index = (i / 2 + i % 2 * LANES) as u16;
        }
        _mm512_loadu_si512(index.as_ptr().cast())
    };
    for (i, [even, odd]) in wide.0.as_chunks::<2>().0.iter().enumerate() {
        let pair = _mm512_cvtne2ps_pbh(Avx512::load(odd.as_ptr()), Avx512::load(even.as_ptr()));
        let pair = _mm512_permutexvar_epi16(interleave, std::mem::transmute::<__m512bh, __m512i>(pair));
        _mm512_storeu_si512(to.add(i * LANES * 2).cast(), pair);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn as_bf16(x: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes of plain bits.
    unsafe { std::mem::transmute(x) }
}
