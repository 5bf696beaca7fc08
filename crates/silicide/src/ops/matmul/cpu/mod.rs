//! Products with packed weights on the CPU.
//!
//! A weight is packed once ([`PackLayout`]). Then [`matmul`] picks, by the number of rows and the instructions at hand:
//!
//! | rows | weight | reduced precision | `f32` |
//! |---|---|---|---|
//! | few | integer codes | `integer`: activations as integers | `float` |
//! | few | f16, bf16, mxfp8 | `float` | `float` |
//! | many | any but f32 | `bf16` where there are such instructions, else `float` | `float` |
//! | any | f32 | `float` | `float` |

use std::marker::PhantomData;
use std::ops::Range;

use crate::device::cpu::{Features, Level, Pool};
use crate::{Error, Result};

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod bf16;
mod float;
mod integer;
mod pack;
#[cfg(test)]
mod tests;
mod unpack;

use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::simd::{self, LANES, Simd};
use integer::Activations;
use pack::{Codes, UNIT};

#[cfg(target_arch = "x86_64")]
pub(super) use amx::tile_products;
pub use pack::{DenseView, PackLayout};

/// How exactly a product is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// `f32` throughout. A row's result is the same bits whatever rows stand beside it.
    F32,
    /// On the CPU activations rounded: for few rows to integers of about 15 bits, 256 of which share a scale, for many to
    /// bf16. On an NVIDIA GPU the elements of the weight rounded, for many rows of f16 or bf16 to their type. Sums are `f32`.
    Reduced,
}

/// The most rows that are multiplied with a weight's codes as they are; with more, dequantising it to bf16 pays.
/// Measured where AVX-512 has products of bytes; elsewhere as they were found on processors with AMX.
fn few_rows(layout: &PackLayout, level: Level) -> usize {
    if !matches!(level, Level::Avx512 | Level::Avx512Bf16) {
        return 8;
    }
    match layout.codes {
        // A scale for each half of a unit costs as much as the half's products.
        Codes::Bits { .. } if layout.group < UNIT => 8,
        Codes::Bits { .. } => 24,
        Codes::Table { .. } => 16,
        Codes::Bf16 | Codes::F16 => float::DIRECT_ROWS,
        Codes::E4m3 | Codes::F32 => 8,
    }
}

/// Rows that a thread encodes sooner than another is woken.
const FEW_ROWS: usize = 8;

/// `rows` rows of `f32`, possibly apart.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    data: &'a [f32],
    rows: usize,
    width: usize,
    stride: usize,
}

impl<'a> Rows<'a> {
    /// Rows of `width` elements that begin every `stride` elements of `data`.
    ///
    /// # Errors
    /// [`Error::Argument`] where the last row would end past `data`.
    pub fn new(data: &'a [f32], rows: usize, width: usize, stride: usize) -> Result<Rows<'a>> {
        // Empty rows lie anywhere.
        let stride = if width == 0 { 0 } else { stride };
        check_rows(data.len(), rows, width, stride)?;
        Ok(Rows { data, rows, width, stride })
    }

    fn row(&self, row: usize) -> &'a [f32] {
        &self.data[row * self.stride..][..self.width]
    }

    fn stride(&self) -> usize {
        self.stride
    }
}

/// Room for `rows` rows of `f32`, possibly apart.
#[derive(Debug)]
pub struct RowsMut<'a> {
    data: *mut f32,
    rows: usize,
    width: usize,
    stride: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: a borrow of numbers; who writes through the pointer says why that is sound.
unsafe impl Sync for RowsMut<'_> {}

