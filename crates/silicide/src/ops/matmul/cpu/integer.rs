//! Products of a few activation rows with integer codes: activations as integers of 8 or about 15 bits, one scale for 32.
#![allow(clippy::needless_range_loop, reason = "tiles of registers are indexed by row and panel")]
#![allow(unsafe_op_in_unsafe_fn, reason = "pointers are into buffers whose sizes the callers of these kernels set")]

use std::mem::MaybeUninit;
use std::ops::Range;

use super::pack::{Codes, PackLayout, RECORD, UNIT};
use super::unpack::{self, GroupScales, TABLE};
use super::{Out, Rows};
use crate::device::cpu::simd::{Kernel, QUAD, Simd};

/// Bytes of a unit's activations: eight quads.
const UNIT_BYTES: usize = UNIT / 4 * QUAD;

/// Activation rows as integers.
#[derive(Clone, Copy)]
pub(super) struct Activations {
    pub(super) quads: *const u8,
    /// Of each unit: the scale, then the sums of the first half, of the second half and of all its activations.
    pub(super) params: *const [f32; 4],
    pub(super) units: usize,
    /// Whether the integers need more than 8 bits.
    pub(super) wide: bool,
}

impl Activations {
    /// Bytes that the quads of `rows` rows take, and that their parameters take.
    pub(super) fn bytes(rows: usize, units: usize) -> (usize, usize) {
        (rows * units * UNIT_BYTES, rows * units * size_of::<[f32; 4]>())
    }
}

/// Encodes rows as [`Activations`], whose buffers it fills.
pub(super) struct Encode<'a> {
    pub(super) x: Rows<'a>,
    pub(super) rows: Range<usize>,
    pub(super) to: Activations,
}

impl Kernel for Encode<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let units = self.to.units;
        for row in self.rows {
            let x = self.x.row(row);
            let quads = self.to.quads.cast_mut().add(row * units * UNIT_BYTES);
            let params = self.to.params.cast_mut().add(row * units);
            let (chunks, rest) = x.as_chunks::<UNIT>();
            for (unit, x) in chunks.iter().enumerate() {
                *params.add(unit) = encode::<S>(x, self.to.wide, quads.add(unit * UNIT_BYTES));
            }
            if !rest.is_empty() {
                let mut x = [0.0; UNIT];
                x[..rest.len()].copy_from_slice(rest);
                *params.add(chunks.len()) = encode::<S>(&x, self.to.wide, quads.add(chunks.len() * UNIT_BYTES));
            }
        }
    }
}

#[inline(always)]
unsafe fn encode<S: Simd>(x: &[f32; UNIT], wide: bool, quads: *mut u8) -> [f32; 4] {
    // The largest that two signed bytes hold as 256 * high + low, and that one does.
    let limit = if wide { 32639.0 } else { 127.0 };
    // As integers, the bits of positive numbers are in their order, infinity and NaN last.
    let mut largest = 0;
    for x in x {
        largest = largest.max(x.to_bits() & 0x7fff_ffff);
    }
    let largest = f32::from_bits(largest);
    // A scale below the normal numbers would have no reciprocal; such activations are zero.
    let inverse = if largest > 1e-30 { limit / largest } else { 0.0 };
    // NaN and infinity, which no integer stands for, make the row's outputs NaN.
    let scale = if largest.is_finite() { largest / limit } else { f32::NAN };
    let mut q = [0i32; UNIT];
    if largest.is_finite() {
        for (q, x) in q.iter_mut().zip(x) {
            // SAFETY: the magnitude is at most `limit`, by the choice of `inverse`.
            *q = unsafe { (x * inverse).round_ties_even().to_int_unchecked() };
        }
    }
    for (i, q) in q.as_chunks::<4>().0.iter().enumerate() {
        *quads.add(i * QUAD).cast::<[u8; QUAD]>() = S::encode(*q);
    }
    let sum = |half: &[i32]| half.iter().sum::<i32>();
    let (first, second) = (sum(&q[..UNIT / 2]), sum(&q[UNIT / 2..]));
    [scale, first as f32 * scale, second as f32 * scale, (first + second) as f32 * scale]
}

/// Multiplies activation rows with some panels of a weight of integer codes.
pub(super) struct Product<'a> {
    pub(super) layout: &'a PackLayout,
    pub(super) weight: *const u8,
    pub(super) panels: Range<usize>,
    pub(super) x: Activations,
    pub(super) rows: Range<usize>,
    pub(super) out: Out,
}

