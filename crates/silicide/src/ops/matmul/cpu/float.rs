//! Products in `f32`, for weights of any kind: panels are dequantised a stretch at a time and multiplied from the cache.
//!
//! An output is summed in the order of `k` whatever the tile it falls in and however `k` is cut, because sums that
//! pause between stretches rest in the output as `f32`. So a row's result does not depend on the other rows.
#![allow(clippy::needless_range_loop, reason = "tiles of registers are indexed by row and panel")]
#![allow(unsafe_op_in_unsafe_fn, reason = "pointers are into buffers whose sizes the callers of these kernels set")]

use std::ops::Range;

use super::pack::{Codes, PackLayout, UNIT};
use super::{Out, Rows, unpack};
use crate::device::cpu::Level;
use crate::device::cpu::simd::{Kernel, LANES, Simd};

/// Panels that are dequantised together.
pub(super) const PANELS: usize = 2;

/// Multiplies activation rows with up to [`PANELS`] panels of a weight.
pub(super) struct Product<'a> {
    pub(super) layout: &'a PackLayout,
    pub(super) weight: *const u8,
    pub(super) panels: Range<usize>,
    pub(super) x: Rows<'a>,
    pub(super) rows: Range<usize>,
    pub(super) out: Out,
    /// Room for [`PANELS`] panels of `step` units.
    pub(super) scratch: *mut f32,
    pub(super) step: usize,
    pub(super) level: Level,
}

impl Kernel for Product<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let size = self.step * UNIT * LANES;
        let mut first = 0;
        while first < self.layout.units {
            let count = self.step.min(self.layout.units - first);
            let mut weight = [std::ptr::null::<f32>(); PANELS];
            for (i, panel) in self.panels.clone().enumerate() {
                let from = self.weight.add(panel * self.layout.panel_bytes);
                let (start, last) = (self.layout.codes_at(first), self.layout.codes_at(first + count - 1));
                unpack::ask_ahead::<S>(self.level, from.add(start), last - start + self.layout.unit_bytes);
                if self.layout.codes == Codes::F32 {
                    weight[i] = from.cast::<f32>().add(first * UNIT * LANES);
                } else {
                    let to = self.scratch.add(i * size);
                    unpack::dequantize::<S>(self.layout, from, first, count, to);
                    weight[i] = to;
                }
            }
            let k = first * UNIT..self.layout.k.min((first + count) * UNIT);
            if self.panels.len() == PANELS {
                self.rows::<S, PANELS>(k, weight);
            } else {
                self.rows::<S, 1>(k, [weight[0]]);
            }
            first += count;
        }
    }
}

impl Product<'_> {
    #[inline(always)]
    unsafe fn rows<S: Simd, const P: usize>(&self, k: Range<usize>, weight: [*const f32; P]) {
        let mut row = self.rows.start;
        match S::TILE {
            (12, _) => {
                self.tiles::<S, 12, P>(&mut row, &k, weight);
                self.tiles::<S, 4, P>(&mut row, &k, weight);
            }
            (6, _) => self.columns::<S, 6, P>(&mut row, &k, weight),
            _ => self.columns::<S, 2, P>(&mut row, &k, weight),
        }
        self.tiles::<S, 1, P>(&mut row, &k, weight);
    }

    /// Tiles of one panel, where the registers hold no more.
    #[inline(always)]
    unsafe fn columns<S: Simd, const M: usize, const P: usize>(
        &self,
        row: &mut usize,
        k: &Range<usize>,
        weight: [*const f32; P],
    ) {
        while *row + M <= self.rows.end {
            for (i, weight) in weight.into_iter().enumerate() {
                self.tile::<S, M, 1>(*row, self.panels.start + i, k, [weight]);
            }
            *row += M;
        }
    }

    #[inline(always)]
    unsafe fn tiles<S: Simd, const M: usize, const P: usize>(
        &self,
        row: &mut usize,
        k: &Range<usize>,
        weight: [*const f32; P],
    ) {
        while *row + M <= self.rows.end {
            self.tile::<S, M, P>(*row, self.panels.start, k, weight);
            *row += M;
        }
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const P: usize>(
        &self,
        row: usize,
        panel: usize,
        k: &Range<usize>,
        weight: [*const f32; P],
    ) {
        let mut sums = [[S::splat(0.0); P]; M];
        if k.start > 0 {
            for m in 0..M {
                for p in 0..P {
                    sums[m][p] = self.out.load::<S>(row + m, panel + p);
                }
            }
        }
        let x = self.x.row(row).as_ptr();
        for (i, k) in k.clone().enumerate() {
            let mut w = [S::splat(0.0); P];
            for p in 0..P {
                w[p] = S::load(weight[p].add(i * LANES));
            }
            for m in 0..M {
                let x = S::splat(*x.add(m * self.x.stride() + k));
                for p in 0..P {
                    sums[m][p] = S::fma(x, w[p], sums[m][p]);
                }
            }
        }
        for m in 0..M {
            for p in 0..P {
                self.out.store::<S>(row + m, panel + p, sums[m][p]);
            }
        }
    }
}