impl<'a> RowsMut<'a> {
    /// As [`Rows::new`]; rows may not overlap.
    ///
    /// # Errors
    /// [`Error::Argument`] where the last row would end past `data`, or rows overlap.
    pub fn new(data: &'a mut [f32], rows: usize, width: usize, stride: usize) -> Result<RowsMut<'a>> {
        let stride = if width == 0 { 0 } else { stride };
        check_rows(data.len(), rows, width, stride)?;
        if rows > 1 && stride < width {
            return Err(Error::argument("matmul", format!("output rows of {width} overlap: stride {stride}")));
        }
        Ok(RowsMut { data: data.as_mut_ptr(), rows, width, stride, borrow: PhantomData })
    }

    /// Empty sums, which no kernel stores.
    fn clear(&mut self) {
        for row in 0..self.rows {
            // SAFETY: the rows are inside the borrow, as was checked.
            unsafe { self.data.add(row * self.stride).write_bytes(0, self.width) };
        }
    }
}

fn check_rows(len: usize, rows: usize, width: usize, stride: usize) -> Result<()> {
    let end = rows.checked_sub(1).map_or(Some(0), |last| last.checked_mul(stride)?.checked_add(width));
    if end.is_none_or(|end| end > len) {
        let message = format!("{rows} rows of {width} every {stride} elements do not fit in {len}");
        return Err(Error::argument("matmul", message));
    }
    Ok(())
}

/// A packed weight, the activations it is multiplied with, and room for the product.
#[derive(Debug)]
pub struct Factor<'a> {
    /// How `weight` is packed.
    pub layout: &'a PackLayout,
    /// The packed weight: `[n, k]`.
    pub weight: &'a [u8],
    /// The rows of the activations.
    pub rows: Range<usize>,
    /// As many rows, of `n`.
    pub out: RowsMut<'a>,
}

/// `out = x * weight^T` for each of some factors, of its rows of `x`: `x` is `[m, k]`.
///
/// With [`Precision::Reduced`] a NaN or infinity among a row's activations makes all of the row's outputs NaN where the
/// activations become integers.
///
/// # Errors
/// [`Error::Argument`] where shapes differ, or a weight has not its layout's length.
pub fn matmul(
    pool: &Pool,
    features: Features,
    precision: Precision,
    x: Rows<'_>,
    factors: &mut [Factor<'_>],
) -> Result<()> {
    let fail = |message| Err(Error::argument("matmul", message));
    for Factor { layout, weight, rows, out } in &mut *factors {
        if weight.len() != layout.bytes() {
            return fail(format!("packed weight has {} bytes, wanted {}", weight.len(), layout.bytes()));
        }
        if x.width != layout.k {
            return fail(format!("activations have {} columns, wanted the weight's {}", x.width, layout.k));
        }
        if rows.start > rows.end || rows.end > x.rows {
            return fail(format!("rows {rows:?} of {} activations", x.rows));
        }
        if (out.rows, out.width) != (rows.len(), layout.n) {
            return fail(format!("output is [{}, {}], wanted [{}, {}]", out.rows, out.width, rows.len(), layout.n));
        }
        if layout.k == 0 {
            out.clear();
        }
    }
    let method = |factor: &Factor| Method::of(factor.layout, features, precision, factor.rows.len());
    for factors in factors.chunk_by(|a, b| method(a) == method(b)) {
        let products = Call { pool, features, x, factors };
        match method(&factors[0]) {
            Method::Integer => products.integer(),
            #[cfg(target_arch = "x86_64")]
            Method::Bf16 => products.bf16(),
            _ => products.float(),
        }
    }
    Ok(())
}

/// The way in which a product is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// Codes times activations, both integers.
    Integer,
    /// Weights and activations as bf16.
    Bf16,
    /// Weights as f32.
    Float,
}

impl Method {
    pub(crate) fn of(layout: &PackLayout, features: Features, precision: Precision, rows: usize) -> Method {
        let few = rows <= few_rows(layout, features.level());
        let integers = matches!(layout.codes, Codes::Bits { .. } | Codes::Table { .. });
        let bf16 = layout.codes != Codes::F32 && cfg!(target_arch = "x86_64") && features.level() >= Level::Avx512Bf16;
        match precision {
            Precision::Reduced if integers && few => Method::Integer,
            Precision::Reduced if bf16 && !few => Method::Bf16,
            _ => Method::Float,
        }
    }

