//! Every format at every level of this machine against sums in f64 over the rows as the reference reads them.

use half::{bf16, f16};

use super::*;
use crate::DType;
use crate::device::cpu::Level;
use crate::quant::{GgmlFormat, QuantFormat, QuantView};

const I8: Precision = Precision::Reduced(Activation::I8);
const I16: Precision = Precision::Reduced(Activation::I16);

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }
}

/// A packed weight and what its rows are.
struct Weight {
    name: String,
    layout: PackLayout,
    packed: Vec<u8>,
    rows: Vec<Vec<f32>>,
    /// Of each row and unit, a bound of `|scale * code| + |bias|` for the unsigned codes: what sums in `f32` lose bits of.
    size: Vec<f32>,
}

fn store(dtype: DType, x: &[f32]) -> Vec<u8> {
    x.iter()
        .flat_map(|&x| match dtype {
            DType::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
            DType::BF16 => bf16::from_f32(x).to_le_bytes().to_vec(),
            _ => x.to_le_bytes().to_vec(),
        })
        .collect()
}

fn dense(dtype: DType, n: usize, k: usize, random: &mut Random) -> Weight {
    let bytes = store(dtype, &random.floats(n * k));
    let layout = PackLayout::dense(dtype, n, k).unwrap();
    let mut packed = vec![0xff; layout.bytes()];
    layout.pack_dense(DenseView { dtype, bytes: &bytes }, &mut packed, &Pool::new(2)).unwrap();
    let value = |b: &[u8]| match dtype {
        DType::F16 => f16::from_le_bytes([b[0], b[1]]).to_f32(),
        DType::BF16 => bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        _ => f32::from_le_bytes(b.try_into().unwrap()),
    };
    let rows =
        (0..n).map(|r| bytes[r * k * dtype.size()..][..k * dtype.size()].chunks(dtype.size()).map(value).collect());
    Weight { name: format!("{dtype}"), layout, packed, rows: rows.collect(), size: vec![1.0; n] }
}

/// Some scales are negative and some are denormal.
fn scale(random: &mut Random) -> f32 {
    let x = random.float() * 0.1;
    if random.next().is_multiple_of(13) { x * 1e-6 } else { x }
}

fn quantized(format: QuantFormat, dtype: DType, n: usize, k: usize, random: &mut Random) -> Weight {
    let mut codes = random.bytes(n * format.row_bytes(k));
    let groups = n * k / format.group_size();
    let finite =
        |bytes: Vec<u8>| -> Vec<u8> { bytes.into_iter().map(|b| if b & 0x7f == 0x7f { b ^ 1 } else { b }).collect() };
    if format == QuantFormat::Mxfp8 {
        codes = finite(codes);
    }
    let (mut scales, mut biases) = (Vec::new(), Vec::new());
    match format {
        QuantFormat::Affine { .. } => {
            scales = store(dtype, &(0..groups).map(|_| scale(random)).collect::<Vec<_>>());
            biases = store(dtype, &(0..groups).map(|_| scale(random) * 8.0).collect::<Vec<_>>());
        }
        QuantFormat::Mxfp4 | QuantFormat::Mxfp8 => {
            scales = (0..groups)
                .map(|_| if random.next().is_multiple_of(13) { 0 } else { 115 + (random.next() % 9) as u8 })
                .collect();
        }
        QuantFormat::Nvfp4 => scales = finite(random.bytes(groups)),
        QuantFormat::Ggml(f) => {
            use GgmlFormat::*;
            let halves: &[usize] = match f {
                Q4_0 | Q5_0 | Q8_0 | IQ4_NL | IQ4_XS => &[0],
                Q4_1 | Q5_1 | Q4_K | Q5_K => &[0, 2],
                Q2_K => &[80, 82],
                Q3_K => &[108],
                Q6_K => &[208],
            };
            for block in codes.chunks_mut(f.block_bytes()) {
                for &at in halves {
                    block[at..at + 2].copy_from_slice(&f16::from_f32(scale(random)).to_le_bytes());
                }
            }
        }
    }
    let view = QuantView::new(format, n, k, &codes, &scales, &biases, dtype).unwrap();
    let layout = PackLayout::quantized(format, dtype, n, k).unwrap();
    let mut packed = vec![0xff; layout.bytes()];
    layout.pack_quantized(&view, &mut packed, &Pool::new(2)).unwrap();
    let mut rows = vec![vec![0.0; k]; n];
    let mut size = vec![0f32; n];
    for (r, row) in rows.iter_mut().enumerate() {
        view.dequantize_row(r, row);
        for g in 0..k / format.scale_group() {
            let group = view.group(r, g);
            size[r] = size[r].max((group.d * group.scale * 255.0).abs() + (group.dmin * group.min).abs());
        }
    }
    Weight { name: format!("{format} {dtype}"), layout, packed, rows, size }
}

