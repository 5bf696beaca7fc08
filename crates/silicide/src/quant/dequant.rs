//! What quantised weights mean: the reading of every format that all faster forms are checked against.

use half::{bf16, f16};

use super::{GgmlFormat, QuantFormat};
use crate::{DType, Error, Result};

/// A quantised weight of `n` rows of `k` elements, in its file's own bytes, at any alignment.
///
/// ```
/// use silicide::DType;
/// use silicide::quant::{QuantFormat, QuantView};
///
/// // One row: the codes 0 to 15 twice over, w = 0.5 q - 3.
/// let codes: Vec<u8> = (0..16).map(|i| (2 * i % 16) | (2 * i % 16 + 1) << 4).collect();
/// let (scale, bias) = (0.5f32.to_le_bytes(), (-3f32).to_le_bytes());
/// let format = QuantFormat::Affine { bits: 4, group_size: 32 };
/// let weight = QuantView::new(format, 1, 32, &codes, &scale, &bias, DType::F32)?;
/// let mut row = [0.0; 32];
/// weight.dequantize_row(0, &mut row);
/// assert_eq!(row[..4], [-3.0, -2.5, -2.0, -1.5]);
/// # Ok::<(), silicide::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct QuantView<'a> {
    format: QuantFormat,
    n: usize,
    k: usize,
    codes: &'a [u8],
    scales: &'a [u8],
    biases: &'a [u8],
    dtype: DType,
}

/// How a code becomes a number, before scale and bias.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Values {
    /// The code less this.
    Offset(u8),
    /// An entry of this table times this factor.
    Table(&'static [i8; 16], f32),
    /// An 8-bit float of 4 exponent and 3 mantissa bits.
    E4m3,
}

/// What the codes of one group are scaled by: `w = d * scale * value + dmin * min`.
///
/// Formats with one level of scales have `d = dmin = 1`; formats without a minimum have `min = 0`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    /// The scale of the block that the group is in.
    pub d: f32,
    /// The group's own scale.
    pub scale: f32,
    /// The scale of the block's minima, with its sign.
    pub dmin: f32,
    /// The group's own minimum or bias.
    pub min: f32,
}

/// The values of an e2m1 code, doubled.
const E2M1_TWICE: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The values of an IQ4 code.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

impl QuantFormat {
    /// The meaning of a code.
    pub const fn values(self) -> Values {
        use GgmlFormat::*;
        match self {
            QuantFormat::Affine { .. } => Values::Offset(0),
            QuantFormat::Mxfp4 | QuantFormat::Nvfp4 => Values::Table(&E2M1_TWICE, 0.5),
            QuantFormat::Mxfp8 => Values::E4m3,
            QuantFormat::Ggml(format) => match format {
                Q4_1 | Q5_1 | Q2_K | Q4_K | Q5_K => Values::Offset(0),
                Q3_K => Values::Offset(4),
                Q4_0 => Values::Offset(8),
                Q5_0 => Values::Offset(16),
                Q6_K => Values::Offset(32),
                Q8_0 => Values::Offset(128),
                IQ4_NL | IQ4_XS => Values::Table(&IQ4, 1.0),
            },
        }
    }

    /// Bits of a code.
    pub const fn bits(self) -> usize {
        use GgmlFormat::*;
        match self {
            QuantFormat::Affine { bits, .. } => bits as usize,
            QuantFormat::Mxfp4 | QuantFormat::Nvfp4 => 4,
            QuantFormat::Mxfp8 => 8,
            QuantFormat::Ggml(format) => match format {
                Q2_K => 2,
                Q3_K => 3,
                Q4_0 | Q4_1 | Q4_K | IQ4_NL | IQ4_XS => 4,
                Q5_0 | Q5_1 | Q5_K => 5,
                Q6_K => 6,
                Q8_0 => 8,
            },
        }
    }

    /// Elements along a row that share one scale; GGUF's larger blocks hold several such groups.
    pub const fn scale_group(self) -> usize {
        use GgmlFormat::*;
        match self {
            QuantFormat::Ggml(Q2_K | Q3_K | Q6_K) => 16,
            QuantFormat::Ggml(_) => 32,
            _ => self.group_size(),
        }
    }
}

impl GgmlFormat {
    /// Where a block has its f16 scales, in bytes.
    pub(crate) const fn half_scales(self) -> &'static [usize] {
        use GgmlFormat::*;
        match self {
            Q4_0 | Q5_0 | Q8_0 | IQ4_NL | IQ4_XS => &[0],
            Q4_1 | Q5_1 | Q4_K | Q5_K => &[0, 2],
            Q2_K => &[80, 82],
            Q3_K => &[108],
            Q6_K => &[208],
        }
    }
}

