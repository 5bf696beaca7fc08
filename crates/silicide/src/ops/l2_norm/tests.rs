use proptest::prelude::*;

use super::*;
use crate::testing::{Golden, Random, assert_close, on_every_device, on_every_schedule, rounded, tensor_of, values_of};
use crate::{DType, Device};

/// The definition, in f64.
fn reference(x: &[f32], dim: usize, eps: f64) -> Vec<f64> {
    x.chunks(dim)
        .flat_map(|row| {
            let sum: f64 = row.iter().map(|&v| v as f64 * v as f64).sum();
            row.iter().map(move |&v| v as f64 / (sum + eps).sqrt())
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
        in_place: bool,
        seed: u64,
    ) {
        let dtype = DType::FLOATS[dtype];
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            // The heads lie inside the rows of a fused projection, whose other columns must stay out.
            let fused = rounded(dtype, &random.values(tokens * (heads * dim + 5)));
            let x: Vec<f32> = fused.chunks(heads * dim + 5).flat_map(|row| row[3..][..heads * dim].to_vec()).collect();
            let whole = tensor_of(device, dtype, &fused, [tokens, heads * dim + 5]);
            let xt = whole.slice(1, 3..3 + heads * dim).unwrap().reshape([tokens, heads, dim]).unwrap();
            let out = if in_place { xt.clone() } else { stream.empty(dtype, [tokens, heads, dim]).unwrap() };
            l2_norm_into(stream, &xt, 1e-3, &out).unwrap();
            assert_close(dtype, &values_of(stream, &out), &reference(&x, dim, 1e-3), 0.0);
        });
    }
}

#[test]
fn any_schedule_gives_the_definition() {
    let x = Random::new(1).values(3 * 1025);
    on_every_schedule(|stream| {
        let xt = Random::new(4).tensor(&stream.device().clone(), DType::F32, &x, [3, 1025]);
        l2_norm_into(stream, &xt, 1e-6, &xt).unwrap();
        assert_close(DType::F32, &values_of(stream, &xt), &reference(&x, 1025, 1e-6), 0.0);
    });
}

#[test]
fn agrees_with_transformers_and_mlx_lm() {
    let golden = Golden::read("l2_norm");
    let cases = golden.cases();
    assert_eq!(cases.len(), 12);
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (case, p) in &cases {
            let x = golden.tensor(device, &format!("{case}.x"));
            let y = l2_norm(stream, &x, p["eps"].as_f64().unwrap() as f32).unwrap();
            let exact = golden.exact_values(&format!("{case}.exact"));
            assert_close(x.dtype(), &values_of(stream, &y), &exact, 0.0);
        }
    });
}

#[test]
fn keeps_nan_in_its_row_and_zeros_zero() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let x = device.tensor(&[1.0, f32::NAN, 1.0, f32::INFINITY, 0.0, 0.0], [3, 2]).unwrap();
        let y = l2_norm(stream, &x, 1e-6).unwrap().to_vec::<f32>(stream).unwrap();
        assert!(y[0].is_nan() && y[1].is_nan());
        assert!(y[2] == 0.0 && y[3].is_nan());
        assert_eq!(y[4..], [0.0, 0.0]);
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let x = device.zeros(DType::F32, [2, 4]).unwrap();
    let out = device.zeros(DType::F32, [2, 3]).unwrap();
    let error = l2_norm_into(stream, &x, 1e-6, &out).unwrap_err().to_string();
    assert_eq!(error, "l2_norm: out: got f32[2, 3], wanted f32[2, 4]");
    assert!(l2_norm(stream, &x, f32::NAN).unwrap_err().to_string().contains("eps: got NaN"));
    let ids = device.zeros(DType::U32, [2, 4]).unwrap();
    assert!(l2_norm(stream, &ids, 1e-6).unwrap_err().to_string().contains("wanted rows of f32, f16 or bf16"));
}