/// The product by f64, and for each output how far a result of this precision may be from it.
fn wanted(weight: &Weight, x: &[f32], precision: Precision, level: Level) -> Vec<(f64, f64)> {
    let k = weight.layout.k;
    let m = x.len() / k;
    let integers = matches!(weight.layout.codes, Codes::Bits { .. } | Codes::Table { .. });
    let integer = match precision {
        Precision::Reduced(a) if integers && m <= FEW_ROWS => Some(if a == Activation::I8 { 127.0 } else { 32639.0 }),
        _ => None,
    };
    let bf16 = precision != Precision::F32
        && m > FEW_ROWS
        && weight.layout.codes != Codes::F32
        && level >= Level::Avx512Bf16
        && level <= Level::Amx;
    let mut all = Vec::new();
    for x in x.chunks(k) {
        for (row, size) in weight.rows.iter().zip(&weight.size) {
            let (mut sum, mut slack, mut total) = (0.0, 1e-30, 0.0);
            for (x, w) in x.chunks(UNIT).zip(row.chunks(UNIT)) {
                let largest = x.iter().fold(0f32, |a, x| a.max(x.abs())) as f64;
                for (&x, &w) in x.iter().zip(w) {
                    let (x, w) = (x as f64, w as f64);
                    sum += x * w;
                    total += (x * w).abs();
                    if let Some(steps) = integer {
                        slack += largest / steps / 2.0 * w.abs() + x.abs() * *size as f64 * 1e-6;
                    }
                }
            }
            slack += total * if bf16 { 0.0080 } else { 3e-7 * (4.0 + (k as f64).sqrt()) };
            all.push((sum, slack * 1.01));
        }
    }
    all
}

fn product(features: Features, precision: Precision, weight: &Weight, x: &[f32]) -> Vec<f32> {
    let (n, k) = (weight.layout.n, weight.layout.k);
    let m = x.len() / k;
    // Strides wider than the rows, so that a write past a row's end shows.
    let (xs, os) = (k + 3, n + 5);
    let mut wide = vec![f32::NAN; m * xs];
    for (wide, x) in wide.chunks_mut(xs).zip(x.chunks(k)) {
        wide[..k].copy_from_slice(x);
    }
    let mut out = vec![7.0; m * os];
    let pool = Pool::new(2);
    matmul(
        &pool,
        features,
        precision,
        &weight.layout,
        &weight.packed,
        Rows::new(&wide, m, k, xs).unwrap(),
        RowsMut::new(&mut out, m, n, os).unwrap(),
    )
    .unwrap();
    assert!(out.chunks(os).all(|row| row[n..].iter().all(|&x| x == 7.0)), "a write past the end of a row");
    out.chunks(os).flat_map(|row| row[..n].to_vec()).collect()
}

