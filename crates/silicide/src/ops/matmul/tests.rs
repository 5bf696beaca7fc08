//! Products on every device against sums in f64 over the elements as the plain reader gives them.

use proptest::prelude::*;

use super::*;
use crate::DeviceKind;
use crate::quant::{GgmlFormat, QuantFormat};
use crate::testing::{
    Golden, Random, StoredMatrix, on_every_device, on_every_schedule, quantized_formats, rounded, values_of,
};

pub(in crate::ops) const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Reduced];

#[test]
fn a_tensor_is_a_matrix() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let all = device.tensor(&(0..96).map(|i| i as f32).collect::<Vec<_>>(), [3, 32]).unwrap();
        let x = device.tensor(&[1.0f32; 32], [1, 32]).unwrap();
        let weight = Weight::new(&Matrix::from_tensor(&all.slice(0, 1..3).unwrap()).unwrap()).unwrap();
        let sums = matmul(stream, &x, &weight, Precision::F32).unwrap().to_vec::<f32>(stream).unwrap();
        assert_eq!(sums, [1520.0, 2544.0]);

        let refused = |tensor: Tensor, why: &str| {
            let message = Matrix::from_tensor(&tensor).unwrap_err().to_string();
            assert!(message.contains(why), "{message}");
        };
        refused(all.slice(1, 0..8).unwrap(), "contiguous");
        refused(all.reshape([96]).unwrap(), "[rows, columns]");
        refused(device.tensor(&[1i32, 2], [1, 2]).unwrap(), "wanted f32");
        let odd = all.reshape([1, 96]).unwrap().slice(1, 1..9).unwrap();
        match device.kind() {
            crate::DeviceKind::Cpu => assert!(Matrix::from_tensor(&odd).is_ok()),
            _ => refused(odd, "a multiple of 16"),
        }
    });
}