impl<'a> QuantView<'a> {
    /// A view of `n` rows of `k` elements.
    ///
    /// `scales` and `biases` hold one value of type `dtype` a group for affine formats. The floating-point MLX formats
    /// have one byte of scale a group and no biases, GGUF formats neither; `dtype` is not looked at for them.
    ///
    /// # Errors
    /// [`Error::Argument`] where `k` is no whole number of groups, the bits or group size are none of MLX's, the
    /// scales' type is not a floating-point one, or a slice has another length than the shape asks for.
    pub fn new(
        format: QuantFormat,
        n: usize,
        k: usize,
        codes: &'a [u8],
        scales: &'a [u8],
        biases: &'a [u8],
        dtype: DType,
    ) -> Result<QuantView<'a>> {
        let fail =
            |message: String| Err(Error::argument("quantized weight", format!("{format} [{n}, {k}]: {message}")));
        let group = format.group_size();
        if let QuantFormat::Affine { bits, group_size } = format {
            if !matches!(bits, 2 | 3 | 4 | 5 | 6 | 8) || !matches!(group_size, 32 | 64 | 128) {
                return fail("wanted 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128".into());
            }
            if !dtype.is_float() {
                return fail(format!("scales are {dtype}, wanted f32, f16 or bf16"));
            }
        }
        if !k.is_multiple_of(group) {
            return fail(format!("a row is not a whole number of groups of {group}"));
        }
        let (scale_bytes, bias_bytes) = match format {
            QuantFormat::Affine { .. } => (dtype.size(), dtype.size()),
            QuantFormat::Mxfp4 | QuantFormat::Mxfp8 | QuantFormat::Nvfp4 => (1, 0),
            QuantFormat::Ggml(_) => (0, 0),
        };
        let groups = k / group;
        for (what, got, row) in [
            ("codes", codes.len(), format.row_bytes(k)),
            ("scales", scales.len(), groups * scale_bytes),
            ("biases", biases.len(), groups * bias_bytes),
        ] {
            if n.checked_mul(row) != Some(got) {
                return fail(format!("{got} bytes of {what}, wanted {n} rows of {row}"));
            }
        }
        Ok(QuantView { format, n, k, codes, scales, biases, dtype })
    }

    /// The format.
    pub fn format(&self) -> QuantFormat {
        self.format
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.n
    }

    /// Elements in a row.
    pub fn columns(&self) -> usize {
        self.k
    }

    /// The type of affine scales and biases.
    pub fn scale_dtype(&self) -> DType {
        self.dtype
    }

    /// The first row one of whose scales or biases is NaN or infinite: none in a file that is whole.
    pub fn row_of_broken_scale(&self) -> Option<usize> {
        let broken =
            |bytes: &[u8], dtype: DType| (0..bytes.len() / dtype.size()).find(|&i| !float(bytes, dtype, i).is_finite());
        let group = match self.format {
            QuantFormat::Affine { .. } => {
                let of = |bytes| broken(bytes, self.dtype);
                of(self.scales).into_iter().chain(of(self.biases)).min()
            }
            QuantFormat::Mxfp4 | QuantFormat::Mxfp8 => self.scales.iter().position(|&b| b == 255),
            QuantFormat::Nvfp4 => self.scales.iter().position(|&b| b & 0x7f == 0x7f),
            QuantFormat::Ggml(format) => self.codes.chunks_exact(format.block_bytes()).position(|block| {
                format.half_scales().iter().any(|&at| broken(&block[at..at + 2], DType::F16).is_some())
            }),
        };
        group.map(|g| g / (self.k / self.format.group_size()))
    }

    /// Writes row `row` as numbers.
    ///
    /// # Panics
    /// Where there is no such row, or `out` is not one row long.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.k, "the output holds one row");
        let (size, values) = (self.format.scale_group(), self.format.values());
        let mut buffer = [0; CHUNK];
        for (i, out) in out.chunks_mut(CHUNK).enumerate() {
            let codes = &mut buffer[..out.len()];
            self.codes(row, i * CHUNK, codes);
            for (g, (codes, out)) in codes.chunks_exact(size).zip(out.chunks_exact_mut(size)).enumerate() {
                let Group { d, scale, dmin, min } = self.group(row, i * CHUNK / size + g);
                for (&code, out) in codes.iter().zip(out) {
                    let value = match values {
                        Values::Offset(zero) => code as f32 - zero as f32,
                        Values::Table(table, factor) => table[code as usize] as f32 * factor,
                        Values::E4m3 => e4m3(code),
                    };
                    *out = (d * scale) * value + dmin * min;
                }
            }
        }
    }

    /// Writes codes of row `row` from column `first` on, one a byte, unsigned.
    ///
    /// # Panics
    /// Where the row has no such columns, or they are not whole [groups](QuantFormat::group_size).
    #[inline(always)]
    pub(crate) fn codes(&self, row: usize, first: usize, out: &mut [u8]) {
        let group = self.format.group_size();
        assert!(first.is_multiple_of(group) && out.len().is_multiple_of(group), "the columns are whole groups");
        let row = &self.codes[row * self.format.row_bytes(self.k)..][..self.format.row_bytes(self.k)];
        let codes = &row[self.format.row_bytes(first)..][..self.format.row_bytes(out.len())];
        match self.format {
            QuantFormat::Ggml(format) => block_codes(format, codes, out),
            _ => match self.format.bits() {
                2 => stream::<2>(codes, out),
                3 => stream::<3>(codes, out),
                4 => stream::<4>(codes, out),
                5 => stream::<5>(codes, out),
                6 => stream::<6>(codes, out),
                _ => out.copy_from_slice(codes),
            },
        }
    }

    /// What group `g` of row `row` is scaled by, groups being of [`scale_group`](QuantFormat::scale_group) elements.
    ///
    /// # Panics
    /// Where there is no such group.
    #[inline(always)]
    pub fn group(&self, row: usize, g: usize) -> Group {
        let index = row * (self.k / self.format.group_size()) + g;
        match self.format {
            QuantFormat::Affine { .. } => {
                Group::one(float(self.scales, self.dtype, index), float(self.biases, self.dtype, index))
            }
            QuantFormat::Mxfp4 | QuantFormat::Mxfp8 => Group::one(e8m0(self.scales[index]), 0.0),
            QuantFormat::Nvfp4 => Group::one(e4m3(self.scales[index]), 0.0),
            QuantFormat::Ggml(format) => {
                let groups = format.block_elements() / self.format.scale_group();
                let bytes = self.format.row_bytes(self.k);
                let block = &self.codes[row * bytes..][..bytes][g / groups * format.block_bytes()..];
                block_group(format, &block[..format.block_bytes()], g % groups)
            }
        }
    }
}