fn check(weight: &Weight, ms: &[usize], random: &mut Random) {
    for &features in Features::all() {
        for &m in ms {
            let mut x = random.floats(m * weight.layout.k);
            // One row is zero, and one has an outlier.
            if m > 1 {
                x[..weight.layout.k].fill(0.0);
                x[weight.layout.k] *= 50.0;
            }
            for precision in [Precision::F32, I16, I8] {
                let got = product(features, precision, weight, &x);
                let wanted = wanted(weight, &x, precision, features.level());
                for (i, (got, (wanted, slack))) in got.iter().zip(wanted).enumerate() {
                    assert!(
                        (*got as f64 - wanted).abs() <= slack,
                        "{}, [{}, {}], {m} rows, {features}, {precision:?}: output {i} is {got}, wanted {wanted} ± {slack}",
                        weight.name,
                        weight.layout.n,
                        weight.layout.k,
                    );
                }
            }
        }
    }
}

fn formats() -> Vec<QuantFormat> {
    let affine = [2, 3, 4, 5, 6, 8]
        .into_iter()
        .flat_map(|bits| [32, 64, 128].into_iter().map(move |group_size| QuantFormat::Affine { bits, group_size }));
    let others = [QuantFormat::Mxfp4, QuantFormat::Mxfp8, QuantFormat::Nvfp4];
    affine.chain(others).chain(GgmlFormat::ALL.iter().map(|&f| QuantFormat::Ggml(f))).collect()
}

#[test]
fn every_format_at_every_level() {
    let mut random = Random(1);
    for format in formats() {
        let group = format.group_size();
        for (i, (n, groups)) in [(1, 1), (17, 3), (33, 2), (15, 5)].into_iter().enumerate() {
            let dtypes = match format {
                QuantFormat::Affine { .. } => &DType::FLOATS[i % 3..i % 3 + 1],
                _ => &[DType::F32],
            };
            for &dtype in dtypes {
                let weight = quantized(format, dtype, n, group * groups, &mut random);
                check(&weight, &[[1, 7], [2, 33], [5, 12], [1, 31]][i], &mut random);
            }
        }
    }
}

#[test]
fn dense_weights_of_any_size() {
    let mut random = Random(2);
    for dtype in DType::FLOATS {
        for (n, k) in [(1, 1), (15, 31), (17, 33), (33, 100), (64, 257), (5, 576)] {
            let weight = dense(dtype, n, k, &mut random);
            check(&weight, &[1, 2, 7, 33], &mut random);
        }
    }
}

#[test]
fn long_rows_and_many_rows() {
    let mut random = Random(3);
    // Longer than the stretches in which weights are dequantised, with remainders everywhere.
    let affine = quantized(QuantFormat::Affine { bits: 4, group_size: 64 }, DType::BF16, 50, 64 * 77, &mut random);
    check(&affine, &[3, 65], &mut random);
    let table = quantized(QuantFormat::Ggml(GgmlFormat::IQ4_XS), DType::F32, 33, 256 * 19, &mut random);
    check(&table, &[1, 45], &mut random);
    let small = dense(DType::BF16, 40, 4500, &mut random);
    check(&small, &[1, 300], &mut random);
}

#[test]
fn a_row_does_not_depend_on_its_company() {
    let mut random = Random(4);
    let weights = [
        quantized(QuantFormat::Affine { bits: 4, group_size: 32 }, DType::F16, 50, 32 * 45, &mut random),
        quantized(QuantFormat::Ggml(GgmlFormat::Q6_K), DType::F32, 31, 256 * 5, &mut random),
        dense(DType::BF16, 70, 1333, &mut random),
        dense(DType::F32, 17, 1300, &mut random),
    ];
    for weight in &weights {
        let (n, k) = (weight.layout.n, weight.layout.k);
        let x = random.floats(67 * k);
        for &features in Features::all() {
            let all = product(features, Precision::F32, weight, &x);
            for rows in [0..1, 3..4, 60..67, 0..13, 20..52, 66..67] {
                let some = product(features, Precision::F32, weight, &x[rows.start * k..rows.end * k]);
                let same = some.iter().zip(&all[rows.start * n..]).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{}: rows {rows:?} differ at {features}", weight.name);
            }
        }
    }
}