/// Each output, and how far a result may be from it.
pub(in crate::ops) fn reference(
    matrix: &StoredMatrix,
    x: &[f32],
    dtype: DType,
    precision: Precision,
) -> Vec<(f64, f64)> {
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
        Precision::Reduced => (1.0 / 32639.0, 0.008),
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
pub(in crate::ops) fn assert_products(name: &str, got: &[f32], wanted: &[(f64, f64)]) {
    assert_eq!(got.len(), wanted.len(), "{name}");
    for (i, (&got, &(wanted, slack))) in got.iter().zip(wanted).enumerate() {
        let close = (got as f64 - wanted).abs() <= slack;
        assert!(close, "{name}: output {i} is {got}, wanted {wanted} ± {slack}");
    }
}

/// Products of `matrix` with m rows, for each m, from and into views with gaps.
pub(super) fn check_products(
    stream: &mut Stream,
    matrix: &StoredMatrix,
    dtype: DType,
    ms: &[usize],
    random: &mut Random,
) {
    for &m in ms {
        let x = random.values(m * matrix.columns);
        check_products_with(stream, matrix, dtype, &x, random);
    }
}

/// Products of `matrix` with the rows `x`.
pub(super) fn check_products_with(
    stream: &mut Stream,
    matrix: &StoredMatrix,
    dtype: DType,
    x: &[f32],
    random: &mut Random,
) {
    let device = &stream.device().clone();
    let weight = Weight::new(&matrix.on(device)).unwrap();
    // Only the CPU rounds activations, and NVIDIA's tensor cores weights.
    let rounds = device.kind() == DeviceKind::Cpu || device.takes_nvidia_kernels();
    let precisions = if rounds { &PRECISIONS[..] } else { &PRECISIONS[..1] };
    // NVIDIA GPUs have forms of their own for rows that vectors fit.
    let units = if device.takes_nvidia_kernels() { vec![1, 8] } else { vec![[1, 8][random.below(2)]] };
    let (x, m) = (rounded(dtype, x), x.len() / matrix.columns);
    for &precision in precisions {
        let wanted = reference(matrix, &x, dtype, precision);
        for &unit in &units {
            let xt = random.tensor_by(unit, device, dtype, &x, [m, matrix.columns]);
            let out = random.tensor_by(unit, device, dtype, &vec![7.0; m * matrix.rows], [m, matrix.rows]);
            matmul_into(stream, &xt, &weight, precision, &out).unwrap();
            let name = format!("{device:?} {weight:?}, {m} rows of {dtype} by {unit}, {precision:?}");
            assert_products(&name, &values_of(stream, &out), &wanted);
        }
    }
}

#[test]
fn every_format_of_odd_shapes() {
    on_every_device(|stream| {
        let random = &mut Random::new(1);
        for (i, format) in quantized_formats().into_iter().enumerate() {
            let MatrixFormat::Quantized(quantized, _) = format else { unreachable!("all are quantised") };
            // A row has one group at least. Few rows of x and many go different ways, and so does one.
            let (n, groups) = [(1, 1), (17, 3), (33, 2), (15, 1)][i % 4];
            let matrix = StoredMatrix::random(format, n, groups * quantized.group_size(), random);
            check_products(stream, &matrix, DType::F32, [&[1, 8, 33], &[1, 2, 17], &[1, 5, 31]][i % 3], random);
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_shape(
        m in prop_oneof![Just(0usize), Just(1), Just(31), Just(33), Just(65), 1usize..40],
        n in prop_oneof![Just(1usize), Just(31), Just(33), Just(65), 1usize..80],
        k in prop_oneof![Just(1usize), Just(31), Just(33), Just(65), 1usize..300],
        kind in 0usize..6,
        dtype in 0usize..3,
        seed: u64,
    ) {
        let affine = |bits, group_size| QuantFormat::Affine { bits, group_size };
        let format = match kind {
            0..3 => MatrixFormat::Dense(DType::FLOATS[kind]),
            3 => MatrixFormat::Quantized(affine(4, 64), DType::BF16),
            4 => MatrixFormat::Quantized(affine(6, 32), DType::F16),
            _ => MatrixFormat::Quantized(QuantFormat::Ggml(GgmlFormat::Q8_0), DType::F32),
        };
        let k = if let MatrixFormat::Quantized(format, _) = format { k.next_multiple_of(format.group_size()) } else { k };
        // One type of activations a format: each pair is a kernel that is compiled.
        let dtype = if kind == 2 { DType::FLOATS[dtype] } else { DType::FLOATS[kind % 3] };
        on_every_device(|stream| {
            let random = &mut Random::new(seed);
            let matrix = StoredMatrix::random(format, n, k, random);
            check_products(stream, &matrix, dtype, &[m], random);
        });
    }
}

#[test]
fn any_schedule_gives_the_product() {
    let affine = QuantFormat::Affine { bits: 4, group_size: 32 };
    for format in [MatrixFormat::Quantized(affine, DType::BF16), MatrixFormat::Dense(DType::F16)] {
        on_every_schedule(|stream| {
            let random = &mut Random::new(8);
            let matrix = StoredMatrix::random(format, 17, 96, random);
            check_products(stream, &matrix, DType::F32, &[1, 5, 33], random);
        });
    }
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

/// The products that mlx (for affine, in f32 throughout) and gguf-py's elements give.
#[test]
fn products_of_mlx_and_gguf_py() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for file in ["quantized_matmul", "gguf_blocks"] {
            let golden = Golden::read(file);
            let x = golden.tensor(device, "shared.x");
            for (case, matrix) in golden.matrices() {
                if !golden.has(&format!("{case}.out")) {
                    continue;
                }
                let weight = Weight::new(&matrix.on(device)).unwrap();
                let out = matmul(stream, &x, &weight, Precision::F32).unwrap();
                let slack = reference(&matrix, &golden.values("shared.x"), DType::F32, Precision::F32);
                let wanted = golden.values(&format!("{case}.out"));
                // The script stored its sums as f32.
                let wanted =
                    wanted.iter().zip(slack).map(|(&out, (_, slack))| (out as f64, slack + 1e-7 * out.abs() as f64));
                assert_products(&case, &values_of(stream, &out), &wanted.collect::<Vec<_>>());
            }
        }
    });
}

#[test]
fn a_row_does_not_depend_on_its_company() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let random = &mut Random::new(4);
        let affine = QuantFormat::Affine { bits: 4, group_size: 32 };
        for format in [MatrixFormat::Quantized(affine, DType::F32), MatrixFormat::Dense(DType::F32)] {
            let matrix = StoredMatrix::random(format, 21, 32 * 19, random);
            let weight = Weight::new(&matrix.on(device)).unwrap();
            let x = random.values(67 * matrix.columns);
            let x = random.tensor(device, DType::F32, &x, [67, matrix.columns]);
            let mut product = |rows: std::ops::Range<usize>| {
                let out = matmul(stream, &x.slice(0, rows).unwrap(), &weight, Precision::F32).unwrap();
                out.to_vec::<f32>(stream).unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            // A GPU has one order of sums for few rows and another for many.
            for (all, some) in [(0..16, [0..1, 5..6, 14..16, 3..10]), (0..67, [0..17, 31..67, 13..50, 1..34])] {
                let of_all = product(all.clone());
                for rows in some {
                    let same = product(rows.clone()) == of_all[rows.start * 21..rows.end * 21];
                    assert!(same, "{device:?} {weight:?}: rows {rows:?} differ from the same of {all:?}");
                }
            }
        }
    });
}

