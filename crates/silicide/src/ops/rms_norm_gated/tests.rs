use proptest::prelude::*;

use super::*;
use crate::testing::{Golden, Random, assert_close, on_every_device, on_every_schedule, rounded, tensor_of, values_of};
use crate::{DType, Device};

/// The definition, in f64.
fn reference(x: &[f32], gate: &[f32], weight: &[f32], eps: f64) -> Vec<f64> {
    let dim = weight.len();
    let rows = x.chunks(dim).zip(gate.chunks(dim));
    rows.flat_map(|(x, gate)| {
        let mean = x.iter().map(|&v| v as f64 * v as f64).sum::<f64>() / dim as f64;
        let scale = 1.0 / (mean + eps).sqrt();
        let gates = gate.iter().map(|&z| z as f64 / (1.0 + (-z as f64).exp()));
        x.iter().zip(weight).zip(gates).map(move |((&v, &w), g)| v as f64 * scale * w as f64 * g).collect::<Vec<_>>()
    })
    .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn follows_the_definition(
        (tokens, heads) in (0usize..4, 1usize..4),
        dim in prop_oneof![Just(1), Just(31), Just(33), Just(65), Just(128), Just(1025)],
        dtype in 0usize..3,
        wide: bool,
        over in 0..3usize,
        seed: u64,
    ) {
        let dtype = DType::FLOATS[dtype];
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let x = rounded(dtype, &random.values(tokens * heads * dim));
            let weight_dtype = if wide { DType::F32 } else { dtype };
            let w = rounded(weight_dtype, &random.values(dim));
            // The gates lie inside the rows of a fused projection.
            let fused = rounded(dtype, &random.values(tokens * (heads * dim + 5)).iter().map(|v| v * 4.0).collect::<Vec<_>>());
            let z: Vec<f32> = fused.chunks(heads * dim + 5).flat_map(|row| row[3..][..heads * dim].to_vec()).collect();
            let whole = tensor_of(device, dtype, &fused, [tokens, heads * dim + 5]);
            let zt = whole.slice(1, 3..3 + heads * dim).unwrap().reshape([tokens, heads, dim]).unwrap();
            let xt = random.tensor(device, dtype, &x, [tokens, heads, dim]);
            let wt = tensor_of(device, weight_dtype, &w, [dim]);
            let out = [xt.clone(), zt.clone(), stream.empty(dtype, [tokens, heads, dim]).unwrap()][over].clone();
            rms_norm_gated_into(stream, &xt, &zt, &wt, 1e-5, &out).unwrap();
            assert_close(dtype, &values_of(stream, &out), &reference(&x, &z, &w, 1e-5), 1.0);
        });
    }
}

#[test]
fn any_schedule_gives_the_definition() {
    let (x, z, w) = (Random::new(1).values(3 * 1025), Random::new(2).values(3 * 1025), Random::new(3).values(1025));
    on_every_schedule(|stream| {
        let device = &stream.device().clone();
        let xt = Random::new(4).tensor(device, DType::F32, &x, [3, 1025]);
        let zt = Random::new(5).tensor(device, DType::F32, &z, [3, 1025]);
        let wt = tensor_of(device, DType::F32, &w, [1025]);
        rms_norm_gated_into(stream, &xt, &zt, &wt, 1e-6, &xt).unwrap();
        assert_close(DType::F32, &values_of(stream, &xt), &reference(&x, &z, &w, 1e-6), 1.0);
    });
}

#[test]
fn agrees_with_transformers_and_mlx_lm() {
    let golden = Golden::read("rms_norm_gated");
    let cases = golden.cases();
    assert_eq!(cases.len(), 9);
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (case, p) in &cases {
            let tensor = |name: &str| golden.tensor(device, &format!("{case}.{name}"));
            let (x, eps) = (tensor("x"), p["eps"].as_f64().unwrap() as f32);
            let y = rms_norm_gated(stream, &x, &tensor("gate"), &tensor("weight"), eps).unwrap();
            let exact = golden.exact_values(&format!("{case}.exact"));
            assert_close(x.dtype(), &values_of(stream, &y), &exact, 1.0);
        }
    });
}

#[test]
fn keeps_nan_and_infinity_in_their_rows() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let x = device.tensor(&[1.0, f32::NAN, 1.0, f32::INFINITY, 3.0, 4.0, 3.0, 4.0], [4, 2]).unwrap();
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        let z = device.tensor(&[1.0, 1.0, 1.0, 1.0, nan, 1.0, inf, -80.0], [4, 2]).unwrap();
        let w = device.tensor(&[1.0f32, 1.0], [2]).unwrap();
        let y = rms_norm_gated(stream, &x, &z, &w, 0.0).unwrap().to_vec::<f32>(stream).unwrap();
        assert!(y[0].is_nan() && y[1].is_nan());
        assert!(y[2] == 0.0 && y[3].is_nan());
        assert!(y[4].is_nan() && y[5].is_finite());
        assert!(y[6] == inf && y[7].abs() < 1e-32);
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let x = device.zeros(DType::F16, [2, 4]).unwrap();
    let w = device.zeros(DType::F16, [3]).unwrap();
    let error = rms_norm_gated(stream, &x, &x, &w, 1e-5).unwrap_err().to_string();
    assert_eq!(error, "rms_norm_gated: weight: got f16[3], wanted [4], contiguous");
    let w = device.zeros(DType::BF16, [4]).unwrap();
    let error = rms_norm_gated(stream, &x, &x, &w, 1e-5).unwrap_err().to_string();
    assert!(error.contains("weight: got bf16, wanted f16 or f32"));
    let z = device.zeros(DType::F32, [2, 4]).unwrap();
    let error = rms_norm_gated(stream, &x, &z, &w, 1e-5).unwrap_err().to_string();
    assert!(error.contains("gate: got f32[2, 4], wanted f16[2, 4]"));
}
