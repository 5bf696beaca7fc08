//! Products on every device against sums in f64 over the elements as the plain reader gives them.

use super::*;
use crate::quant::GgmlFormat;
use crate::testing::{Random, StoredMatrix, on_every_device, quantized_formats, rounded, values_of};

const PRECISIONS: [Precision; 3] =
    [Precision::F32, Precision::Reduced(Activation::I16), Precision::Reduced(Activation::I8)];

/// Each output, and how far a result may be from it.
fn reference(matrix: &StoredMatrix, x: &[f32], dtype: DType, precision: Precision) -> Vec<(f64, f64)> {
    let k = matrix.columns;
    let (elements, sizes) = (matrix.elements(), matrix.sizes());
    let rounding = match dtype {
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        _ => 0.0,
    };
    // What rounding activations may cost: to integers against the largest of a group, to bf16 against each.
    let (of_largest, of_each) = match precision {
        Precision::F32 => (0.0, 0.0),
        Precision::Reduced(Activation::I16) => (1.0 / 32639.0, 0.008),
        Precision::Reduced(Activation::I8) => (1.0 / 127.0, 0.008),
    };
    let mut all = Vec::new();
    for x in x.chunks(k) {
        let largest = x.iter().fold(0f64, |a, &x| a.max((x as f64).abs()));
        for (row, &size) in elements.chunks(k).zip(&sizes) {
            let (mut sum, mut slack) = (0.0, 1e-30);
            for (&x, &w) in x.iter().zip(row) {
                let (x, w) = (x as f64, w as f64);
                sum += x * w;
                slack += x.abs() * size as f64 * 1e-6 + w.abs() * largest * of_largest / 2.0 + (x * w).abs() * of_each;
            }
            let denormal = if dtype == DType::F16 { 6e-8 } else { 0.0 };
            all.push((sum, slack * 1.01 + sum.abs() * rounding + denormal));
        }
    }
    all
}

#[track_caller]
fn assert_products(name: &str, got: &[f32], wanted: &[(f64, f64)]) {
    assert_eq!(got.len(), wanted.len(), "{name}");
    for (i, (&got, &(wanted, slack))) in got.iter().zip(wanted).enumerate() {
        let close = (got as f64 - wanted).abs() <= slack;
        assert!(close, "{name}: output {i} of {} is {got}, wanted {wanted} ± {slack}", wanted.abs());
    }
}

/// Products of `matrix` with m rows, for each m, from and into views with gaps.
fn check_products(stream: &mut Stream, matrix: &StoredMatrix, dtype: DType, ms: &[usize], random: &mut Random) {
    let device = &stream.device().clone();
    let weight = Weight::new(&matrix.on(device)).unwrap();
    for &m in ms {
        let x = rounded(dtype, &random.values(m * matrix.columns));
        let xt = random.tensor(device, dtype, &x, [m, matrix.columns]);
        // Only the CPU rounds activations.
        let precisions = if device.as_cpu().is_some() { &PRECISIONS[..] } else { &PRECISIONS[..1] };
        for &precision in precisions {
            let out = random.tensor(device, dtype, &vec![7.0; m * matrix.rows], [m, matrix.rows]);
            matmul_into(stream, &xt, &weight, precision, &out).unwrap();
            let name = format!("{device:?} {weight:?}, {m} rows of {dtype}, {precision:?}");
            assert_products(&name, &values_of(stream, &out), &reference(matrix, &x, dtype, precision));
        }
    }
}

#[test]
fn every_format_of_odd_shapes() {
    on_every_device(|stream| {
        let random = &mut Random::new(1);
        for (i, format) in quantized_formats().into_iter().enumerate() {
            let MatrixFormat::Quantized(quantized, _) = format else { unreachable!("all are quantised") };
            let (n, groups) = [(1, 1), (17, 3), (33, 2), (15, 1)][i % 4];
            let matrix = StoredMatrix::random(format, n, groups * quantized.group_size(), random);
            check_products(stream, &matrix, DType::F32, [&[1, 7, 33], &[2, 31, 17]][i / 4 % 2], random);
        }
    });
}

#[test]
fn every_dtype_of_activations() {
    on_every_device(|stream| {
        let random = &mut Random::new(2);
        let affine = QuantFormat::Affine { bits: 4, group_size: 64 };
        for dtype in [DType::F16, DType::BF16] {
            for format in [
                MatrixFormat::Quantized(affine, dtype),
                MatrixFormat::Quantized(QuantFormat::Ggml(GgmlFormat::Q4_K), DType::F32),
            ] {
                // More columns than one turn of a simdgroup's lanes.
                let matrix = StoredMatrix::random(format, 19, 768, random);
                check_products(stream, &matrix, dtype, &[1, 3, 33], random);
            }
        }
    });
}

#[test]
fn dense_weights_of_any_size() {
    on_every_device(|stream| {
        let random = &mut Random::new(3);
        for dtype in DType::FLOATS {
            for (n, k) in [(1, 1), (15, 31), (17, 36), (33, 100), (5, 577), (65, 48)] {
                let matrix = StoredMatrix::random(MatrixFormat::Dense(dtype), n, k, random);
                check_products(stream, &matrix, dtype, &[1, 2, 7, 33, 65], random);
            }
        }
        let matrix = StoredMatrix::random(MatrixFormat::Dense(DType::BF16), 9, 70, random);
        check_products(stream, &matrix, DType::F32, &[1, 35], random);
    });
}