impl Group {
    fn one(scale: f32, min: f32) -> Group {
        Group { d: 1.0, scale, dmin: 1.0, min }
    }
}

/// Columns that are read at once: whole groups of every format.
pub(crate) const CHUNK: usize = 256;

/// The codes of a little-endian stream of `BITS` bits each, in whole eights.
#[inline(always)]
fn stream<const BITS: usize>(bytes: &[u8], out: &mut [u8]) {
    for (bytes, out) in bytes.as_chunks::<BITS>().0.iter().zip(out.as_chunks_mut::<8>().0) {
        let mut word = [0; 8];
        word[..BITS].copy_from_slice(bytes);
        *out = eight::<BITS>(u64::from_le_bytes(word)).to_le_bytes();
    }
}

/// Eight codes of `BITS` bits each, moved apart into bytes: the upper half of the bits by half the word, then so with each half.
#[inline(always)]
fn eight<const BITS: usize>(x: u64) -> u64 {
    let ones = |bits: usize| (1u64 << bits) - 1;
    let x = x & ones(4 * BITS) | x >> (4 * BITS) << 32;
    let pairs = ones(2 * BITS) * 0x1_0000_0001;
    let x = x & pairs | (x >> (2 * BITS) & pairs) << 16;
    let codes = ones(BITS) * 0x1_0001_0001_0001;
    x & codes | (x >> BITS & codes) << 8
}

/// Bits `AT..` of the codes that a GGUF block keeps in runs: of `RUN` bytes the lowest `BITS` bits are of the first `RUN` codes,
/// the next of the next.
#[inline(always)]
fn runs<const RUN: usize, const BITS: usize, const AT: usize>(bytes: &[u8], out: &mut [u8]) {
    let mut out = out.as_chunks_mut::<RUN>().0.iter_mut();
    for bytes in bytes.as_chunks::<RUN>().0 {
        for (i, out) in out.by_ref().take(8 / BITS).enumerate() {
            for (out, byte) in out.iter_mut().zip(bytes) {
                let bits = (byte >> (i * BITS) & ((1 << BITS) - 1)) << AT;
                *out = if AT == 0 { bits } else { *out | bits };
            }
        }
    }
}

