use proptest::prelude::*;

use super::*;
use crate::DType;
use crate::testing::{Golden, Random, assert_close, on_every_device, on_every_schedule, rounded, tensor_of, values_of};

/// The definition, in f64.
fn reference(x: &[f32], weight: &[f32], offset: f64, eps: f64) -> Vec<f64> {
    let dim = weight.len();
    x.chunks(dim)
        .flat_map(|row| {
            let mean = row.iter().map(|&v| v as f64 * v as f64).sum::<f64>() / dim as f64;
            let scale = 1.0 / (mean + eps).sqrt();
            row.iter().zip(weight).map(move |(&v, &w)| v as f64 * scale * (w as f64 + offset)).collect::<Vec<_>>()
        })
        .collect()
}

fn dim() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1), Just(31), Just(33), Just(65), Just(576), Just(1025), 1usize..300]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn follows_the_definition(rows in 0usize..5, dim in dim(), seed: u64, dtype in 0usize..3, wide: bool, offset in 0..2) {
        let dtype = DType::FLOATS[dtype];
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let x = rounded(dtype, &random.values(rows * dim));
            let weight_dtype = if wide { DType::F32 } else { dtype };
            let w = rounded(weight_dtype, &random.values(dim));
            let xt = random.tensor(device, dtype, &x, [rows, dim]);
            let wt = tensor_of(device, weight_dtype, &w, [dim]);
            let out = stream.empty(dtype, [rows, dim]).unwrap();
            let options = RmsNormOptions { weight: Some(&wt), weight_offset: offset as f32, eps: 1e-5, residual: None, sum: None };
            rms_norm_with(stream, &xt, options, &out).unwrap();
            let want = reference(&x, &w, offset as f64, 1e-5);
            assert_close(dtype, &values_of(stream, &out), &want, 1.0);
        });
    }

    #[test]
    fn adds_the_residual_first_and_may_write_in_place(rows in 1usize..4, dim in dim(), seed: u64, dtype in 0usize..3) {
        let dtype = DType::FLOATS[dtype];
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let x = rounded(dtype, &random.values(rows * dim));
            let r = rounded(dtype, &random.values(rows * dim));
            let xt = random.tensor(device, dtype, &x, [rows, dim]);
            let rt = random.tensor(device, dtype, &r, [rows, dim]);
            let sum = rounded(dtype, &x.iter().zip(&r).map(|(a, b)| a + b).collect::<Vec<_>>());
            let options = RmsNormOptions { weight: None, weight_offset: 0.0, eps: 1e-6, residual: Some(&rt), sum: Some(&rt) };
            rms_norm_with(stream, &xt, options, &xt).unwrap();
            assert_eq!(values_of(stream, &rt), sum);
            assert_close(dtype, &values_of(stream, &xt), &reference(&sum, &vec![1.0; dim], 0.0, 1e-6), 1.0);
        });
    }
}

/// D-05: rows of real hidden sizes, longer than a threadgroup, with their residual.
#[test]
fn d_05_residuals_of_real_hidden_sizes() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (dtype, dim) in [(DType::BF16, 257), (DType::BF16, 5120), (DType::F32, 12_288)] {
            let mut random = Random::new(dim as u64);
            let [x, r] = [0, 1].map(|_| rounded(dtype, &random.values(2 * dim)));
            let w = rounded(dtype, &random.values(dim));
            let xt = random.tensor(device, dtype, &x, [2, dim]);
            let rt = random.tensor(device, dtype, &r, [2, dim]);
            let wt = tensor_of(device, dtype, &w, [dim]);
            let [out, sum] = [0, 1].map(|_| random.tensor(device, dtype, &vec![7.0; 2 * dim], [2, dim]));
            let options = RmsNormOptions {
                weight: Some(&wt),
                weight_offset: 0.0,
                eps: 1e-6,
                residual: Some(&rt),
                sum: Some(&sum),
            };
            rms_norm_with(stream, &xt, options, &out).unwrap();
            let want = rounded(dtype, &x.iter().zip(&r).map(|(a, b)| a + b).collect::<Vec<_>>());
            assert_eq!(values_of(stream, &sum), want);
            assert_close(dtype, &values_of(stream, &out), &reference(&want, &w, 0.0, 1e-6), 1.0);
        }
    });
}