/// Multiplies a few activation rows with panels of 16-bit floats, which registers widen: scratch memory would take longer than
/// the weight does to come. Sums are those of [`Product`].
pub(super) struct Direct<'a> {
    pub(super) layout: &'a PackLayout,
    pub(super) weight: *const u8,
    pub(super) panels: Range<usize>,
    pub(super) x: Rows<'a>,
    pub(super) rows: Range<usize>,
    pub(super) out: Out,
    pub(super) level: Level,
}

/// The most rows that [`Direct`] is for.
pub(super) const DIRECT_ROWS: usize = 3;

impl Kernel for Direct<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        match self.layout.codes {
            Codes::Bf16 => self.panels::<S, true>(),
            Codes::F16 => self.panels::<S, false>(),
            _ => unreachable!("these codes are no 16-bit floats"),
        }
    }
}

impl Direct<'_> {
    #[inline(always)]
    unsafe fn panels<S: Simd, const BF16: bool>(&self) {
        let mut panel = self.panels.start;
        while panel + 2 <= self.panels.end {
            self.rows::<S, BF16, 2>(panel);
            panel += 2;
        }
        if panel < self.panels.end {
            self.rows::<S, BF16, 1>(panel);
        }
    }

    #[inline(always)]
    unsafe fn rows<S: Simd, const BF16: bool, const P: usize>(&self, panel: usize) {
        let mut row = self.rows.start;
        while S::TILE.0 == 12 && row + 3 <= self.rows.end {
            self.tile::<S, BF16, 3, P>(row, panel);
            row += 3;
        }
        while row + 2 <= self.rows.end {
            self.tile::<S, BF16, 2, P>(row, panel);
            row += 2;
        }
        if row < self.rows.end {
            self.tile::<S, BF16, 1, P>(row, panel);
        }
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const BF16: bool, const M: usize, const P: usize>(&self, row: usize, panel: usize) {
        const PAIR: usize = 4 * LANES;
        let mut from = [self.weight; P];
        for p in 0..P {
            from[p] = self.weight.add((panel + p) * self.layout.panel_bytes);
            unpack::ask_first::<S>(self.level, from[p]);
        }
        let mut sums = [[S::splat(0.0); P]; M];
        let (x, k) = (self.x.row(row).as_ptr(), self.layout.k);
        for pair in 0..k / 2 {
            let mut w = [[S::splat(0.0); 2]; P];
            for p in 0..P {
                let from = from[p].add(pair * PAIR);
                unpack::ask_ahead::<S>(self.level, from, PAIR);
                w[p] = unpack::pair::<S, BF16>(from);
            }
            for m in 0..M {
                for i in 0..2 {
                    let x = S::splat(*x.add(m * self.x.stride() + 2 * pair + i));
                    for p in 0..P {
                        sums[m][p] = S::fma(x, w[p][i], sums[m][p]);
                    }
                }
            }
        }
        if k % 2 == 1 {
            for m in 0..M {
                let x = S::splat(*x.add(m * self.x.stride() + k - 1));
                for p in 0..P {
                    let [w, _] = unpack::pair::<S, BF16>(from[p].add(k / 2 * PAIR));
                    sums[m][p] = S::fma(x, w, sums[m][p]);
                }
            }
        }
        for m in 0..M {
            for p in 0..P {
                self.out.store::<S>(row + m, panel + p, sums[m][p]);
            }
        }
    }
}

/// Dequantises one row of a packed weight.
pub(super) struct Unpack<'a> {
    pub(super) layout: &'a PackLayout,
    pub(super) weight: *const u8,
    pub(super) row: usize,
    pub(super) out: &'a mut [f32],
}

impl Kernel for Unpack<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let panel = self.weight.add(self.row / LANES * self.layout.panel_bytes);
        let mut unit = [[0f32; LANES]; UNIT];
        for (i, out) in self.out.chunks_mut(UNIT).enumerate() {
            unpack::dequantize::<S>(self.layout, panel, i, 1, unit.as_mut_ptr().cast());
            for (out, lanes) in out.iter_mut().zip(&unit) {
                *out = lanes[self.row % LANES];
            }
        }
    }
}
