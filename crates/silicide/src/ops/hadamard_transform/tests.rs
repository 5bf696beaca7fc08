use proptest::prelude::*;

use super::*;
use crate::testing::{Golden, Random, assert_close, on_every_device, on_every_schedule, rounded, tensor_of, values_of};

/// The definition, in f64: signs around a product with Hadamard's matrix.
fn reference(x: &[f32], n: usize, before: Option<&[u32]>, after: Option<&[u32]>) -> Vec<f64> {
    let sign = |words: Option<&[u32]>, i: usize| match words {
        Some(words) if words[i / 32] >> (i % 32) & 1 == 1 => -1.0,
        _ => 1.0,
    };
    let element = |row: &[f32], i: usize| {
        let term = |(k, &x): (usize, &f32)| {
            let x = x as f64 * sign(before, k);
            if (i & k).count_ones() % 2 == 1 { -x } else { x }
        };
        row.iter().enumerate().map(term).sum::<f64>() / (n as f64).sqrt() * sign(after, i)
    };
    x.chunks(n).flat_map(|row| (0..n).map(move |i| element(row, i))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn follows_the_definition(
        rows in prop_oneof![Just(0usize), Just(1), Just(5), Just(33), Just(65), 1usize..12],
        log in 0u32..11,
        dtype in 0usize..3,
        seed: u64,
        (before, after, in_place, turned) in any::<(bool, bool, bool, bool)>(),
    ) {
        let (n, dtype) = (1usize << log, DType::FLOATS[dtype]);
        let rows = if n > 256 { rows.min(3) } else { rows };
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let x = rounded(dtype, &random.values(rows * n));
            let xt = match turned {
                // Rows whose elements are apart.
                true => {
                    let columns: Vec<f32> = (0..rows * n).map(|i| x[i % rows * n + i / rows]).collect();
                    tensor_of(device, dtype, &columns, [n, rows]).permute(&[1, 0]).unwrap()
                }
                false => random.tensor(device, dtype, &x, [rows, n]),
            };
            let signs = [before.then_some(seed), after.then_some(!seed)];
            let signs = signs.map(|seed| seed.map(|seed| hadamard_signs(device, n, seed).unwrap()));
            let words = signs.each_ref().map(|t| t.as_ref().map(|t| t.to_vec::<u32>(stream).unwrap()));
            let options = Hadamard { signs_before: signs[0].as_ref(), signs_after: signs[1].as_ref() };
            let out = if in_place { xt.clone() } else { stream.empty(dtype, [rows, n]).unwrap() };
            hadamard_transform_into(stream, &xt, options, &out).unwrap();
            let want = reference(&x, n, words[0].as_deref(), words[1].as_deref());
            assert_close(dtype, &values_of(stream, &out), &want, 2.0);
        });
    }
}

#[test]
fn any_schedule_gives_the_definition() {
    let (few, many) = (Random::new(1).values(7 * 8), Random::new(2).values(3 * 1024));
    let [few_want, many_want] = [(&few, 8), (&many, 1024)].map(|(x, n)| reference(x, n, None, None));
    on_every_schedule(|stream| {
        let device = &stream.device().clone();
        for (x, n, want) in [(&few, 8, &few_want), (&many, 1024, &many_want)] {
            let xt = Random::new(3).tensor(device, DType::F32, x, [x.len() / n, n]);
            hadamard_transform_into(stream, &xt, Hadamard::default(), &xt).unwrap();
            assert_close(DType::F32, &values_of(stream, &xt), want, 2.0);
        }
    });
}

/// Past 1024 elements too, where a thread an element would not be enough.
#[test]
fn is_its_own_inverse_at_every_length() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for log in 0..14 {
            let n = 1usize << log;
            let x = Random::new(log).values(2 * n);
            let xt = tensor_of(device, DType::F32, &x, [2, n]);
            let signs = hadamard_signs(device, n, 5).unwrap();
            let there = Hadamard { signs_before: Some(&signs), ..Default::default() };
            let back = Hadamard { signs_after: Some(&signs), ..Default::default() };
            let rotated = hadamard_transform(stream, &xt, there).unwrap();
            let norm = |x: &[f32]| x.iter().map(|&x| x as f64 * x as f64).sum::<f64>();
            let y = values_of(stream, &rotated);
            assert!((norm(&y) - norm(&x)).abs() < 1e-5 * norm(&x), "{n}");
            let again = hadamard_transform(stream, &rotated, back).unwrap();
            let want: Vec<f64> = x.iter().map(|&x| x as f64).collect();
            assert_close(DType::F32, &values_of(stream, &again), &want, 2.0);
        }
    });
}