    /// What `explain` says of it.
    pub(crate) fn reason(self, precision: Precision, rows: usize) -> String {
        match (self, precision) {
            (Method::Integer, _) => format!("integers, since {rows} rows are few"),
            (Method::Bf16, _) => format!("bf16, since {rows} rows repay dequantising"),
            (Method::Float, Precision::F32) => "f32, as asked".into(),
            (Method::Float, _) => "f32: no faster way for this weight, these rows and this processor".into(),
        }
    }
}

/// Dequantises row `row` of a packed weight, as an embedding that shares its weight with the output layer needs.
///
/// # Errors
/// [`Error::Argument`] where there is no such row, or a slice has not the layout's length.
pub fn unpack_row(features: Features, layout: &PackLayout, weight: &[u8], row: usize, out: &mut [f32]) -> Result<()> {
    let fail = |message| Err(Error::argument("unpack", message));
    if weight.len() != layout.bytes() {
        return fail(format!("packed weight has {} bytes, wanted {}", weight.len(), layout.bytes()));
    }
    if row >= layout.n || out.len() != layout.k {
        return fail(format!("row {row} of {} into {} elements, wanted {}", layout.n, out.len(), layout.k));
    }
    // SAFETY: row and lengths were checked against the layout.
    unsafe { simd::run(features, float::Unpack { layout, weight: weight.as_ptr(), row, out }) };
    Ok(())
}

/// Where a product goes. Tasks write disjoint columns, and [`matmul`] keeps the borrow until all have ended.
#[derive(Clone, Copy)]
struct Out {
    data: *mut f32,
    /// The row of the activations whose sums come first.
    first: usize,
    stride: usize,
    n: usize,
}

impl Out {
    fn new(factor: &Factor) -> Out {
        Out { data: factor.out.data, first: factor.rows.start, stride: factor.out.stride, n: factor.layout.n }
    }

    /// The sums of a panel's rows; those past the last are zero.
    ///
    /// # Safety
    /// As for [`Simd`]; the row and the panel are the product's.
    #[inline(always)]
    unsafe fn load<S: Simd>(self, row: usize, panel: usize) -> S::F {
        let lanes = LANES.min(self.n - panel * LANES);
        // SAFETY: `lanes` columns from the panel's first are inside the row.
        unsafe {
            let from = self.data.add((row - self.first) * self.stride + panel * LANES);
            if lanes == LANES {
                return S::load(from);
            }
            let mut all = [0.0; LANES];
            all.as_mut_ptr().copy_from_nonoverlapping(from, lanes);
            S::load(all.as_ptr())
        }
    }

    /// Stores the sums of a panel's rows, those past the last left out.
    ///
    /// # Safety
    /// As for [`load`](Out::load).
    #[inline(always)]
    unsafe fn store<S: Simd>(self, row: usize, panel: usize, x: S::F) {
        let lanes = LANES.min(self.n - panel * LANES);
        // SAFETY: `lanes` columns from the panel's first are inside the row.
        unsafe {
            let to = self.data.add((row - self.first) * self.stride + panel * LANES);
            if lanes == LANES {
                return S::store(to, x);
            }
            let mut all = [0.0; LANES];
            S::store(all.as_mut_ptr(), x);
            to.copy_from_nonoverlapping(all.as_ptr(), lanes);
        }
    }
}

/// Lets tasks share a pointer to what they read, or write in disjoint parts.
#[derive(Clone, Copy)]
struct Shared<T>(T);

// SAFETY: the holders below say why each use is sound.
unsafe impl<T> Sync for Shared<T> {}

impl<T: Copy> Shared<T> {
    fn get(&self) -> T {
        self.0
    }
}

/// A checked call of [`matmul`], with factors whose products are taken in the same way.
struct Call<'a> {
    pool: &'a Pool,
    features: Features,
    x: Rows<'a>,
    factors: &'a [Factor<'a>],
}

