//! Every format at every level of this machine against sums in f64 over the rows as the reference reads them.

use super::pack::BLOCK;
use super::*;
use crate::quant::{GgmlFormat, QuantFormat};
use crate::testing::{Random, StoredMatrix, quantized_formats};
use crate::{DType, MatrixFormat};

/// A packed weight and what its rows are.
struct Weight {
    format: MatrixFormat,
    layout: PackLayout,
    packed: Vec<u8>,
    rows: Vec<Vec<f32>>,
    /// See [`StoredMatrix::sizes`].
    size: Vec<f32>,
}

impl Weight {
    fn new(format: MatrixFormat, n: usize, k: usize, random: &mut Random) -> Weight {
        let matrix = StoredMatrix::random(format, n, k, random);
        let layout = layout(format, n, k);
        let (mut packed, pool) = (vec![0xff; layout.bytes()], Pool::new(2));
        match (matrix.view(), format) {
            (Some(view), _) => layout.pack_quantized(&view, &mut packed, &pool),
            (None, MatrixFormat::Dense(dtype) | MatrixFormat::Quantized(_, dtype)) => {
                layout.pack_dense(DenseView { dtype, bytes: &matrix.codes }, &mut packed, &pool)
            }
        }
        .unwrap();
        let rows = matrix.elements().chunks(k).map(<[f32]>::to_vec).collect();
        Weight { format, layout, packed, rows, size: matrix.sizes() }
    }

    fn dense(dtype: DType, n: usize, k: usize, random: &mut Random) -> Weight {
        Weight::new(MatrixFormat::Dense(dtype), n, k, random)
    }

    fn quantized(format: QuantFormat, dtype: DType, n: usize, k: usize, random: &mut Random) -> Weight {
        Weight::new(MatrixFormat::Quantized(format, dtype), n, k, random)
    }
}

fn layout(format: MatrixFormat, n: usize, k: usize) -> PackLayout {
    match format {
        MatrixFormat::Dense(dtype) => PackLayout::dense(dtype, n, k),
        MatrixFormat::Quantized(format, dtype) => PackLayout::quantized(format, dtype, n, k),
    }
    .unwrap()
}

fn group_size(format: MatrixFormat) -> usize {
    if let MatrixFormat::Quantized(format, _) = format { format.group_size() } else { 1 }
}

