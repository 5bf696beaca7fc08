use proptest::prelude::*;

use super::*;
use crate::Device;
use crate::testing::{Golden, Random, assert_close, on_every_device, rounded, tensor_of, values_of};

/// The definition, in f64 but for the sum of `a` and the bias: the logarithm of the decay, and beta.
fn reference(a: f32, b: f32, rate: f64, dt_bias: f32) -> (f64, f64) {
    let x = (a + dt_bias) as f64;
    (rate * (x.max(0.0) + (-x.abs()).exp().ln_1p()), 1.0 / (1.0 + (-b as f64).exp()))
}

fn assert_relative(got: &[f32], want: &[f64], tolerance: f64) {
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        // Below f32's normal numbers there are no relative digits.
        let least = f32::MIN_POSITIVE as f64;
        assert!((g as f64 - w).abs() <= tolerance * w.abs() + least, "element {i}: got {g:e}, wanted {w:e}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn follow_the_definition(
        rows in 0usize..5,
        heads in prop_oneof![Just(1usize), Just(31), Just(33), Just(65), 1usize..50],
        dtype in 0usize..3,
        (log, negative) in any::<(bool, bool)>(),
        seed: u64,
    ) {
        let dtype = DType::FLOATS[dtype];
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let mut wide = |n| rounded(dtype, &random.values(n).iter().map(|x| x * 8.0).collect::<Vec<_>>());
            let (a, b) = (wide(rows * heads), wide(rows * heads));
            let (rate, bias) = (random.values(heads), random.values(heads));
            let rate: Vec<f32> = rate.iter().map(|&r| if negative { -r.abs() } else { r }).collect();
            let at = random.tensor(device, dtype, &a, [rows, heads]);
            let bt = random.tensor(device, dtype, &b, [rows, heads]);
            let (rt, dt_bias) = (tensor_of(device, DType::F32, &rate, [heads]), tensor_of(device, DType::F32, &bias, [heads]));
            let options = GatedDeltaGates {
                rate: if negative { DecayRate::Negative(&rt) } else { DecayRate::Log(&rt) },
                dt_bias: &dt_bias,
                log,
            };
            let (g, beta) = gated_delta_gates(stream, &at, &bt, options).unwrap();
            let want = |i: usize| {
                let rate = rate[i % heads] as f64;
                reference(a[i], b[i], if negative { rate } else { -rate.exp() }, bias[i % heads])
            };
            let logs: Vec<f64> = (0..rows * heads).map(|i| want(i).0).collect();
            let got = g.to_vec::<f32>(stream).unwrap();
            if log {
                assert_relative(&got, &logs, 1e-6);
            } else {
                // An error in the exponent grows by its size.
                for (&got, &log) in got.iter().zip(&logs) {
                    assert_relative(&[got], &[log.exp()], 1e-6 * (1.0 + log.abs()));
                }
            }
            assert_relative(&beta.to_vec::<f32>(stream).unwrap(), &(0..rows * heads).map(|i| want(i).1).collect::<Vec<_>>(), 5e-7);
        });
    }
}

/// D-24: `log(1 + e^x)` has no digits left for negative `x`, and is no longer 0 below -20.
#[test]
fn d_24_small_gates_keep_their_digits() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let a: Vec<f32> = (0..1200).map(|i| i as f32 * 0.1 - 85.0).collect();
        let n = a.len();
        let (at, zeros) = (device.tensor(&a, [n, 1]).unwrap(), device.zeros(DType::F32, [1]).unwrap());
        let options = GatedDeltaGates { rate: DecayRate::Log(&zeros), dt_bias: &zeros, log: true };
        let (g, beta) = gated_delta_gates(stream, &at, &at, options).unwrap();
        let want: Vec<(f64, f64)> = a.iter().map(|&a| reference(a, a, -1.0, 0.0)).collect();
        assert_relative(&g.to_vec::<f32>(stream).unwrap(), &want.iter().map(|w| w.0).collect::<Vec<_>>(), 8e-7);
        assert_relative(&beta.to_vec::<f32>(stream).unwrap(), &want.iter().map(|w| w.1).collect::<Vec<_>>(), 5e-7);
    });
}

