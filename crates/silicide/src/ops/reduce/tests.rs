use proptest::prelude::*;

use super::*;
use crate::Device;
use crate::testing::{
    Golden, Random, assert_close, bytes_of, on_every_device, on_every_schedule, rounded, tensor_of, values_of,
};

const ALL: [Reduce; 5] = [Reduce::Sum, Reduce::Mean, Reduce::Max, Reduce::Min, Reduce::Prod];

/// The definition, and the size of what was added: of a product, what rounding each of its factors once comes to.
fn reference(op: Reduce, row: &[f32]) -> (f64, f64) {
    let row = row.iter().map(|&x| x as f64);
    let (nan, n) = (row.clone().any(f64::is_nan), row.len() as f64);
    let size = row.clone().map(f64::abs).sum::<f64>();
    match op {
        Reduce::Sum => (row.sum(), size),
        Reduce::Mean => (row.sum::<f64>() / n, size / n),
        Reduce::Prod => {
            let product = row.product::<f64>();
            (product, product.abs() * n / 6.0)
        }
        _ if nan => (f64::NAN, 0.0),
        Reduce::Max => (row.fold(f64::NEG_INFINITY, f64::max), 0.0),
        Reduce::Min => (row.fold(f64::INFINITY, f64::min), 0.0),
    }
}

fn assert_reduced(dtype: DType, op: Reduce, got: &[f32], rows: &[&[f32]]) {
    assert_eq!(got.len(), rows.len());
    for (&got, row) in got.iter().zip(rows) {
        let (want, size) = reference(op, row);
        // A product may pass the range of f16.
        let want = if dtype == DType::F16 { want.clamp(-7e4, 7e4) } else { want };
        assert_close(dtype, &[got], &[want], 0.1 * size);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn follows_the_definition(
        rows in 0usize..20,
        len in prop_oneof![Just(0usize), Just(1), Just(31), Just(33), Just(65), Just(256), Just(257), Just(1025)],
        dtype in 0usize..3,
        op in 0usize..5,
        (turned, all) in any::<(bool, bool)>(),
        seed: u64,
    ) {
        let (dtype, op) = (DType::FLOATS[dtype], ALL[op]);
        let extreme = matches!(op, Reduce::Max | Reduce::Min);
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            // Products of many stay near 1.
            let near = |x: f32| if op == Reduce::Prod { 1.0 + x * x.abs() / 64.0 } else { x };
            let x = rounded(dtype, &random.values(rows * len).into_iter().map(near).collect::<Vec<_>>());
            let xt = match turned {
                true => {
                    let columns: Vec<f32> = (0..rows * len).map(|i| x[i % rows * len + i / rows]).collect();
                    random.tensor(device, dtype, &columns, [len, rows]).permute(&[1, 0]).unwrap()
                }
                false => random.tensor(device, dtype, &x, [rows, len]),
            };
            if all {
                let result = reduce_all(stream, op, &xt);
                if extreme && x.is_empty() {
                    assert!(result.unwrap_err().to_string().contains("an extreme of"));
                } else {
                    let result = result.unwrap();
                    assert_eq!(result.rank(), 0);
                    assert_reduced(dtype, op, &values_of(stream, &result), &[&x]);
                }
                return;
            }
            let result = reduce(stream, op, &xt);
            if extreme && len == 0 {
                assert!(result.unwrap_err().to_string().contains("an extreme of"));
                return;
            }
            let parts: Vec<&[f32]> = (0..rows).map(|r| &x[r * len..(r + 1) * len]).collect();
            assert_reduced(dtype, op, &values_of(stream, &result.unwrap()), &parts);
        });
    }

    #[test]
    fn integers_wrap(len in prop_oneof![Just(1usize), Just(33), Just(20_000)], op in 0usize..4, signed: bool, seed: u64) {
        let op = [Reduce::Sum, Reduce::Max, Reduce::Min, Reduce::Prod][op];
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let x: Vec<u32> = (0..3 * len).map(|_| random.next() as u32 | 1).collect();
            let dtype = if signed { DType::I32 } else { DType::U32 };
            let xt = device.tensor_from_bytes(bytemuck::cast_slice(&x), dtype, [3, len]).unwrap();
            let fold = |row: &[u32]| {
                let values = row.iter().map(|&x| if signed { x as i32 as i64 } else { x as i64 });
                (match op {
                    Reduce::Sum => values.fold(0, i64::wrapping_add),
                    Reduce::Prod => values.fold(1, i64::wrapping_mul),
                    Reduce::Max => values.max().unwrap(),
                    _ => values.min().unwrap(),
                }) as u32
            };
            let y = reduce(stream, op, &xt).unwrap();
            let want: Vec<u32> = x.chunks(len).map(fold).collect();
            assert_eq!(bytes_of(stream, &y), bytemuck::cast_slice::<u32, u8>(&want));
            let y = reduce_all(stream, op, &xt).unwrap();
            assert_eq!(bytes_of(stream, &y), bytemuck::bytes_of(&fold(&x)));
        });
    }
}