#[test]
fn nan_and_infinity_stay_in_their_row() {
    let mut random = Random(5);
    for weight in [
        quantized(QuantFormat::Affine { bits: 8, group_size: 64 }, DType::F16, 20, 192, &mut random),
        dense(DType::BF16, 20, 77, &mut random),
    ] {
        let (n, k) = (weight.layout.n, weight.layout.k);
        for m in [3, 40] {
            let mut x = random.floats(m * k);
            x[k + 5] = f32::NAN;
            x[2 * k + 70] = f32::INFINITY;
            for &features in Features::all() {
                for precision in [Precision::F32, I16, I8] {
                    let out = product(features, precision, &weight, &x);
                    let name = format!("{}, {m} rows, {features}, {precision:?}", weight.name);
                    assert!(out[n..2 * n].iter().all(|x| x.is_nan()), "{name}: NaN");
                    assert!(out[2 * n..3 * n].iter().all(|x| !x.is_finite()), "{name}: infinity");
                    assert!(out[..n].iter().chain(&out[3 * n..]).all(|x| x.is_finite()), "{name}: the others");
                }
            }
        }
    }
}

#[test]
fn packed_rows_unpack_to_the_same_numbers() {
    let mut random = Random(6);
    for format in formats() {
        let weight = quantized(format, DType::BF16, 19, format.group_size() * 3, &mut random);
        // A fused multiply-add rounds once where the reference rounds twice.
        let close = |got: f32, wanted: f32, size: f32| (got - wanted).abs() <= size * 2e-7;
        for &features in Features::all() {
            for (r, wanted) in weight.rows.iter().enumerate() {
                let mut row = vec![0.0; wanted.len()];
                unpack_row(features, &weight.layout, &weight.packed, r, &mut row).unwrap();
                let same = row.iter().zip(wanted).all(|(a, b)| close(*a, *b, weight.size[r]));
                assert!(same, "{} row {r} at {features}: {row:?}, wanted {wanted:?}", weight.name);
            }
        }
    }
}

#[test]
fn packed_weights_are_little_larger() {
    for format in formats() {
        let k = 4 * 256;
        let layout = PackLayout::quantized(format, DType::BF16, 64, k).unwrap();
        let scales = match format {
            QuantFormat::Affine { group_size, .. } => 4 * k / group_size as usize,
            QuantFormat::Ggml(_) => 0,
            _ => k / format.group_size(),
        };
        let original = 64 * (format.row_bytes(k) + scales);
        assert!(layout.bytes() * 100 <= original * 106, "{format}: {} bytes of {original}", layout.bytes());
    }
}

#[test]
fn misfits_are_errors() {
    let pool = Pool::new(1);
    let features = Features::detect();
    let layout = PackLayout::dense(DType::F32, 4, 8).unwrap();
    let packed = vec![0; layout.bytes()];
    let x = [0.0; 16];
    let mut out = [0.0; 8];
    let call = |weight: &[u8], (m, k): (usize, usize), (om, on): (usize, usize), out: &mut [f32]| {
        let (x, out) = (Rows::new(&x, m, k, k)?, RowsMut::new(out, om, on, on)?);
        matmul(&pool, features, Precision::F32, &layout, weight, x, out)
    };
    assert!(call(&packed, (2, 8), (2, 4), &mut out).is_ok());
    assert!(call(&packed[1..], (2, 8), (2, 4), &mut out).is_err());
    assert!(call(&packed, (2, 7), (2, 4), &mut out).is_err());
    assert!(call(&packed, (2, 8), (1, 4), &mut out).is_err());
    assert!(call(&packed, (3, 8), (3, 4), &mut out).is_err());
    assert!(RowsMut::new(&mut out, 2, 4, 3).is_err());
    assert!(Rows::new(&x, usize::MAX, 2, usize::MAX).is_err());
    assert!(PackLayout::dense(DType::U8, 4, 8).is_err());
    assert!(PackLayout::dense(DType::F32, usize::MAX / 8, 1 << 40).is_err());
    let other = DenseView { dtype: DType::F32, bytes: &[0; 4] };
    assert!(layout.pack_dense(other, &mut vec![0; layout.bytes()], &pool).is_err());
}