impl Kernel for Product<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // Groups of 16 occur with these widths alone.
        let small = self.layout.group < UNIT;
        match self.layout.codes {
            Codes::Bits { bits: 2, .. } if small => self.codes::<S, 2, true>(&[0; 16]),
            Codes::Bits { bits: 3, .. } if small => self.codes::<S, 3, true>(&[0; 16]),
            Codes::Bits { bits: 6, .. } if small => self.codes::<S, 6, true>(&[0; 16]),
            Codes::Table { table, .. } if small => self.codes::<S, TABLE, true>(&table),
            Codes::Bits { bits: 2, .. } => self.codes::<S, 2, false>(&[0; 16]),
            Codes::Bits { bits: 3, .. } => self.codes::<S, 3, false>(&[0; 16]),
            Codes::Bits { bits: 4, .. } => self.codes::<S, 4, false>(&[0; 16]),
            Codes::Bits { bits: 5, .. } => self.codes::<S, 5, false>(&[0; 16]),
            Codes::Bits { bits: 6, .. } => self.codes::<S, 6, false>(&[0; 16]),
            Codes::Bits { .. } => self.codes::<S, 8, false>(&[0; 16]),
            Codes::Table { table, .. } => self.codes::<S, TABLE, false>(&table),
            Codes::F32 | Codes::F16 | Codes::Bf16 | Codes::E4m3 => unreachable!("these codes are no integers"),
        }
    }
}

impl Product<'_> {
    #[inline(always)]
    unsafe fn codes<S: Simd, const KIND: usize, const SMALL: bool>(&self, table: &[u8; 16]) {
        if self.x.wide || !S::BYTE_DOT {
            self.panels::<S, KIND, SMALL, true>(table);
        } else {
            self.panels::<S, KIND, SMALL, false>(table);
        }
    }

    #[inline(always)]
    unsafe fn panels<S: Simd, const KIND: usize, const SMALL: bool, const WIDE: bool>(&self, table: &[u8; 16]) {
        for panel in self.panels.clone() {
            let mut row = self.rows.start;
            while S::BYTE_DOT && row + 4 <= self.rows.end {
                self.block::<S, KIND, SMALL, WIDE, 4>(panel, row, table);
                row += 4;
            }
            while row < self.rows.end {
                self.block::<S, KIND, SMALL, WIDE, 1>(panel, row, table);
                row += 1;
            }
        }
    }

    /// `M` rows from `row` with one panel.
    #[inline(always)]
    unsafe fn block<S: Simd, const KIND: usize, const SMALL: bool, const WIDE: bool, const M: usize>(
        &self,
        panel: usize,
        row: usize,
        table: &[u8; 16],
    ) {
        let panel_at = self.weight.add(panel * self.layout.panel_bytes);
        let mut out = [S::splat(0.0); M];
        // As many groups of 16 as a record has.
        let mut buffer = [const { MaybeUninit::<GroupScales>::uninit() }; 2 * RECORD];
        let x = self.x;
        let per_group = self.layout.group.trailing_zeros();
        for record in 0..self.layout.units.div_ceil(RECORD) {
            let (units, at) = self.layout.record(record);
            let groups = 0..(units.len() * UNIT).div_ceil(self.layout.group);
            unpack::scales::<S>(self.layout, panel_at.add(at), groups, buffer.as_mut_ptr().cast());
            let mut codes = panel_at.add(self.layout.codes_at(units.start));
            for (i, unit) in units.enumerate() {
                let w = unpack::quads::<S, KIND>(codes, table);
                codes = codes.add(self.layout.unit_bytes);
                let scales = buffer.as_ptr().cast::<GroupScales>().add((i * UNIT) >> per_group);
                for m in 0..M {
                    let at = (row + m) * self.layout.units + unit;
                    let quads = x.quads.add(at * UNIT_BYTES);
                    let params = *x.params.add(at);
                    let mut sum = S::sum_zero();
                    for (i, &w) in w.iter().enumerate() {
                        sum = S::dot::<WIDE>(sum, w, quads.add(i * QUAD));
                        if SMALL && i == 3 {
                            out[m] = scaled::<S, WIDE>(out[m], sum, scales, params[0], params[1]);
                            sum = S::sum_zero();
                        }
                    }
                    out[m] = if SMALL {
                        scaled::<S, WIDE>(out[m], sum, scales.add(1), params[0], params[2])
                    } else {
                        scaled::<S, WIDE>(out[m], sum, scales, params[0], params[3])
                    };
                }
            }
        }
        for (m, out) in out.into_iter().enumerate() {
            self.out.store::<S>(row + m, panel, out);
        }
    }
}

/// Adds to `out` the product of one group: `scale * sum + bias * total`.
#[inline(always)]
unsafe fn scaled<S: Simd, const WIDE: bool>(
    out: S::F,
    sum: S::Sum,
    scales: *const GroupScales,
    scale: f32,
    total: f32,
) -> S::F {
    let GroupScales([weight, bias]) = &*scales;
    let weight = S::mul(S::load(weight.as_ptr()), S::splat(scale));
    let out = S::fma(S::sum_to_f32::<WIDE>(sum), weight, out);
    S::fma(S::load(bias.as_ptr()), S::splat(total), out)
}
