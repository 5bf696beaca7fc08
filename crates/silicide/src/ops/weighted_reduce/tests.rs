use proptest::prelude::*;

use super::*;
use crate::Device;
use crate::testing::{Golden, Random, assert_close, on_every_device, rounded, tensor_of, values_of};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn follows_the_definition(
        tokens in prop_oneof![Just(0usize), Just(1), Just(33), 1usize..5],
        slots in prop_oneof![Just(0usize), Just(1), Just(8), 1usize..12],
        n in prop_oneof![Just(0usize), Just(1), Just(31), Just(33), Just(65), Just(1500)],
        has_shared: bool,
        has_gate: bool,
        has_residual: bool,
        dtype in 0usize..3,
        seed: u64,
    ) {
        let (dtype, has_gate) = (DType::FLOATS[dtype], has_gate && has_shared);
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let random = &mut Random::new(seed);
            let y = rounded(dtype, &random.values(tokens * slots * n));
            let weights = random.values(tokens * slots);
            let [shared, residual] = [(); 2].map(|()| rounded(dtype, &random.values(tokens * n)));
            let logits = rounded(dtype, &random.values(tokens));
            let want: Vec<f64> = (0..tokens * n)
                .map(|i| {
                    let (token, column) = (i / n, i % n);
                    let pairs = token * slots..(token + 1) * slots;
                    let mut sum: f64 = pairs.map(|pair| weights[pair] as f64 * y[pair * n + column] as f64).sum();
                    if has_shared {
                        let gate = if has_gate { 1.0 / (1.0 + (-logits[token] as f64).exp()) } else { 1.0 };
                        sum += gate * shared[i] as f64;
                    }
                    if has_residual {
                        sum += residual[i] as f64;
                    }
                    sum
                })
                .collect();
            let y = random.tensor(device, dtype, &y, [tokens, slots, n]);
            let weights = device.tensor(&weights, [tokens, slots]).unwrap();
            let [shared, residual] = [&shared, &residual].map(|x| random.tensor(device, dtype, x, [tokens, n]));
            let logits = tensor_of(device, dtype, &logits, [tokens]);
            let options = WeightedReduce {
                shared: has_shared.then_some(&shared),
                shared_gate_logit: has_gate.then_some(&logits),
                residual: has_residual.then_some(&residual),
            };
            let out = random.tensor(device, dtype, &vec![7.0; tokens * n], [tokens, n]);
            weighted_reduce_into(stream, &y, &weights, options, &out).unwrap();
            assert_close(dtype, &values_of(stream, &out), &want, 4.0);
            let out = weighted_reduce(stream, &y, &weights, options).unwrap();
            assert_close(dtype, &values_of(stream, &out), &want, 4.0);
        });
    }
}

/// D-18: the gate is a logit, of which the op takes the sigmoid, once.
#[test]
fn d_18_the_gate_is_a_logit() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let (y, weights) = (device.zeros(DType::F32, [3, 1, 2]).unwrap(), device.zeros(DType::F32, [3, 1]).unwrap());
        let shared = device.tensor(&[1.0f32, 4.0, 1.0, 4.0, 1.0, 4.0], [3, 2]).unwrap();
        let logit = device.tensor(&[0.0f32, 3f32.ln(), -30.0], [3]).unwrap();
        let options = WeightedReduce { shared: Some(&shared), shared_gate_logit: Some(&logit), residual: None };
        let out = weighted_reduce(stream, &y, &weights, options).unwrap();
        let least = 1.0 / (1.0 + 30f64.exp());
        assert_close(DType::F32, &values_of(stream, &out), &[0.5, 2.0, 0.75, 3.0, least, 4.0 * least], 0.0);
    });
}

#[test]
fn agrees_with_mlx_lm() {
    let golden = Golden::read("weighted_reduce");
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (case, _) in golden.cases() {
            let tensor = |name: &str| golden.tensor(device, &format!("{case}.{name}"));
            let (shared, logit) = (tensor("shared"), tensor("shared_gate_logit"));
            let options = WeightedReduce { shared: Some(&shared), shared_gate_logit: Some(&logit), residual: None };
            let out = weighted_reduce(stream, &tensor("y"), &tensor("weights"), options).unwrap();
            let want = golden.exact_values(&format!("{case}.exact"));
            assert_close(out.dtype(), &values_of(stream, &out), &want, 1.0);
        }
    });
}

#[test]
fn nan_and_infinity_stay_where_they_are() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let y = device.tensor(&[f32::NAN, 1.0, 2.0, 3.0, f32::INFINITY, 5.0, 6.0, 7.0], [2, 2, 2]).unwrap();
        let weights = device.tensor(&[1.0f32; 4], [2, 2]).unwrap();
        let out = weighted_reduce(stream, &y, &weights, WeightedReduce::default()).unwrap();
        let got = out.to_vec::<f32>(stream).unwrap();
        assert!(got[0].is_nan());
        assert_eq!(got[1..], [4.0, f32::INFINITY, 12.0]);
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let zeros = |dtype, shape: &[usize]| device.zeros(dtype, crate::Shape::new(shape).unwrap()).unwrap();
    let (y, weights) = (zeros(DType::F16, &[3, 2, 4]), zeros(DType::F32, &[3, 2]));
    let mut message = |y: &Tensor, weights: &Tensor, options: WeightedReduce| {
        weighted_reduce(stream, y, weights, options).unwrap_err().to_string()
    };
    let none = WeightedReduce::default();
    let flat = zeros(DType::F16, &[4]);
    assert_eq!(message(&flat, &weights, none), "weighted_reduce: y: got f16[4], wanted floats [.., slots, n]");
    let halves = zeros(DType::F16, &[3, 2]);
    assert_eq!(message(&y, &halves, none), "weighted_reduce: weights: got f16[3, 2], wanted f32 [3, 2], contiguous");
    let narrow = zeros(DType::F16, &[3, 3]);
    assert_eq!(
        message(&y, &weights, WeightedReduce { residual: Some(&narrow), ..none }),
        "weighted_reduce: residual: got f16[3, 3], wanted f16 [3, 4]"
    );
    let logit = zeros(DType::F16, &[3, 1]);
    assert_eq!(
        message(&y, &weights, WeightedReduce { shared_gate_logit: Some(&logit), ..none }),
        "weighted_reduce: shared_gate_logit: got one without a shared expert"
    );
    let (shared, logit) = (zeros(DType::F16, &[3, 4]), zeros(DType::F16, &[3, 2]));
    assert_eq!(
        message(&y, &weights, WeightedReduce { shared: Some(&shared), shared_gate_logit: Some(&logit), ..none }),
        "weighted_reduce: shared_gate_logit: got f16[3, 2], wanted f16 [3] or [3, 1], contiguous"
    );
}
