//! Products of a few activation rows with integer codes: activations as integers of about 15 bits, one scale a record.
#![allow(clippy::needless_range_loop, reason = "tiles of registers are indexed by row and panel")]
#![allow(unsafe_op_in_unsafe_fn, reason = "pointers are into buffers whose sizes the callers of these kernels set")]

use std::ops::Range;

use super::pack::{BLOCK, Codes, PackLayout, RECORD, UNIT};
use super::unpack::{self, TABLE};
use super::{Out, Rows};
use crate::device::cpu::Level;
use crate::device::cpu::simd::{Kernel, LANES, QUAD, Simd};

/// Bytes of a unit's activations: eight quads.
const UNIT_BYTES: usize = UNIT / 4 * QUAD;

/// Activation rows as integers.
#[derive(Clone, Copy)]
pub(super) struct Activations {
    pub(super) quads: *const u8,
    pub(super) sums: *const Sums,
    /// Of each record.
    pub(super) scales: *const f32,
    pub(super) units: usize,
}

/// What the sums of a unit's activations come to: in groups of 16 those of its halves, else all of them and nothing.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Sums {
    /// Times what is taken off codes: a group's integer sum begins with it.
    zeros: [i32; 2],
    /// For biases.
    totals: [f32; 2],
}

impl Activations {
    /// Bytes that the quads of `rows` rows take, and that their sums and their scales take.
    pub(super) fn bytes(rows: usize, units: usize) -> [usize; 3] {
        [rows * units * UNIT_BYTES, rows * units * size_of::<Sums>(), rows * units.div_ceil(RECORD) * size_of::<f32>()]
    }
}

/// Whether products with two layouts take activations that are encoded alike.
pub(super) fn alike(a: &PackLayout, b: &PackLayout) -> bool {
    (a.group < UNIT, a.zero()) == (b.group < UNIT, b.zero())
}

/// Encodes rows as [`Activations`], whose buffers it fills.
pub(super) struct Encode<'a> {
    pub(super) layout: &'a PackLayout,
    pub(super) x: Rows<'a>,
    pub(super) rows: Range<usize>,
    pub(super) to: Activations,
}

impl Kernel for Encode<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (units, records) = (self.to.units, self.to.units.div_ceil(RECORD));
        for row in self.rows.clone() {
            let quads = self.to.quads.cast_mut().add(row * units * UNIT_BYTES);
            let sums = self.to.sums.cast_mut().add(row * units);
            let scales = self.to.scales.cast_mut().add(row * records);
            for (record, x) in self.x.row(row).chunks(BLOCK).enumerate() {
                let unit = record * RECORD;
                *scales.add(record) = self.encode::<S>(x, quads.add(unit * UNIT_BYTES), sums.add(unit));
            }
        }
    }
}

impl Encode<'_> {
    /// Encodes a record's elements; gives their scale.
    #[inline(always)]
    unsafe fn encode<S: Simd>(&self, x: &[f32], quads: *mut u8, sums: *mut Sums) -> f32 {
        // The largest that two signed bytes hold as 256 * high + low.
        const LIMIT: f32 = 32639.0;
        let mut padded = [0.0; BLOCK];
        padded[..x.len()].copy_from_slice(x);
        // As integers, the bits of positive numbers are in their order, infinity and NaN last.
        let mut largest = 0;
        for x in padded {
            largest = largest.max(x.to_bits() & 0x7fff_ffff);
        }
        let largest = f32::from_bits(largest);
        // A scale below the normal numbers would have no reciprocal; such activations are zero.
        let inverse = if largest > 1e-30 { LIMIT / largest } else { 0.0 };
        let mut q = [0i32; BLOCK];
        if largest.is_finite() {
            for (q, x) in q.iter_mut().zip(padded) {
                // SAFETY: the magnitude is at most `LIMIT`, by the choice of `inverse`.
                *q = unsafe { (x * inverse).round_ties_even().to_int_unchecked() };
            }
        }
        let (small, zero) = (self.layout.group < UNIT, self.layout.zero());
        for (unit, q) in q.as_chunks::<UNIT>().0[..x.len().div_ceil(UNIT)].iter().enumerate() {
            for (half, q) in q.as_chunks::<LANES>().0.iter().enumerate() {
                S::encode(q, quads.add(unit * UNIT_BYTES + half * UNIT_BYTES / 2).cast());
            }
            let sum = |half: &[i32]| half.iter().sum::<i32>();
            let (first, second) = (sum(&q[..UNIT / 2]), sum(&q[UNIT / 2..]));
            let both = if small { [first, second] } else { [first + second, 0] };
            *sums.add(unit) = Sums { zeros: both.map(|x| -zero * x), totals: both.map(|x| x as f32) };
        }
        // NaN and infinity, which no integer stands for, make the row's outputs NaN.
        if largest.is_finite() { largest / LIMIT } else { f32::NAN }
    }
}

