use proptest::prelude::*;

use super::*;
use crate::testing::{Golden, Random, assert_close, on_every_device, on_every_schedule, rounded, tensor_of, values_of};
use crate::{DType, Device};

/// The definition, in f64.
fn reference(x: &[f32], weight: Option<&[f32]>, bias: Option<&[f32]>, dim: usize, eps: f64) -> Vec<f64> {
    let row = |row: &[f32]| {
        let mean = row.iter().map(|&v| v as f64).sum::<f64>() / dim as f64;
        let variance = row.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / dim as f64;
        let value = |i: usize| {
            let normal = (row[i] as f64 - mean) / (variance + eps).sqrt();
            normal * weight.map_or(1.0, |w| w[i] as f64) + bias.map_or(0.0, |b| b[i] as f64)
        };
        (0..dim).map(value).collect::<Vec<_>>()
    };
    x.chunks(dim).flat_map(row).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn follows_the_definition(
        rows in 0usize..5,
        dim in prop_oneof![Just(1usize), Just(31), Just(33), Just(65), Just(384), Just(1025), 2usize..300],
        dtype in 0usize..3,
        (wide, has_weight, has_bias, in_place) in any::<(bool, bool, bool, bool)>(),
        shift in prop_oneof![Just(0.0f32), Just(50.0)],
        seed: u64,
    ) {
        let dtype = DType::FLOATS[dtype];
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let x = rounded(dtype, &random.values(rows * dim).iter().map(|v| v + shift).collect::<Vec<_>>());
            let weight_dtype = if wide { DType::F32 } else { dtype };
            let (w, b) = (rounded(weight_dtype, &random.values(dim)), rounded(weight_dtype, &random.values(dim)));
            let xt = random.tensor(device, dtype, &x, [rows, dim]);
            let wt = has_weight.then(|| tensor_of(device, weight_dtype, &w, [dim]));
            let bt = has_bias.then(|| tensor_of(device, weight_dtype, &b, [dim]));
            let out = if in_place { xt.clone() } else { stream.empty(dtype, [rows, dim]).unwrap() };
            layer_norm_into(stream, &xt, wt.as_ref(), bt.as_ref(), 1e-3, &out).unwrap();
            let want = reference(&x, has_weight.then_some(&w), has_bias.then_some(&b), dim, 1e-3);
            // The mean of values near 50 is good to 50 units of f32, and is divided by the deviation.
            assert_close(dtype, &values_of(stream, &out), &want, 2.0 + shift as f64);
        });
    }
}

/// Rows of vision models, which a simdgroup holds, and more rows than ask for weights early.
#[test]
fn rows_that_a_simdgroup_holds_and_many_of_them() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (rows, dim, weighs) in [(3, 1152, true), (3, 1152, false), (2050, 264, true), (2050, 264, false)] {
            let mut random = Random::new(7);
            let x = rounded(DType::BF16, &random.values(rows * dim).iter().map(|v| v + 5.0).collect::<Vec<_>>());
            let [w, b] = [0, 1].map(|_| rounded(DType::BF16, &random.values(dim)));
            let tensor = |values: &[f32], shape: [usize; 2]| tensor_of(device, DType::BF16, values, shape);
            let [wt, bt] = [&w, &b].map(|v| weighs.then(|| tensor(v, [1, dim]).reshape([dim]).unwrap()));
            let xt = tensor(&x, [rows, dim]);
            layer_norm_into(stream, &xt, wt.as_ref(), bt.as_ref(), 1e-5, &xt).unwrap();
            let want = reference(&x, weighs.then_some(&w), weighs.then_some(&b), dim, 1e-5);
            assert_close(DType::BF16, &values_of(stream, &xt), &want, 2.0);
        }
    });
}

#[test]
fn any_schedule_gives_the_definition() {
    let x = Random::new(1).values(3 * 1025);
    let (w, b) = (Random::new(2).values(1025), Random::new(3).values(1025));
    on_every_schedule(|stream| {
        let device = &stream.device().clone();
        let xt = Random::new(4).tensor(device, DType::F32, &x, [3, 1025]);
        let [wt, bt] = [&w, &b].map(|v| tensor_of(device, DType::F32, v, [1025]));
        layer_norm_into(stream, &xt, Some(&wt), Some(&bt), 1e-5, &xt).unwrap();
        let want = reference(&x, Some(&w), Some(&b), 1025, 1e-5);
        assert_close(DType::F32, &values_of(stream, &xt), &want, 2.0);
    });
}

#[test]
fn agrees_with_mlx() {
    let golden = Golden::read("layer_norm");
    let names: Vec<String> = golden.names().iter().filter_map(|n| n.strip_suffix(".x").map(String::from)).collect();
    assert_eq!(names.len(), 12);
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for case in &names {
            let part = |name: &str| {
                let name = format!("{case}.{name}");
                golden.has(&name).then(|| golden.tensor(device, &name))
            };
            let (x, weight, bias) = (part("x").unwrap(), part("weight"), part("bias"));
            let y = layer_norm(stream, &x, weight.as_ref(), bias.as_ref(), 1e-5).unwrap();
            let want: Vec<f64> = golden.values(&format!("{case}.exact")).iter().map(|&v| v as f64).collect();
            assert_close(x.dtype(), &values_of(stream, &y), &want, 1.0);
        }
    });
}

#[test]
fn keeps_nan_and_infinity_in_their_rows() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let x = device.tensor(&[1.0, f32::NAN, 1.0, f32::INFINITY, 3.0, 5.0], [3, 2]).unwrap();
        let y = layer_norm(stream, &x, None, None, 0.0).unwrap().to_vec::<f32>(stream).unwrap();
        assert!(y[..4].iter().all(|y| y.is_nan()));
        assert_eq!(y[4..], [-1.0, 1.0]);
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let x = device.zeros(DType::F16, [2, 4]).unwrap();
    let (w, b) = (device.zeros(DType::F32, [4]).unwrap(), device.zeros(DType::F16, [4]).unwrap());
    let error = layer_norm(stream, &x, Some(&w), Some(&b), 1e-5).unwrap_err().to_string();
    assert_eq!(error, "layer_norm: bias: got f16, wanted f32 as the weight is");
    let short = device.zeros(DType::F32, [3]).unwrap();
    assert!(layer_norm(stream, &x, None, Some(&short), 1e-5).unwrap_err().to_string().contains("wanted [4]"));
    assert!(layer_norm(stream, &x, None, None, -1.0).unwrap_err().to_string().contains("eps"));
}