/// D-06: what a reduction has told all threads stays until all have read it.
#[test]
fn d_06_any_schedule_gives_the_definition() {
    let (x, r) = (Random::new(1).values(3 * 1025), Random::new(2).values(3 * 1025));
    let w = Random::new(3).values(1025);
    let sum: Vec<f32> = x.iter().zip(&r).map(|(a, b)| a + b).collect();
    on_every_schedule(|stream| {
        let device = &stream.device().clone();
        let xt = Random::new(4).tensor(device, DType::F32, &x, [3, 1025]);
        let rt = Random::new(5).tensor(device, DType::F32, &r, [3, 1025]);
        let wt = tensor_of(device, DType::F32, &w, [1025]);
        let options =
            RmsNormOptions { weight: Some(&wt), weight_offset: 1.0, eps: 1e-5, residual: Some(&rt), sum: Some(&rt) };
        rms_norm_with(stream, &xt, options, &xt).unwrap();
        assert_eq!(values_of(stream, &rt), sum);
        assert_close(DType::F32, &values_of(stream, &xt), &reference(&sum, &w, 1.0, 1e-5), 1.0);
    });
}

#[test]
fn agrees_with_mlx() {
    let golden = Golden::read("rms_norm");
    let cases = golden.cases();
    assert_eq!(cases.len(), 17);
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (case, p) in &cases {
            let number = |name: &str| p[name].as_f64().unwrap() as f32;
            let x = golden.tensor(device, &format!("{case}.x"));
            let name = format!("{case}.weight");
            let weight = golden.has(&name).then(|| golden.tensor(device, &name));
            let out = stream.empty(x.dtype(), *x.shape()).unwrap();
            let options = RmsNormOptions {
                weight: weight.as_ref(),
                weight_offset: number("weight_offset"),
                eps: number("eps"),
                residual: None,
                sum: None,
            };
            rms_norm_with(stream, &x, options, &out).unwrap();
            let exact: Vec<f64> = golden.values(&format!("{case}.exact")).iter().map(|&v| v as f64).collect();
            assert_close(x.dtype(), &values_of(stream, &out), &exact, 1.0);
        }
    });
}

#[test]
fn keeps_nan_and_infinity_in_their_rows() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let x = device.tensor(&[1.0, f32::NAN, 1.0, f32::INFINITY, 3.0, 4.0], [3, 2]).unwrap();
        let w = device.tensor(&[1.0f32, 1.0], [2]).unwrap();
        let y = rms_norm(stream, &x, &w, 0.0).unwrap().to_vec::<f32>(stream).unwrap();
        assert!(y[0].is_nan() && y[1].is_nan());
        assert!(y[2] == 0.0 && y[3].is_nan());
        assert_close(DType::F32, &y[4..], &reference(&[3.0, 4.0], &[1.0, 1.0], 0.0, 0.0), 1.0);
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = crate::Device::cpu();
    let stream = &mut device.stream();
    let x = device.zeros(DType::F32, [2, 4]).unwrap();
    let w = device.zeros(DType::F32, [3]).unwrap();
    let error = rms_norm(stream, &x, &w, 1e-5).unwrap_err().to_string();
    assert_eq!(error, "rms_norm: weight: got f32[3], wanted [4], contiguous");
    let ids = device.zeros(DType::U32, [2, 4]).unwrap();
    assert!(rms_norm(stream, &ids, &w, 1e-5).unwrap_err().to_string().contains("wanted f32, f16 or bf16"));
    let w = device.zeros(DType::F32, [4]).unwrap();
    let overlapping = device.zeros(DType::F32, [12]).unwrap();
    let a = overlapping.slice(0, 0..8).unwrap().reshape([2, 4]).unwrap();
    let b = overlapping.slice(0, 4..12).unwrap().reshape([2, 4]).unwrap();
    assert!(rms_norm_into(stream, &a, &w, 1e-5, &b).unwrap_err().to_string().contains("memory of its own"));
}
