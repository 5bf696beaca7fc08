//! The packed form of a weight: rows interleaved in panels of sixteen, so that a vector's lane is an output row.
//!
//! A row is cut into units of 32 elements, a unit's 32 codes into 8 quads of 4. Codes lie in planes of 8, 4, 2 or 1 bits
//! (5 bits are a plane of 4 and a plane of 1). In a plane of `w` bits a vector of 64 bytes, byte `4 r + j` of it for
//! element `j` of a quad of row `r`, holds `8 / w` quads, the first in the lowest bits.
//!
//! A panel is a row of records, each of eight units (the last may be shorter): the scales of GGUF's block, those of each
//! group, sixteen together, then from the next half of a cache line on the codes, unit by unit. Panels follow each other. So a
//! product reads a weight from its first byte to its last, which is what processors fetch ahead best, and the packed
//! forms of weights whose row counts are multiples of 16 can be put one after another.

use std::ops::Range;
use std::sync::Mutex;

use crate::device::cpu::Pool;
use crate::device::cpu::simd::LANES;
use crate::device::cpu::vector::vectorized;
use crate::quant::{CHUNK, GgmlFormat, Group, QuantFormat, QuantView, Values};
use crate::{DType, Error, Result};

/// Elements of a row that are handled together.
pub(super) const UNIT: usize = 32;
/// Elements of a row in a record, and in a GGUF block with two levels of scales.
pub(super) const BLOCK: usize = 256;
/// Units in a record.
pub(super) const RECORD: usize = BLOCK / UNIT;

/// Bytes of a vector, a quad of each of the panel's rows.
const VECTOR: usize = 4 * LANES;
/// Bytes of a unit's codes.
const QUADS: usize = UNIT * LANES;

/// Where everything lies in the packed form of a weight.
#[derive(Clone, Debug, PartialEq)]
pub struct PackLayout {
    pub(super) n: usize,
    pub(super) k: usize,
    /// Units of a row; the last may be padded.
    pub(super) units: usize,
    pub(super) codes: Codes,
    pub(super) scales: Scales,
    /// Elements that share a scale.
    pub(super) group: usize,
    /// Bytes of a unit's codes.
    pub(super) unit_bytes: usize,
    /// Bytes of a whole record.
    record_bytes: usize,
    pub(super) panel_bytes: usize,
    source: Source,
}

/// What a weight is packed from.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Source {
    Dense(DType),
    Quantized(QuantFormat, DType),
}

/// What the elements of a panel are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Codes {
    /// `[k][row]`.
    F32,
    /// `[k][row]`.
    F16,
    /// `[k / 2][row][2]`, as the instructions on bf16 pairs take them.
    Bf16,
    /// Planes of unsigned codes of so many bits, less `zero`.
    Bits { bits: u8, zero: i32 },
    /// A plane of 4-bit indices into a table of bytes, these less `zero` and times `factor`.
    Table { table: [u8; 16], zero: i32, factor: f32 },
    /// Quads of 8-bit floats.
    E4m3,
}

/// What the scales of a group are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scales {
    None,
    /// A scale of this type, and where `bias` a bias.
    Float {
        dtype: DType,
        bias: bool,
    },
    E8m0,
    E4m3,
    /// A signed byte, times an f16 for each block.
    Signed,
    /// Bytes of scale and minimum, times two f16 for each block.
    Pair,
    /// The same in the halves of one byte.
    Nibbles,
}

impl Scales {
    fn bias(self) -> bool {
        matches!(self, Scales::Float { bias: true, .. } | Scales::Pair | Scales::Nibbles)
    }

    /// Bytes before the codes of a record of `units` units.
    #[inline(always)]
    fn record_bytes(self, units: usize, group: usize) -> usize {
        let (group_bytes, block_bytes) = self.bytes();
        let block = if units > 0 { block_bytes } else { 0 };
        (block + (units * UNIT).div_ceil(group) * group_bytes).next_multiple_of(32)
    }