#[test]
fn several_weights_at_once_are_as_one_each() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let random = &mut Random::new(9);
        let affine = |bits| MatrixFormat::Quantized(QuantFormat::Affine { bits, group_size: 64 }, DType::F32);
        let ggml = |format| MatrixFormat::Quantized(QuantFormat::Ggml(format), DType::F32);
        let dense = MatrixFormat::Dense(DType::BF16);
        let k = 256;
        // Of one format; of formats whose activations are encoded alike, otherwise, and not at all; with no rows.
        for formats in [
            [(affine(4), 64), (affine(4), 17), (affine(4), 1)],
            [(dense, 264), (dense, 8), (dense, 136)],
            [(ggml(GgmlFormat::Q4_K), 33), (ggml(GgmlFormat::Q6_K), 31), (dense, 65)],
            [(affine(8), 33), (dense, 0), (affine(4), 31)],
        ] {
            let weights =
                formats.map(|(format, n)| Weight::new(&StoredMatrix::random(format, n, k, random).on(device)).unwrap());
            let few = [(0, DType::F32), (1, DType::F32), (1, DType::BF16), (5, DType::F16), (33, DType::F32)];
            for (m, dtype) in few.into_iter().chain([(130, DType::BF16)]) {
                let x = rounded(dtype, &random.values(m * k));
                let x = random.tensor(device, dtype, &x, [m, k]);
                for precision in PRECISIONS {
                    let joined = matmul_each(stream, &x, [&weights[0], &weights[1], &weights[2]], precision).unwrap();
                    for (weight, joined) in weights.iter().zip(&joined) {
                        let alone = matmul(stream, &x, weight, precision).unwrap();
                        let name = format!("{device:?} {weight:?}, {m} rows of {dtype}, {precision:?}");
                        assert_eq!(joined.shape(), alone.shape(), "{name}");
                        assert_eq!(values_of(stream, joined), values_of(stream, &alone), "{name}");
                    }
                }
            }
        }
    });
}

#[test]
fn nan_and_infinity_stay_in_their_row() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let random = &mut Random::new(5);
        let affine = QuantFormat::Affine { bits: 8, group_size: 64 };
        // Rows of 48 end within a tile of those who stage 32 columns at a time.
        for (format, k) in [
            (MatrixFormat::Quantized(affine, DType::F32), 192),
            (MatrixFormat::Dense(DType::BF16), 192),
            (MatrixFormat::Dense(DType::BF16), 48),
        ] {
            let n = 20;
            let weight = Weight::new(&StoredMatrix::random(format, n, k, random).on(device)).unwrap();
            for m in [3, 40] {
                let mut x = random.values(m * k);
                x[k + 5] = f32::NAN;
                x[2 * k + 20] = f32::INFINITY;
                let x = device.tensor(&x, [m, k]).unwrap();
                let out = matmul(stream, &x, &weight, Precision::F32).unwrap().to_vec::<f32>(stream).unwrap();
                assert!(out[n..2 * n].iter().all(|x| x.is_nan()), "{weight:?}, {m} rows: NaN");
                assert!(out[2 * n..3 * n].iter().all(|x| !x.is_finite()), "{weight:?}, {m} rows: infinity");
                let others = out[..n].iter().chain(&out[3 * n..]);
                assert!(others.copied().all(f32::is_finite), "{weight:?}, {m} rows: the others");
            }
        }
    });
}