/// The codes of GGUF blocks.
#[inline(always)]
fn block_codes(format: GgmlFormat, blocks: &[u8], out: &mut [u8]) {
    use GgmlFormat::*;
    let blocks = blocks.chunks_exact(format.block_bytes());
    for (block, out) in blocks.zip(out.chunks_exact_mut(format.block_elements())) {
        match format {
            Q4_0 | IQ4_NL => runs::<16, 4, 0>(&block[2..], out),
            Q4_1 => runs::<16, 4, 0>(&block[4..], out),
            Q5_0 | Q5_1 => {
                let at = if format == Q5_0 { 2 } else { 4 };
                runs::<16, 4, 0>(&block[at + 4..], out);
                for (bits, out) in block[at..at + 4].iter().zip(out.as_chunks_mut::<8>().0) {
                    *out = (u64::from_le_bytes(*out) | eight::<1>(*bits as u64) << 4).to_le_bytes();
                }
            }
            Q8_0 => out.iter_mut().zip(&block[2..]).for_each(|(out, byte)| *out = byte ^ 0x80),
            Q2_K => runs::<32, 2, 0>(&block[16..80], out),
            Q3_K => {
                runs::<32, 2, 0>(&block[32..96], out);
                runs::<32, 1, 2>(&block[..32], out);
            }
            Q4_K => runs::<32, 4, 0>(&block[16..], out),
            Q5_K => {
                runs::<32, 4, 0>(&block[48..], out);
                runs::<32, 1, 4>(&block[16..48], out);
            }
            Q6_K => {
                runs::<64, 4, 0>(&block[..128], out);
                runs::<32, 2, 4>(&block[128..192], out);
            }
            IQ4_XS => runs::<16, 4, 0>(&block[8..], out),
        }
    }
}

/// What group `g` of one GGUF block is scaled by.
#[inline(always)]
fn block_group(format: GgmlFormat, block: &[u8], g: usize) -> Group {
    use GgmlFormat::*;
    let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    match format {
        Q4_0 | Q5_0 | Q8_0 | IQ4_NL => Group::one(half(0), 0.0),
        Q4_1 | Q5_1 => Group::one(half(0), half(2)),
        Q2_K => Group { d: half(80), scale: (block[g] & 15) as f32, dmin: -half(82), min: (block[g] >> 4) as f32 },
        Q3_K => {
            let low = block[96 + g % 8] >> (g / 8 * 4) & 15;
            let high = block[104 + g % 4] >> (g / 4 * 2) & 3;
            Group { d: half(108), scale: (low | high << 4) as f32 - 32.0, dmin: 0.0, min: 0.0 }
        }
        Q4_K | Q5_K => {
            let q = &block[4..16];
            let (scale, min) = match g {
                0..4 => (q[g] & 63, q[g + 4] & 63),
                _ => (q[g + 4] & 15 | q[g - 4] >> 6 << 4, q[g + 4] >> 4 | q[g] >> 6 << 4),
            };
            Group { d: half(0), scale: scale as f32, dmin: -half(2), min: min as f32 }
        }
        Q6_K => Group { d: half(208), scale: block[192 + g] as i8 as f32, dmin: 0.0, min: 0.0 },
        IQ4_XS => {
            let low = block[4 + g / 2] >> (g % 2 * 4) & 15;
            let high = (u16::from_le_bytes([block[2], block[3]]) >> (2 * g) & 3) as u8;
            Group { d: half(0), scale: (low | high << 4) as f32 - 32.0, dmin: 0.0, min: 0.0 }
        }
    }
}

/// Element `index` of an array of floats in a file's bytes.
fn float(bytes: &[u8], dtype: DType, index: usize) -> f32 {
    match dtype {
        DType::F16 => f16::from_le_bytes([bytes[index * 2], bytes[index * 2 + 1]]).to_f32(),
        DType::BF16 => bf16::from_le_bytes([bytes[index * 2], bytes[index * 2 + 1]]).to_f32(),
        _ => f32::from_le_bytes(bytes[index * 4..][..4].try_into().expect("a slice of four")),
    }
}

/// The value of an e4m3 byte, which has no infinity and a single magnitude of NaN.
fn e4m3(code: u8) -> f32 {
    if code & 0x7f == 0x7f {
        return f32::NAN;
    }
    // The same fields in f16's places, whose exponent is biased by 8 more.
    f16::from_bits((code as u16 & 0x80) << 8 | (code as u16 & 0x7f) << 7).to_f32() * 256.0
}

/// The power of two that an e8m0 byte stands for; 255 is NaN.
fn e8m0(code: u8) -> f32 {
    match code {
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        _ => f32::from_bits((code as u32) << 23),
    }
}