/// Multiplies activation rows with some panels of a weight of integer codes.
pub(super) struct Product<'a> {
    pub(super) layout: &'a PackLayout,
    pub(super) weight: *const u8,
    pub(super) panels: Range<usize>,
    pub(super) x: Activations,
    pub(super) rows: Range<usize>,
    pub(super) out: Out,
    pub(super) level: Level,
}

impl Kernel for Product<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // Groups of 16 occur with these widths alone.
        let small = self.layout.group < UNIT;
        match self.layout.codes {
            Codes::Bits { bits: 2, .. } if small => self.panels::<S, 2, true>(&[0; 16]),
            Codes::Bits { bits: 3, .. } if small => self.panels::<S, 3, true>(&[0; 16]),
            Codes::Bits { bits: 6, .. } if small => self.panels::<S, 6, true>(&[0; 16]),
            Codes::Table { table, .. } if small => self.panels::<S, TABLE, true>(&table),
            Codes::Bits { bits: 2, .. } => self.panels::<S, 2, false>(&[0; 16]),
            Codes::Bits { bits: 3, .. } => self.panels::<S, 3, false>(&[0; 16]),
            Codes::Bits { bits: 4, .. } => self.panels::<S, 4, false>(&[0; 16]),
            Codes::Bits { bits: 5, .. } => self.panels::<S, 5, false>(&[0; 16]),
            Codes::Bits { bits: 6, .. } => self.panels::<S, 6, false>(&[0; 16]),
            Codes::Bits { .. } => self.panels::<S, 8, false>(&[0; 16]),
            Codes::Table { table, .. } => self.panels::<S, TABLE, false>(&table),
            Codes::F32 | Codes::F16 | Codes::Bf16 | Codes::E4m3 => unreachable!("these codes are no integers"),
        }
    }
}