#[test]
fn nothing_to_compute() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let random = &mut Random::new(6);
        let format = MatrixFormat::Dense(DType::F32);
        for (m, n, k) in [(0, 3, 4), (2, 3, 0), (40, 3, 0)] {
            let weight = Weight::new(&StoredMatrix::random(format, n, k, random).on(device)).unwrap();
            let x = device.zeros(DType::F32, [m, k]).unwrap();
            // Over what was there before.
            let out = device.tensor(&vec![7.0f32; m * n], [m, n]).unwrap();
            matmul_into(stream, &x, &weight, Precision::F32, &out).unwrap();
            assert_eq!(out.to_vec::<f32>(stream).unwrap(), vec![0.0; m * n]);
        }
    });
}

/// D-09: a cast, a product and a cast wait for one another without a word of the caller's.
#[test]
fn d_09_casts_around_a_product_are_ordered_by_the_stream() {
    let affine = MatrixFormat::Quantized(QuantFormat::Affine { bits: 4, group_size: 32 }, DType::BF16);
    let matrix = StoredMatrix::random(affine, 17, 96, &mut Random::new(10));
    let x = rounded(DType::BF16, &Random::new(11).values(2 * 96));
    let want = reference(&matrix, &x, DType::BF16, Precision::F32);
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let weight = Weight::new(&matrix.on(device)).unwrap();
        let xt = device.tensor(&x, [2, 96]).unwrap();
        let product = |s: &mut Stream| {
            let x = crate::ops::cast(s, &xt, DType::BF16)?;
            let y = matmul(s, &x, &weight, Precision::F32)?;
            crate::ops::cast(s, &y, DType::F32)
        };
        let now = product(stream).unwrap();
        assert_products("launched", &values_of(stream, &now), &want);
        let (plan, out) = stream.record(product).unwrap();
        assert!(plan.barriers() >= 2, "{} barriers", plan.barriers());
        stream.replay(&plan).unwrap();
        assert_products("replayed", &values_of(stream, &out), &want);
    });
}

/// D-12: scales are read by their type, for one row and for many, and x keeps its digits; groups of sizes that are none are
/// refused. Every width with every size is in `every_format_of_odd_shapes`.
#[test]
fn d_12_scales_of_every_type_in_groups_of_every_size() {
    on_every_device(|stream| {
        let random = &mut Random::new(12);
        for (i, scales) in DType::FLOATS.into_iter().enumerate() {
            for bits in [4, 6] {
                let format = QuantFormat::Affine { bits, group_size: [32, 64, 128][i] };
                let matrix = StoredMatrix::random(MatrixFormat::Quantized(format, scales), 9, 384, random);
                check_products(stream, &matrix, DType::F32, &[1, 33], random);
            }
        }
        let bytes = crate::formats::Mapped::copy_from(&[0; 4096]).unwrap();
        for (group_size, k) in [(0, 64), (1, 64), (16, 64), (64, 96)] {
            let format = MatrixFormat::Quantized(QuantFormat::Affine { bits: 4, group_size }, DType::F16);
            let scales = bytes.slice(0..k / usize::from(group_size).max(1) * 2).unwrap();
            let codes = bytes.slice(0..k / 2).unwrap();
            let result = Matrix::new(&stream.device().clone(), format, 1, k, &codes, Some(&scales), Some(&scales));
            assert!(result.is_err(), "groups of {group_size} in rows of {k}");
        }
    });
}