/// The product by f64, and for each output how far a result of this precision may be from it.
fn wanted(weight: &Weight, x: &[f32], precision: Precision, features: Features) -> Vec<(f64, f64)> {
    let k = weight.layout.k;
    let m = x.len() / k;
    let method = Method::of(&weight.layout, features, precision, m);
    let (integer, bf16) = (method == Method::Integer, method == Method::Bf16);
    let mut all = Vec::new();
    for x in x.chunks(k) {
        for (row, size) in weight.rows.iter().zip(&weight.size) {
            let (mut sum, mut slack, mut total) = (0.0, 1e-30, 0.0);
            for (x, w) in x.chunks(BLOCK).zip(row.chunks(BLOCK)) {
                let largest = x.iter().fold(0f32, |a, x| a.max(x.abs())) as f64;
                for (&x, &w) in x.iter().zip(w) {
                    let (x, w) = (x as f64, w as f64);
                    sum += x * w;
                    total += (x * w).abs();
                    if integer {
                        slack += largest / 32639.0 / 2.0 * w.abs() + x.abs() * *size as f64 * 1e-6;
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
    let x = Rows::new(&wide, m, k, xs).unwrap();
    let to = RowsMut::new(&mut out, m, n, os).unwrap();
    let factor = Factor { layout: &weight.layout, weight: &weight.packed, rows: 0..m, out: to };
    matmul(&pool, features, precision, x, &mut [factor]).unwrap();
    assert!(out.chunks(os).all(|row| row[n..].iter().all(|&x| x == 7.0)), "a write past the end of a row");
    out.chunks(os).flat_map(|row| row[..n].to_vec()).collect()
}

fn check(weight: &Weight, ms: &[usize], random: &mut Random) {
    for &features in Features::all() {
        for &m in ms {
            let mut x = random.values(m * weight.layout.k);
            // One row is zero, and one has an outlier.
            if m > 1 {
                x[..weight.layout.k].fill(0.0);
                x[weight.layout.k] *= 50.0;
            }
            for precision in [Precision::F32, Precision::Reduced] {
                let got = product(features, precision, weight, &x);
                let wanted = wanted(weight, &x, precision, features);
                for (i, (got, (wanted, slack))) in got.iter().zip(wanted).enumerate() {
                    assert!(
                        (*got as f64 - wanted).abs() <= slack,
                        "{}, [{}, {}], {m} rows, {features}, {precision:?}: output {i} is {got}, wanted {wanted} ± {slack}",
                        weight.format,
                        weight.layout.n,
                        weight.layout.k,
                    );
                }
            }
        }
    }
}

#[test]
fn every_format_at_every_level() {
    let mut random = Random::new(1);
    let shapes = [(1, 1), (17, 3), (33, 2), (15, 5)];
    for (i, format) in quantized_formats().into_iter().enumerate() {
        // Two shapes for each type of scales, so that a width and group size has all; every shape for other formats.
        let affine = matches!(format, MatrixFormat::Quantized(QuantFormat::Affine { .. }, _));
        for j in 0..if affine { 2 } else { 4 } {
            let (n, groups) = shapes[(i + j) % 4];
            let weight = Weight::new(format, n, group_size(format) * groups, &mut random);
            check(&weight, &[[1, 7], [2, 33], [5, 12], [1, 31]][(i + j) % 4], &mut random);
        }
    }
}

#[test]
fn dense_weights_of_any_size() {
    let mut random = Random::new(2);
    for dtype in DType::FLOATS {
        for (n, k) in [(1, 1), (15, 31), (17, 33), (33, 100), (64, 257), (5, 576)] {
            let weight = Weight::dense(dtype, n, k, &mut random);
            check(&weight, &[1, 2, 3, 7, 33], &mut random);
        }
    }
}

#[test]
fn long_rows_and_many_rows() {
    let mut random = Random::new(3);
    // Longer than the stretches in which weights are dequantised, with remainders everywhere.
    let affine =
        Weight::quantized(QuantFormat::Affine { bits: 4, group_size: 64 }, DType::BF16, 50, 64 * 77, &mut random);
    check(&affine, &[3, 65], &mut random);
    let table = Weight::quantized(QuantFormat::Ggml(GgmlFormat::IQ4_XS), DType::F32, 33, 256 * 19, &mut random);
    check(&table, &[1, 45], &mut random);
    let small = Weight::dense(DType::BF16, 40, 4500, &mut random);
    check(&small, &[1, 300], &mut random);
}

#[test]
fn a_row_does_not_depend_on_its_company() {
    let mut random = Random::new(4);
    let weights = [
        Weight::quantized(QuantFormat::Affine { bits: 4, group_size: 32 }, DType::F16, 50, 32 * 45, &mut random),
        Weight::quantized(QuantFormat::Ggml(GgmlFormat::Q6_K), DType::F32, 31, 256 * 5, &mut random),
        Weight::dense(DType::BF16, 70, 1333, &mut random),
        Weight::dense(DType::F32, 17, 1300, &mut random),
    ];
    for weight in &weights {
        let (n, k) = (weight.layout.n, weight.layout.k);
        let x = random.values(67 * k);
        for &features in Features::all() {
            let all = product(features, Precision::F32, weight, &x);
            for rows in [0..1, 3..4, 60..67, 0..13, 20..52, 66..67] {
                let some = product(features, Precision::F32, weight, &x[rows.start * k..rows.end * k]);
                let same = some.iter().zip(&all[rows.start * n..]).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{}: rows {rows:?} differ at {features}", weight.format);
            }
        }
    }
}

#[test]
fn nan_and_infinity_stay_in_their_row() {
    let mut random = Random::new(5);
    for weight in [
        Weight::quantized(QuantFormat::Affine { bits: 8, group_size: 64 }, DType::F16, 20, 192, &mut random),
        Weight::dense(DType::BF16, 20, 77, &mut random),
    ] {
        let (n, k) = (weight.layout.n, weight.layout.k);
        for m in [3, 40] {
            let mut x = random.values(m * k);
            x[k + 5] = f32::NAN;
            x[2 * k + 70] = f32::INFINITY;
            for &features in Features::all() {
                for precision in [Precision::F32, Precision::Reduced] {
                    let out = product(features, precision, &weight, &x);
                    let name = format!("{}, {m} rows, {features}, {precision:?}", weight.format);
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
    let mut random = Random::new(6);
    for format in quantized_formats() {
        let weight = Weight::new(format, 19, group_size(format) * 3, &mut random);
        // A fused multiply-add rounds once where the reference rounds twice.
        let close = |got: f32, wanted: f32, size: f32| (got - wanted).abs() <= size * 2e-7;
        for &features in Features::all() {
            for (r, wanted) in weight.rows.iter().enumerate() {
                let mut row = vec![0.0; wanted.len()];
                unpack_row(features, &weight.layout, &weight.packed, r, &mut row).unwrap();
                let same = row.iter().zip(wanted).all(|(a, b)| close(*a, *b, weight.size[r]));
                assert!(same, "{} row {r} at {features}: {row:?}, wanted {wanted:?}", weight.format);
            }
        }
    }
}

#[test]
fn packed_weights_are_little_larger() {
    for format in quantized_formats() {
        let (n, k) = (64, 4 * 256);
        let layout = layout(format, n, k);
        let original = StoredMatrix::random(format, n, k, &mut Random::new(7));
        let original = original.codes.len() + original.scales.len() + original.biases.len();
        assert!(layout.bytes() * 100 <= original * 105, "{format}: {} bytes of {original}", layout.bytes());
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
        matmul(&pool, features, Precision::F32, x, &mut [Factor { layout: &layout, weight, rows: 0..m, out }])
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

#[test]
fn factors_take_their_own_rows() {
    let random = &mut Random::new(12);
    let affine = MatrixFormat::Quantized(QuantFormat::Affine { bits: 4, group_size: 64 }, DType::F32);
    let (n, k) = (37, 320);
    for format in [affine, MatrixFormat::Dense(DType::BF16)] {
        let weights: Vec<_> = (0..5).map(|_| Weight::new(format, n, k, random)).collect();
        let ranges = [3..4, 0..3, 20..20, 4..60, 60..65];
        let x = random.values(65 * k);
        for &features in Features::all() {
            for precision in [Precision::F32, Precision::Reduced] {
                let mut outs: Vec<_> = ranges.iter().map(|rows| vec![7.0; rows.len() * n]).collect();
                let mut factors: Vec<_> = weights
                    .iter()
                    .zip(&ranges)
                    .zip(&mut outs)
                    .map(|((weight, rows), out)| Factor {
                        layout: &weight.layout,
                        weight: &weight.packed,
                        rows: rows.clone(),
                        out: RowsMut::new(out, rows.len(), n, n).unwrap(),
                    })
                    .collect();
                matmul(&Pool::new(3), features, precision, Rows::new(&x, 65, k, k).unwrap(), &mut factors).unwrap();
                for ((weight, rows), out) in weights.iter().zip(&ranges).zip(&outs) {
                    let alone = product(features, precision, weight, &x[rows.start * k..rows.end * k]);
                    assert!(*out == alone, "{format} {features} {precision:?}: rows {rows:?}");
                }
            }
        }
    }
}