    /// Bytes for a group of a panel, and for a block.
    #[inline(always)]
    pub(super) fn bytes(self) -> (usize, usize) {
        match self {
            Scales::None => (0, 0),
            Scales::Float { dtype, bias } => (LANES * dtype.size() * (1 + bias as usize), 0),
            Scales::E8m0 | Scales::E4m3 => (LANES, 0),
            Scales::Signed => (LANES, 2 * LANES),
            Scales::Pair => (2 * LANES, 4 * LANES),
            Scales::Nibbles => (LANES, 4 * LANES),
        }
    }
}

/// Bytes of the rows of a dense weight that can be packed.
#[derive(Clone, Copy, Debug)]
pub struct DenseView<'a> {
    /// The elements' type: f32, f16 or bf16.
    pub dtype: DType,
    /// `n` rows of `k` elements, little-endian, at any alignment.
    pub bytes: &'a [u8],
}

impl PackLayout {
    /// The layout of a dense weight of `n` rows of `k` elements.
    ///
    /// # Errors
    /// [`Error::Argument`] where `dtype` is not f32, f16 or bf16, or the size overflows.
    pub fn dense(dtype: DType, n: usize, k: usize) -> Result<PackLayout> {
        let codes = match dtype {
            DType::F32 => Codes::F32,
            DType::F16 => Codes::F16,
            DType::BF16 => Codes::Bf16,
            _ => return Err(Error::argument("pack", format!("weight is {dtype}, wanted f32, f16 or bf16"))),
        };
        PackLayout::new(Source::Dense(dtype), n, k, codes, Scales::None, UNIT)
    }

    /// The layout of a quantised weight of `n` rows of `k` elements; `scale_dtype` is the type of affine scales.
    ///
    /// # Errors
    /// [`Error::Argument`] where the size overflows, or `scale_dtype` is not a floating-point type.
    pub fn quantized(format: QuantFormat, scale_dtype: DType, n: usize, k: usize) -> Result<PackLayout> {
        use GgmlFormat::*;
        let codes = match format.values() {
            Values::Offset(zero) => Codes::Bits { bits: format.bits() as u8, zero: zero as i32 },
            Values::Table(table, factor) => {
                // The instructions want unsigned bytes, and 128 times a scale is exact.
                Codes::Table { table: table.map(|x| x as u8 ^ 0x80), zero: 128, factor }
            }
            Values::E4m3 => Codes::E4m3,
        };
        let scales = match format {
            QuantFormat::Affine { .. } if !scale_dtype.is_float() => {
                return Err(Error::argument("pack", format!("scales are {scale_dtype}, wanted f32, f16 or bf16")));
            }
            QuantFormat::Affine { .. } => Scales::Float { dtype: scale_dtype, bias: true },
            QuantFormat::Mxfp4 | QuantFormat::Mxfp8 => Scales::E8m0,
            QuantFormat::Nvfp4 => Scales::E4m3,
            QuantFormat::Ggml(Q4_0 | Q5_0 | Q8_0 | IQ4_NL) => Scales::Float { dtype: DType::F16, bias: false },
            QuantFormat::Ggml(Q4_1 | Q5_1) => Scales::Float { dtype: DType::F16, bias: true },
            QuantFormat::Ggml(Q3_K | Q6_K | IQ4_XS) => Scales::Signed,
            QuantFormat::Ggml(Q4_K | Q5_K) => Scales::Pair,
            QuantFormat::Ggml(Q2_K) => Scales::Nibbles,
        };
        PackLayout::new(Source::Quantized(format, scale_dtype), n, k, codes, scales, format.scale_group())
    }