/// Past what one threadgroup or one task takes; views with gaps, whose rows are reduced first.
#[test]
fn rows_of_any_length() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (i, len) in [16_384, 16_385, 65_537, 131_073].into_iter().enumerate() {
            let mut random = Random::new(i as u64);
            let x: Vec<f32> = random.values(2 * len).iter().map(|x| x.round()).collect();
            let dtype = DType::FLOATS[i % 3];
            let xt = random.tensor(device, dtype, &x, [2, len]);
            for op in [Reduce::Sum, Reduce::Mean, Reduce::Min] {
                let y = reduce(stream, op, &xt).unwrap();
                assert_reduced(dtype, op, &values_of(stream, &y), &[&x[..len], &x[len..]]);
                let y = reduce_all(stream, op, &xt).unwrap();
                assert_reduced(dtype, op, &values_of(stream, &y), &[&x]);
            }
        }
    });
}

#[test]
fn any_schedule_gives_the_same() {
    let x = Random::new(1).values(3 * 17_001);
    on_every_schedule(|stream| {
        let xt = Random::new(2).tensor(&stream.device().clone(), DType::F32, &x, [3, 17_001]);
        let y = reduce(stream, Reduce::Mean, &xt).unwrap();
        let rows: Vec<&[f32]> = x.chunks(17_001).collect();
        assert_reduced(DType::F32, Reduce::Mean, &values_of(stream, &y), &rows);
    });
}

#[test]
fn agrees_with_mlx_and_numpy() {
    let golden = Golden::read("reduce");
    let cases = golden.cases();
    assert_eq!(cases.len(), 13);
    let names = ["sum", "mean", "max", "min", "prod"];
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (case, _) in &cases {
            let x = golden.tensor(device, &format!("{case}.x"));
            for (name, op) in names.into_iter().zip(ALL) {
                if op == Reduce::Mean && !x.dtype().is_float() {
                    continue;
                }
                for all in [false, true] {
                    let name = format!("{case}.{}{name}", if all { "all_" } else { "" });
                    let got = if all { reduce_all(stream, op, &x) } else { reduce(stream, op, &x) }.unwrap();
                    if !x.dtype().is_float() || matches!(op, Reduce::Max | Reduce::Min) && !case.contains("edges") {
                        let want = golden.tensor(device, &name);
                        assert_eq!(got.shape(), want.shape(), "{name}");
                        assert_eq!(bytes_of(stream, &got), bytes_of(stream, &want), "{name}");
                        continue;
                    }
                    let sum = matches!(op, Reduce::Sum | Reduce::Mean);
                    let size = if sum { x.dim(-1) as f64 } else { 0.0 };
                    for name in [name.clone(), format!("{name}_exact")].iter().filter(|name| golden.has(name)) {
                        let want: Vec<f64> = golden.values(name).iter().map(|&w| w as f64).collect();
                        let want: Vec<f64> = match x.dtype() {
                            DType::F16 => want.iter().map(|w| w.clamp(-7e4, 7e4)).collect(),
                            _ => want,
                        };
                        assert_close(x.dtype(), &values_of(stream, &got), &want, 0.1 * size);
                    }
                }
            }
        }
    });
}

#[test]
fn extremes_keep_nan() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for at in [0, 1, 40, 299] {
            let mut x = Random::new(at as u64).values(300);
            x[at] = f32::NAN;
            x[(at + 100) % 300] = f32::INFINITY;
            let xt = tensor_of(device, DType::F32, &x, [300]);
            for op in ALL {
                for x in [&xt, &xt.slice(0, at..at + 1).unwrap()] {
                    let y = reduce(stream, op, x).unwrap();
                    assert!(values_of(stream, &y)[0].is_nan(), "{op:?}");
                }
            }
        }
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let ids = device.zeros(DType::I32, [3]).unwrap();
    let error = reduce(stream, Reduce::Mean, &ids).unwrap_err().to_string();
    assert_eq!(error, "reduce: a mean is not for i32; cast to a float first");
    let bytes = device.zeros(DType::U8, [3]).unwrap();
    assert!(reduce_all(stream, Reduce::Sum, &bytes).unwrap_err().to_string().contains("wanted f32, f16, bf16"));
    let scalar = device.zeros(DType::F32, []).unwrap();
    assert!(reduce(stream, Reduce::Sum, &scalar).unwrap_err().to_string().contains("one axis or more"));
    assert_eq!(reduce_all(stream, Reduce::Sum, &scalar).unwrap().to_vec::<f32>(stream).unwrap(), [0.0]);
}