#[test]
fn agree_with_mlx_lm_and_transformers() {
    let golden = Golden::read("gated_delta_gates");
    let cases = golden.cases();
    assert_eq!(cases.len(), 6);
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (case, _) in &cases {
            let tensor = |name: &str| golden.tensor(device, &format!("{case}.{name}"));
            let exact = |name: &str| golden.exact_values(&format!("{case}.{name}"));
            let (a, b, a_log, dt_bias) = (tensor("a"), tensor("b"), tensor("a_log"), tensor("dt_bias"));
            let mut options = GatedDeltaGates { rate: DecayRate::Log(&a_log), dt_bias: &dt_bias, log: true };
            let (log_g, beta) = gated_delta_gates(stream, &a, &b, options).unwrap();
            assert_relative(&log_g.to_vec::<f32>(stream).unwrap(), &exact("log_g"), 1e-6);
            assert_relative(&beta.to_vec::<f32>(stream).unwrap(), &exact("beta"), 1e-6);
            options.log = false;
            let (g, _) = gated_delta_gates(stream, &a, &b, options).unwrap();
            assert_close(DType::F32, &values_of(stream, &g), &exact("g"), 1.0);
            // As GGUF holds it.
            let rate: Vec<f32> = values_of(stream, &a_log).iter().map(|a| -a.exp()).collect();
            let rate = tensor_of(device, DType::F32, &rate, [rate.len()]);
            options.rate = DecayRate::Negative(&rate);
            let (g, _) = gated_delta_gates(stream, &a, &b, options).unwrap();
            assert_close(DType::F32, &values_of(stream, &g), &exact("g"), 1.0);
        }
    });
}

#[test]
fn infinities_are_limits_and_nan_stays() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let x = device.tensor(&[f32::NEG_INFINITY, f32::INFINITY, f32::NAN, 1.0], [1, 4]).unwrap();
        let zeros = device.zeros(DType::F32, [4]).unwrap();
        let options = GatedDeltaGates { rate: DecayRate::Log(&zeros), dt_bias: &zeros, log: false };
        let (g, beta) = gated_delta_gates(stream, &x, &x, options).unwrap();
        let (g, beta) = (g.to_vec::<f32>(stream).unwrap(), beta.to_vec::<f32>(stream).unwrap());
        assert!(g[..2] == [1.0, 0.0] && g[2].is_nan() && g[3] > 0.0);
        assert!(beta[..2] == [0.0, 1.0] && beta[2].is_nan() && beta[3] > 0.0);
    });
}

#[test]
fn in_place_gives_what_apart_gives() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let [a, b] =
            [1, 2].map(|seed| Random::new(seed).tensor(device, DType::F32, &Random::new(seed).values(99), [33, 3]));
        let heads = device.tensor(&[0.5f32, -1.0, 0.0], [3]).unwrap();
        let options = GatedDeltaGates { rate: DecayRate::Log(&heads), dt_bias: &heads, log: false };
        let (g, beta) = gated_delta_gates(stream, &a, &b, options).unwrap();
        gated_delta_gates_into(stream, &a, &b, options, &a, &b).unwrap();
        assert_eq!(values_of(stream, &a), values_of(stream, &g));
        assert_eq!(values_of(stream, &b), values_of(stream, &beta));
    });
}

#[test]
fn say_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let (a, b) = (device.zeros(DType::F32, [3, 4]).unwrap(), device.zeros(DType::F32, [3, 4]).unwrap());
    let (heads, short) = (device.zeros(DType::F32, [4]).unwrap(), device.zeros(DType::F32, [3]).unwrap());
    let options = |rate, dt_bias| GatedDeltaGates { rate: DecayRate::Log(rate), dt_bias, log: true };
    let error = gated_delta_gates(stream, &a, &b, options(&short, &heads)).unwrap_err().to_string();
    assert_eq!(error, "gated_delta_gates: rate (A_log): got f32[3], wanted f32[4], contiguous");
    let error = gated_delta_gates(stream, &a, &b, options(&heads, &short)).unwrap_err().to_string();
    assert!(error.contains("dt_bias: got f32[3]"));
    let half = device.zeros(DType::F16, [3, 4]).unwrap();
    let error = gated_delta_gates(stream, &a, &half, options(&heads, &heads)).unwrap_err().to_string();
    assert!(error.contains("b: got f16[3, 4], wanted f32[3, 4]"), "{error}");
    for (g, beta) in [(&b, &a), (&a, &a)] {
        let error = gated_delta_gates_into(stream, &a, &b, options(&heads, &heads), g, beta).unwrap_err().to_string();
        assert!(error.contains("memory of its own"), "{error}");
    }
}