    fn new(source: Source, n: usize, k: usize, codes: Codes, scales: Scales, group: usize) -> Result<PackLayout> {
        let units = k.div_ceil(UNIT);
        let element_bits = match codes {
            Codes::F32 => 32,
            Codes::F16 | Codes::Bf16 => 16,
            Codes::Bits { bits, .. } => bits as usize,
            Codes::Table { .. } => 4,
            Codes::E4m3 => 8,
        };
        let unit_bytes = UNIT * LANES / 8 * element_bits;
        let record = |units: usize| scales.record_bytes(units, group) + units * unit_bytes;
        let record_bytes = record(RECORD);
        let panel_bytes =
            (units / RECORD).checked_mul(record_bytes).and_then(|b| b.checked_add(record(units % RECORD) + 63));
        let Some(panel_bytes) =
            panel_bytes.map(|b| b / 64 * 64).filter(|&bytes| n.div_ceil(LANES).checked_mul(bytes).is_some())
        else {
            return Err(Error::argument("pack", format!("a weight of [{n}, {k}] is past the address space")));
        };
        Ok(PackLayout { n, k, units, codes, scales, group, unit_bytes, record_bytes, panel_bytes, source })
    }

    /// What is taken off each code before it is scaled: 0 where groups have a bias.
    #[inline(always)]
    pub(super) fn zero(&self) -> i32 {
        match self.codes {
            Codes::Bits { zero, .. } | Codes::Table { zero, .. } if !self.scales.bias() => zero,
            _ => 0,
        }
    }

    /// Bytes before the codes of a record of `units` units.
    #[inline(always)]
    pub(super) fn header(&self, units: usize) -> usize {
        self.scales.record_bytes(units, self.group)
    }

    /// The units of record `record`, and where in a panel it begins.
    #[inline(always)]
    pub(super) fn record(&self, record: usize) -> (Range<usize>, usize) {
        (record * RECORD..self.units.min((record + 1) * RECORD), record * self.record_bytes)
    }

    /// Where in a panel the codes of a unit begin.
    #[inline(always)]
    pub(super) fn codes_at(&self, unit: usize) -> usize {
        let (units, at) = self.record(unit / RECORD);
        at + self.header(units.len()) + (unit - units.start) * self.unit_bytes
    }

    /// Bytes of the packed form.
    pub fn bytes(&self) -> usize {
        self.panels() * self.panel_bytes
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.n
    }

    /// Input features.
    pub fn columns(&self) -> usize {
        self.k
    }

    pub(super) fn panels(&self) -> usize {
        self.n.div_ceil(LANES)
    }

    /// Packs a quantised weight into `out`.
    ///
    /// # Errors
    /// [`Error::Argument`] where the weight or the length of `out` is not the layout's.
    pub fn pack_quantized(&self, weight: &QuantView<'_>, out: &mut [u8], pool: &Pool) -> Result<()> {
        let dtype = if let Source::Quantized(_, dtype) = self.source { dtype } else { DType::F32 };
        let scale_dtype =
            if matches!(weight.format(), QuantFormat::Affine { .. }) { weight.scale_dtype() } else { dtype };
        let source = Source::Quantized(weight.format(), scale_dtype);
        self.check(source, weight.rows(), weight.columns(), out.len())?;
        self.each_stretch(
            out,
            pool,
            1,
            #[inline(always)]
            |row, columns, to| weight.codes(row, columns.start, to),
            #[inline(always)]
            |tile, rows, columns, panel| {
                let mut quads = [0; QUADS];
                for unit in 0..columns.len().div_ceil(UNIT) {
                    tile.interleave::<4>(unit * UNIT, &mut quads);
                    self.put_codes(columns.start / UNIT + unit, &quads, panel);
                }
                for g in columns.start / self.group..columns.end / self.group {
                    for (r, row) in rows.clone().enumerate() {
                        self.put_group(r, g, weight.group(row, g), panel);
                    }
                }
            },
        );
        Ok(())
    }