#[test]
fn gives_a_column_of_the_matrix_for_each_element() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        // 4096 = 64^2, so that every step is exact.
        let n = 4096;
        for k in [0, 1, 31, 33, 513, 2048, 4095] {
            let mut x = vec![0.0; n];
            x[k] = 64.0;
            let y = hadamard_transform(stream, &tensor_of(device, DType::F16, &x, [n]), Hadamard::default()).unwrap();
            let want: Vec<f32> = (0..n).map(|i| if (i & k).count_ones() % 2 == 1 { -1.0 } else { 1.0 }).collect();
            assert_eq!(values_of(stream, &y), want, "column {k}");
        }
    });
}

#[test]
fn gives_what_mlx_gives() {
    let golden = Golden::read("hadamard_transform");
    assert_eq!(golden.cases().len(), 13);
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (case, _) in golden.cases() {
            let x = golden.tensor(device, &format!("{case}.x"));
            let got = hadamard_transform(stream, &x, Hadamard::default()).unwrap();
            let got = values_of(stream, &got);
            assert_close(x.dtype(), &got, &golden.exact_values(&format!("{case}.exact")), 4.0);
            let out: Vec<f64> = golden.exact_values(&format!("{case}.out"));
            // Both round once.
            let rounding = got.iter().zip(&out).map(|(a, b)| (*a as f64 - b).abs()).fold(0.0, f64::max);
            let unit = [1e-5, 4.0 / 1024.0, 4.0 / 128.0][DType::FLOATS.iter().position(|&d| d == x.dtype()).unwrap()];
            assert!(rounding <= 2.0 * unit, "{case}: {rounding}");
        }
    });
}

#[test]
fn spreads_nan_and_infinities_over_their_row_only() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for n in [2usize, 64, 2048] {
            let mut x = vec![1.0; 4 * n];
            x[n - 1] = f32::NAN;
            x[n + n / 2] = f32::NEG_INFINITY;
            x[2 * n] = f32::INFINITY;
            x[2 * n + 1] = f32::INFINITY;
            for dtype in DType::FLOATS {
                let xt = tensor_of(device, dtype, &x, [4, n]);
                let y = hadamard_transform(stream, &xt, Hadamard::default()).unwrap();
                let y = values_of(stream, &y);
                let rows: Vec<&[f32]> = y.chunks(n).collect();
                assert!(rows[0].iter().all(|y| y.is_nan()));
                assert!(rows[1].iter().all(|y| y.is_infinite()));
                assert!(rows[2].iter().all(|y| !y.is_finite()) && rows[2][1].is_nan());
                assert!(rows[3].iter().all(|y| y.is_finite()));
            }
        }
    });
}

#[test]
fn signs_are_those_of_their_seed_and_balanced() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let mut signs = |n, seed| hadamard_signs(&device, n, seed).unwrap().to_vec::<u32>(stream).unwrap();
    let long = signs(8192, 1);
    let ones: u32 = long.iter().map(|w| w.count_ones()).sum();
    assert!((3900..4300).contains(&ones), "{ones}");
    assert_eq!(signs(256, 1), long[..8]);
    assert_ne!(signs(256, 2), long[..8]);
    assert_eq!(signs(1, 1).len(), 1);
    // The generator's first outputs for seed 0, as its authors publish them.
    assert_eq!(signs(64, 0), [0xe220_a839, 0x6e78_9e6a]);
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let signs = hadamard_signs(&device, 64, 1).unwrap();
    let mut error = |dtype, n: usize, options: Hadamard| {
        let x = device.zeros(dtype, [2, n]).unwrap();
        hadamard_transform(stream, &x, options).unwrap_err().to_string()
    };
    assert_eq!(
        error(DType::F32, 24, Hadamard::default()),
        "hadamard_transform: x: got rows of 24, wanted a power of two up to 8192"
    );
    assert!(error(DType::F32, 16384, Hadamard::default()).contains("got rows of 16384"));
    assert!(error(DType::F32, 0, Hadamard::default()).contains("got rows of 0"));
    assert!(error(DType::I32, 64, Hadamard::default()).contains("wanted rows of f32, f16 or bf16"));
    let options = Hadamard { signs_after: Some(&signs), ..Default::default() };
    let message = "signs_after: got u32[2], wanted u32[4], contiguous: a bit for each of 128";
    assert!(error(DType::F32, 128, options).contains(message));
    assert!(hadamard_signs(&device, 100, 1).unwrap_err().to_string().contains("n: got 100"));
    // An output over the signs.
    let x = device.zeros(DType::F32, [64]).unwrap();
    let over = Tensor::new(x.buffer().clone(), 0, DType::U32, [2]).unwrap();
    let options = Hadamard { signs_before: Some(&over), ..Default::default() };
    let error = hadamard_transform_into(stream, &x, options, &x).unwrap_err().to_string();
    assert!(error.contains("memory of its own"), "{error}");
}