impl Call<'_> {
    fn integer(&self) {
        let units = self.factors[0].layout.units;
        let [quads, sums, scales] = Activations::bytes(self.x.rows, units);
        let size = quads + sums + scales;
        // Formats that take activations alike share those of the first of them.
        let alike = |f: &Factor| {
            let like = |first: &Factor| integer::alike(first.layout, f.layout);
            self.factors.iter().position(like).expect("a layout is like itself")
        };
        let last = self.factors.iter().map(alike).max().unwrap_or(0);
        with_scratch(size * (last + 1), |scratch: &mut [u8]| {
            let scratch = Shared(scratch.as_mut_ptr());
            let activations = |f: &Factor| {
                let at = alike(f) * size;
                // SAFETY: the scratch holds all three up to the last that others share, and what comes first is whole
                // units of the largest alignment.
                unsafe {
                    let quads_at = scratch.get().add(at);
                    let (sums, scales) = (quads_at.add(quads).cast(), quads_at.add(quads + sums).cast());
                    Activations { quads: quads_at, sums, scales, units }
                }
            };
            for (i, factor) in self.factors.iter().enumerate() {
                if alike(factor) == i {
                    self.pool.parallel_ranges(self.x.rows, FEW_ROWS, &|rows| {
                        let encode =
                            integer::Encode { layout: factor.layout, x: self.x, rows, to: activations(factor) };
                        // SAFETY: there is room for all rows, and tasks have disjoint ones.
                        unsafe { simd::run(self.features, encode) };
                    });
                }
            }
            self.each_panels(&|factor, panels| {
                let product = integer::Product {
                    layout: factor.layout,
                    weight: factor.weight.as_ptr(),
                    panels,
                    // Only read from here on.
                    x: activations(factor),
                    rows: factor.rows.clone(),
                    out: Out::new(factor),
                    level: self.features.level(),
                };
                // SAFETY: lengths were checked against the layout, and no other task has these panels.
                unsafe { simd::run(self.features, product) };
            });
        });
    }

    fn float(&self) {
        // One way for all, so that tasks split alike.
        let direct =
            |f: &Factor| f.rows.len() <= float::DIRECT_ROWS && matches!(f.layout.codes, Codes::F16 | Codes::Bf16);
        if self.factors.iter().all(direct) {
            return self.each_panels(&|factor, panels| {
                let product = float::Direct {
                    layout: factor.layout,
                    weight: factor.weight.as_ptr(),
                    panels,
                    x: self.x,
                    rows: factor.rows.clone(),
                    out: Out::new(factor),
                    level: self.features.level(),
                };
                // SAFETY: lengths were checked against the layout, and no other task has these panels.
                unsafe { simd::run(self.features, product) };
            });
        }
        self.each_tile(float::PANELS, 1, |factor, panels, rows| {
            // A single pass over the rows wants its weights in the first cache, many want to read them from the second.
            let step = if factor.rows.len() <= 12 { 4 } else { 32 };
            with_scratch(float::PANELS * step * UNIT * LANES, |scratch: &mut [f32]| {
                for first in panels.clone().step_by(float::PANELS) {
                    let product = float::Product {
                        layout: factor.layout,
                        weight: factor.weight.as_ptr(),
                        panels: first..panels.end.min(first + float::PANELS),
                        x: self.x,
                        rows: rows.clone(),
                        out: Out::new(factor),
                        scratch: scratch.as_mut_ptr(),
                        step,
                        level: self.features.level(),
                    };
                    // SAFETY: lengths were checked against the layout, and no other task has these panels and rows.
                    unsafe { simd::run(self.features, product) };
                }
            });
        });
    }

    #[cfg(target_arch = "x86_64")]
    fn bf16(&self) {
        let units = self.factors[0].layout.units;
        // A tile reads as many rows, whichever it starts at.
        let padded = self.x.rows + bf16::ROWS - 1;
        with_scratch(padded * units * UNIT, |x: &mut [u16]| {
            let x = Shared(x.as_mut_ptr());
            self.pool.parallel_ranges(padded, 8, &|rows| {
                // SAFETY: the level has the instructions, the scratch holds all rows, and tasks have disjoint ones.
                unsafe { bf16::round_rows(self.x, rows, units, x.get()) };
            });
            let step = units.min(128);
            let len = bf16::PANELS * step * UNIT * LANES;
            self.each_tile(bf16::PANELS, bf16::ROWS, |factor, panels, rows| {
                with_scratch(len, |scratch: &mut [u16]| {
                    for first in panels.clone().step_by(bf16::PANELS) {
                        let product = bf16::Product {
                            layout: factor.layout,
                            weight: factor.weight.as_ptr(),
                            panels: first..panels.end.min(first + bf16::PANELS),
                            x: x.get(),
                            rows: rows.clone(),
                            out: Out::new(factor),
                            scratch: scratch.as_mut_ptr(),
                            step,
                            level: self.features.level(),
                        };
                        // SAFETY: as above, and lengths were checked against the layout.
                        unsafe { product.run() };
                    }
                });
            });
        });
    }

    /// Splits the panels of all factors, as one sequence, for the pool.
    fn each_panels(&self, task: &(dyn Fn(&Factor, Range<usize>) + Sync)) {
        // A task begins with a wait for memory, so it should go on for some microseconds.
        const BYTES: usize = 64 << 10;
        let sum = |f: fn(&PackLayout) -> usize| self.factors.iter().map(|factor| f(factor.layout)).sum::<usize>();
        let (panels, threads) = (sum(PackLayout::panels), self.pool.threads());
        // Some tasks a thread even out what other programs take from the cores.
        let tasks = (sum(PackLayout::bytes) / BYTES).next_multiple_of(threads).clamp(threads, threads * 6);
        let size = panels.div_ceil(tasks).max(1);
        self.pool.parallel(panels.div_ceil(size), &|i| {
            let mut first = 0;
            for factor in self.factors {
                let end = first + factor.layout.panels();
                let (from, to) = (first.max(i * size), end.min((i + 1) * size));
                if from < to {
                    task(factor, from - first..to - first);
                }
                first = end;
            }
        });
    }

    /// Splits each factor's panels, `grain` at a time, and where they are too few for the threads the rows as well.
    fn each_tile(&self, grain: usize, row_grain: usize, task: impl Fn(&Factor, Range<usize>, Range<usize>) + Sync) {
        // Dequantising a panel is worth some rows' products with it.
        let cost = |f: &Factor| f.layout.panels() * (f.rows.len() + 8);
        let wanted = self.pool.threads() * 4;
        let goal = self.factors.iter().map(cost).sum::<usize>().div_ceil(wanted).max(1);
        let tiling = |f: &Factor| {
            let (panels, rows) = (f.layout.panels(), f.rows.len());
            let wanted = cost(f).div_ceil(goal);
            let size = panels.div_ceil(wanted.max(1)).next_multiple_of(grain).max(1);
            let columns = panels.div_ceil(size);
            // Each part of the rows dequantises the weight again, so a part is worth that.
            let parts = wanted.div_ceil(columns.max(1)).min(rows / 128).max(1);
            let height = rows.div_ceil(parts).next_multiple_of(row_grain).max(1);
            Tiling { size, columns, height, count: columns * rows.div_ceil(height) }
        };
        let tiles = self.factors.iter().map(|factor| tiling(factor).count).sum();
        self.pool.parallel(tiles, &|mut i| {
            for factor in self.factors {
                let Tiling { size, columns, height, count } = tiling(factor);
                if i < count {
                    let (c, r) = (i % columns, factor.rows.start + i / columns * height);
                    let panels = c * size..factor.layout.panels().min((c + 1) * size);
                    return task(factor, panels, r..factor.rows.end.min(r + height));
                }
                i -= count;
            }
        });
    }
}

/// How a factor's product is split.
struct Tiling {
    /// Panels of a tile.
    size: usize,
    /// Tiles side by side.
    columns: usize,
    /// Rows of a tile.
    height: usize,
    count: usize,
}