    /// Packs a dense weight into `out`.
    ///
    /// # Errors
    /// [`Error::Argument`] where the weight or the length of `out` is not the layout's.
    pub fn pack_dense(&self, weight: DenseView<'_>, out: &mut [u8], pool: &Pool) -> Result<()> {
        self.check(Source::Dense(weight.dtype), self.n, self.k, out.len())?;
        let size = weight.dtype.size();
        let (got, wanted) = (weight.bytes.len(), self.n * self.k * size);
        if got != wanted {
            return Err(Error::argument("pack", format!("weight has {got} bytes, wanted {wanted}")));
        }
        self.each_stretch(
            out,
            pool,
            size,
            #[inline(always)]
            |row, columns, to| {
                let row = &weight.bytes[row * self.k * size..];
                to.copy_from_slice(&row[columns.start * size..columns.end * size]);
            },
            #[inline(always)]
            |tile, _, columns, panel| {
                // The product reads bf16 in pairs.
                let end = columns.end.next_multiple_of(2).min(self.units * UNIT);
                let to = &mut panel[columns.start * LANES * size..end * LANES * size];
                match self.codes {
                    Codes::F16 => tile.interleave::<2>(0, to),
                    _ => tile.interleave::<4>(0, to),
                }
            },
        );
        Ok(())
    }

    fn check(&self, source: Source, n: usize, k: usize, len: usize) -> Result<()> {
        if (source, n, k) != (self.source, self.n, self.k) {
            let (wanted, on, ok) = (self.source, self.n, self.k);
            return Err(Error::argument(
                "pack",
                format!("weight is {source:?} [{n}, {k}], wanted {wanted:?} [{on}, {ok}]"),
            ));
        }
        if len != self.bytes() {
            return Err(Error::argument("pack", format!("output has {len} bytes, wanted {}", self.bytes())));
        }
        Ok(())
    }

    /// Clears each panel; has some columns of its rows read, `size` bytes an element, and put, until it is full. By code
    /// compiled for the widest vectors.
    fn each_stretch(
        &self,
        out: &mut [u8],
        pool: &Pool,
        size: usize,
        read: impl Fn(usize, Range<usize>, &mut [u8]) + Sync,
        put: impl Fn(&Tile, Range<usize>, Range<usize>, &mut [u8]) + Sync,
    ) {
        if self.panel_bytes == 0 {
            return;
        }
        let panels: Vec<_> = out.chunks_exact_mut(self.panel_bytes).map(Mutex::new).collect();
        pool.parallel(panels.len(), &|p| {
            let mut panel = panels[p].lock().expect("each panel is one task's");
            let rows = p * LANES..self.n.min((p + 1) * LANES);
            vectorized(
                #[inline(always)]
                || {
                    panel.fill(0);
                    let mut tile = Tile::new();
                    for first in (0..self.k).step_by(CHUNK) {
                        let columns = first..self.k.min(first + CHUNK);
                        tile.fill(
                            columns.len() * size,
                            rows.clone(),
                            #[inline(always)]
                            |row, to| read(row, columns.clone(), to),
                        );
                        put(&tile, rows.clone(), columns, &mut panel);
                    }
                },
            );
        });
    }

    /// Puts the codes of a unit, as quads of the panel's rows, into the planes.
    #[inline(always)]
    fn put_codes(&self, unit: usize, quads: &[u8; QUADS], panel: &mut [u8]) {
        let bits = match self.codes {
            Codes::Bits { bits, .. } => bits as usize,
            Codes::Table { .. } => 4,
            _ => 8,
        };
        let (mut plane, mut shift) = (self.codes_at(unit), 0);
        while shift < bits {
            // The widest plane first: it holds the lowest bits.
            let width = 1 << (bits - shift).ilog2();
            let mask = (0xff >> (8 - width)) as u8;
            let vectors = &mut panel[plane..][..width * VECTOR];
            for (vector, quads) in vectors.chunks_exact_mut(VECTOR).zip(quads.chunks_exact(VECTOR * (8 / width))) {
                for (i, quad) in quads.chunks_exact(VECTOR).enumerate() {
                    for (byte, code) in vector.iter_mut().zip(quad) {
                        *byte |= (code >> shift & mask) << (i * width);
                    }
                }
            }
            plane += VECTOR * width;
            shift += width;
        }
    }