impl Product<'_> {
    #[inline(always)]
    unsafe fn panels<S: Simd, const KIND: usize, const SMALL: bool>(&self, table: &[u8; 16]) {
        let mut rest = self.panels.clone();
        // Intel's processors read two stretches of memory sooner than one as long; AMD's do where codes are wide.
        let side_by_side = self.level == Level::Amx || self.level >= Level::Avx512 && matches!(KIND, 6 | 8);
        if side_by_side && self.rows.len() == 1 && rest.len() > 1 {
            let apart = rest.len() / 2;
            let second = rest.start + apart;
            self.ask_first::<S>(rest.start);
            self.ask_first::<S>(second);
            for panel in rest.start..second {
                self.block::<S, KIND, SMALL, 1, 2>([panel, panel + apart], self.rows.start, table);
            }
            rest.start = second + apart;
        } else {
            self.ask_first::<S>(rest.start);
        }
        for panel in rest {
            let mut row = self.rows.start;
            while S::BYTE_DOT && row + 4 <= self.rows.end {
                self.block::<S, KIND, SMALL, 4, 1>([panel], row, table);
                row += 4;
            }
            match self.rows.end - row {
                3 if S::BYTE_DOT => self.block::<S, KIND, SMALL, 3, 1>([panel], row, table),
                2 if S::BYTE_DOT => self.block::<S, KIND, SMALL, 2, 1>([panel], row, table),
                _ => {
                    while row < self.rows.end {
                        self.block::<S, KIND, SMALL, 1, 1>([panel], row, table);
                        row += 1;
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn ask_first<S: Simd>(&self, panel: usize) {
        unpack::ask_first::<S>(self.level, self.weight.add(panel * self.layout.panel_bytes));
    }

    /// `M` rows from `row` with `P` panels.
    #[inline(always)]
    unsafe fn block<S: Simd, const KIND: usize, const SMALL: bool, const M: usize, const P: usize>(
        &self,
        panels: [usize; P],
        row: usize,
        table: &[u8; 16],
    ) {
        let x = self.x;
        let records = x.units.div_ceil(RECORD);
        let unit_bytes = unpack::unit_bytes::<KIND>();
        // A group is some units, or half of one.
        let group_units = (self.layout.group / UNIT).max(1);
        let halves = if SMALL { 2 } else { 1 };
        let width = UNIT / 4 / halves;
        let mut at = panels.map(|panel| self.weight.add(panel * self.layout.panel_bytes));
        let mut out = [[S::splat(0.0); M]; P];
        // As many groups of 16 as a record has.
        let mut scales = [[(S::splat(0.0), S::splat(0.0)); 2 * RECORD]; P];
        for record in 0..records {
            let first = record * RECORD;
            let units = RECORD.min(x.units - first);
            let header = self.layout.header(units);
            let codes = at.map(|at| at.add(header));
            // All of a record's scales come first, so that memory is read from front to back.
            for p in 0..P {
                unpack::ask_ahead::<S>(self.level, at[p], header);
                for group in 0..units.div_ceil(group_units) * halves {
                    let (scale, bias) = unpack::scale::<S>(self.layout, at[p], group);
                    scales[p][group] = (scale, bias.unwrap_or(S::splat(0.0)));
                }
            }
            let mut products = [[S::splat(0.0); M]; P];
            let (mut unit, mut group) = (0, 0);
            while unit < units {
                let end = units.min(unit + group_units);
                for half in 0..halves {
                    let mut sums = [[S::sum_zero(); M]; P];
                    for unit in unit..end {
                        for p in 0..P {
                            let codes = codes[p].add(unit * unit_bytes);
                            if half == 0 {
                                unpack::ask_ahead::<S>(self.level, codes, unit_bytes);
                            }
                            let w = unpack::quads::<S, KIND>(codes, table);
                            for m in 0..M {
                                let at = (row + m) * x.units + first + unit;
                                let Sums { zeros, totals } = &*x.sums.add(at);
                                let quads = x.quads.add(at * UNIT_BYTES);
                                let mut sum = S::sum_add(sums[p][m], zeros[half]);
                                for i in half * width..(half + 1) * width {
                                    sum = S::dot(sum, w[i], quads.add(i * QUAD));
                                }
                                sums[p][m] = sum;
                                let bias = scales[p][group].1;
                                products[p][m] = S::fma(bias, S::splat(totals[half]), products[p][m]);
                            }
                        }
                    }
                    for p in 0..P {
                        for m in 0..M {
                            let scale = scales[p][group].0;
                            products[p][m] = S::fma(S::sum_to_f32(sums[p][m]), scale, products[p][m]);
                        }
                    }
                    group += 1;
                }
                unit = end;
            }
            for p in 0..P {
                for m in 0..M {
                    let scale = S::splat(*x.scales.add((row + m) * records + record));
                    out[p][m] = S::fma(products[p][m], scale, out[p][m]);
                }
                at[p] = codes[p].add(units * unit_bytes);
            }
        }
        for p in 0..P {
            for m in 0..M {
                self.out.store::<S>(row + m, panels[p], out[p][m]);
            }
        }
    }
}