/// D-14: odd numbers of rows write their rows and nothing beside them.
#[test]
fn d_14_odd_numbers_of_rows_stay_within_their_output() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let random = &mut Random::new(13);
        for format in [GgmlFormat::Q6_K, GgmlFormat::Q4_0, GgmlFormat::Q8_0] {
            for n in [1, 33] {
                let stored = MatrixFormat::Quantized(QuantFormat::Ggml(format), DType::F32);
                let matrix = StoredMatrix::random(stored, n, 256, random);
                let weight = Weight::new(&matrix.on(device)).unwrap();
                for m in [1, 3, 33] {
                    let x = random.values(m * 256);
                    let whole = device.tensor(&vec![7.0f32; m * (n + 3)], [m, n + 3]).unwrap();
                    let out = whole.slice(1, 0..n).unwrap();
                    let xt = device.tensor(&x, [m, 256]).unwrap();
                    matmul_into(stream, &xt, &weight, Precision::F32, &out).unwrap();
                    let wanted = reference(&matrix, &x, DType::F32, Precision::F32);
                    assert_products(&format!("{format:?}, {n} by {m}"), &values_of(stream, &out), &wanted);
                    let beside = whole.slice(1, n..n + 3).unwrap();
                    assert!(values_of(stream, &beside).iter().all(|&y| y == 7.0), "{format:?}, {n} by {m}");
                }
            }
        }
    });
}

/// D-15: rows of dense weights whose length is no multiple of 4 are summed to their last element.
#[test]
fn d_15_rows_of_any_length_are_summed_to_their_end() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for dtype in DType::FLOATS {
            for k in [1, 2, 3, 5, 33, 127, 130] {
                // Each row of the weight takes one of the last four elements of x, which every type holds exactly.
                let row = |n: usize| (0..k).map(move |i| if i + n == k { 1.0 } else { 0.0 });
                let elements: Vec<f32> = (1..=4.min(k)).flat_map(row).collect();
                let rows = elements.len() / k;
                let weights = crate::testing::tensor_of(device, dtype, &elements, [rows, k]);
                let weight = Weight::new(&Matrix::from_tensor(&weights).unwrap()).unwrap();
                for m in [1, 2, 33] {
                    let x: Vec<f32> = (0..m * k).map(|i| (i % 251) as f32).collect();
                    let xt = device.tensor(&x, [m, k]).unwrap();
                    let got = matmul(stream, &xt, &weight, Precision::F32).unwrap().to_vec::<f32>(stream).unwrap();
                    let want: Vec<f32> = x.chunks(k).flat_map(|x| (1..=rows).map(|n| x[k - n])).collect();
                    assert_eq!(got, want, "{dtype}, rows of {k}, {m} of x");
                }
            }
        }
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let matrix = StoredMatrix::random(MatrixFormat::Dense(DType::F32), 3, 4, &mut Random::new(7));
    let weight = Weight::new(&matrix.on(&device)).unwrap();
    let mut message = |x: DType, shape: [usize; 2], out: DType, out_shape: [usize; 2]| {
        let (x, out) = (device.zeros(x, shape).unwrap(), device.zeros(out, out_shape).unwrap());
        matmul_into(stream, &x, &weight, Precision::F32, &out).unwrap_err().to_string()
    };
    assert_eq!(message(DType::F32, [2, 5], DType::F32, [2, 3]), "matmul: x: got f32[2, 5], wanted floats [.., 4]");
    assert_eq!(message(DType::U32, [2, 4], DType::U32, [2, 3]), "matmul: x: got u32[2, 4], wanted floats [.., 4]");
    assert_eq!(message(DType::F32, [2, 4], DType::F16, [2, 3]), "matmul: out: got f16[2, 3], wanted f32 [2, 3]");
    assert_eq!(message(DType::F32, [2, 4], DType::F32, [1, 3]), "matmul: out: got f32[1, 3], wanted f32 [2, 3]");

    let x = device.zeros(DType::F32, [2, 4]).unwrap();
    let narrow = StoredMatrix::random(MatrixFormat::Dense(DType::F32), 3, 5, &mut Random::new(7));
    let narrow = Weight::new(&narrow.on(&device)).unwrap();
    let error = matmul_each(stream, &x, [&weight, &narrow], Precision::F32).unwrap_err().to_string();
    assert_eq!(error, "matmul: x: got f32[2, 4], wanted floats [.., 5]");
    let elsewhere = Weight::new(&matrix.on(&Device::cpu())).unwrap();
    let error = matmul(stream, &x, &elsewhere, Precision::F32).unwrap_err().to_string();
    assert!(error.starts_with("matmul: weight: it is on device"), "{error}");
}