    #[inline(always)]
    fn put_group(&self, r: usize, g: usize, group: Group, panel: &mut [u8]) {
        let (group_bytes, block_bytes) = self.scales.bytes();
        let (_, record) = self.record(g * self.group / BLOCK);
        let (block, scales) = panel[record..].split_at_mut(block_bytes);
        let scales = &mut scales[g * self.group % BLOCK / self.group * group_bytes..];
        match self.scales {
            Scales::None => {}
            Scales::Float { dtype, bias } => {
                put_float(scales, dtype, r, group.scale);
                if bias {
                    put_float(scales, dtype, LANES + r, group.min);
                }
            }
            Scales::E8m0 => {
                // The power of two is the exponent field itself, but for the one power below the field's range.
                let bits = group.scale.to_bits();
                scales[r] = if bits == 1 << 22 { 0 } else { (bits >> 23) as u8 };
            }
            Scales::E4m3 => {
                // The value came from such a byte, whose exponent is biased by 120 less than an f32's.
                let bits = (group.scale * 2f32.powi(-120)).to_bits();
                let magnitude = if group.scale.is_nan() { 0x7f } else { (bits >> 20) as u8 & 0x7f };
                scales[r] = (bits >> 24) as u8 & 0x80 | magnitude;
            }
            Scales::Signed => scales[r] = group.scale as i8 as u8,
            Scales::Pair => {
                scales[r] = group.scale as u8;
                scales[LANES + r] = group.min as u8;
            }
            Scales::Nibbles => scales[r] = group.scale as u8 | (group.min as u8) << 4,
        }
        if block_bytes > 0 && (g * self.group).is_multiple_of(BLOCK) {
            put_float(block, DType::F16, r, group.d);
            if block_bytes > 2 * LANES {
                put_float(block, DType::F16, LANES + r, group.dmin);
            }
        }
    }
}

/// Bytes of some columns of a panel's rows. Rows past the last stay zero.
struct Tile([[u8; CHUNK * size_of::<f32>()]; LANES]);

impl Tile {
    fn new() -> Tile {
        Tile([[0; _]; LANES])
    }

    /// Has `bytes` bytes of each row written, and clears what is left of the last unit.
    #[inline(always)]
    fn fill(&mut self, bytes: usize, rows: Range<usize>, read: impl Fn(usize, &mut [u8])) {
        for (row, to) in rows.zip(&mut self.0) {
            let (to, rest) = to.split_at_mut(bytes);
            read(row, to);
            rest[..bytes.next_multiple_of(UNIT) - bytes].fill(0);
        }
    }

    /// Writes pieces of `BYTES` bytes, the first of every row, from byte `from` on, then the second, until `out` is full.
    #[inline(always)]
    fn interleave<const BYTES: usize>(&self, from: usize, out: &mut [u8]) {
        for (i, out) in out.as_chunks_mut::<BYTES>().0.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            for (row, out) in self.0.iter().zip(out) {
                out.copy_from_slice(&row[from + i * BYTES..][..BYTES]);
            }
        }
    }
}

/// Stores a number that came from this type.
#[inline(always)]
fn put_float(out: &mut [u8], dtype: DType, index: usize, x: f32) {
    match dtype {
        DType::F16 => out[index * 2..][..2].copy_from_slice(&half::f16::from_f32(x).to_le_bytes()),
        DType::BF16 => out[index * 2..][..2].copy_from_slice(&half::bf16::from_f32(x).to_le_bytes()),
        _ => out[index * 4..][..4].copy_from_slice(&x.to_le_bytes()),
    }
}
