use proptest::prelude::*;

use super::*;
use crate::testing::{Golden, Random, assert_close, on_every_device, rounded, tensor_of, values_of};
use crate::{DType, Device};

/// The definition, in f64, of `[state, x]`.
fn reference(
    inputs: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    silu: bool,
    (channels, width): (usize, usize),
) -> Vec<f64> {
    let tokens = inputs.len() / channels + 1 - width;
    (0..tokens * channels)
        .map(|i| {
            let (t, c) = (i / channels, i % channels);
            let terms = (0..width).map(|j| weight[c * width + j] as f64 * inputs[(t + j) * channels + c] as f64);
            let y = terms.sum::<f64>() + bias.map_or(0.0, |b| b[c] as f64);
            if silu { y / (1.0 + (-y).exp()) } else { y }
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn follows_the_definition(
        (tokens, width) in (0usize..40, 2usize..9),
        channels in prop_oneof![Just(1usize), Just(31), Just(33), Just(65), Just(264), Just(264), Just(300)],
        dtype in 0usize..3,
        (wide, has_bias, silu, stateful, turned) in any::<(bool, bool, bool, bool, bool)>(),
        seed: u64,
    ) {
        let dtype = DType::FLOATS[dtype];
        let weight_dtype = if wide { DType::F32 } else { dtype };
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let mut inputs = rounded(dtype, &random.values((width - 1 + tokens) * channels));
            if !stateful {
                inputs[..(width - 1) * channels].fill(0.0);
            }
            let (state, x) = inputs.split_at((width - 1) * channels);
            let w = rounded(weight_dtype, &random.values(channels * width));
            let b = rounded(weight_dtype, &random.values(channels));
            let xt = random.tensor(device, dtype, x, [tokens, channels]);
            // Packets of channels want their weights side by side.
            let wt = match channels % 8 {
                0 => tensor_of(device, weight_dtype, &w, [channels, width]),
                _ => random.tensor(device, weight_dtype, &w, [channels, width]),
            };
            let bt = tensor_of(device, weight_dtype, &b, [channels]);
            // Channels may come first in a state, as transformers has them.
            let st = if turned {
                let whole = stream.empty(dtype, [channels, width - 1]).unwrap().permute(&[1, 0]).unwrap();
                crate::ops::copy_into(stream, &tensor_of(device, dtype, state, [width - 1, channels]), &whole).unwrap();
                whole
            } else {
                random.tensor(device, dtype, state, [width - 1, channels])
            };
            let apart = random.tensor(device, dtype, state, [width - 1, channels]);
            let options = |last| CausalConv1d {
                bias: has_bias.then_some(&bt),
                silu,
                initial_state: stateful.then_some(&st),
                final_state: Some(last),
            };
            let y = causal_conv1d(stream, &xt, &wt, options(&apart)).unwrap();
            let want = reference(&inputs, &w, has_bias.then_some(&b), silu, (channels, width));
            assert_close(dtype, &values_of(stream, &y), &want, 4.0);
            assert_eq!(values_of(stream, &apart), inputs[tokens * channels..]);

            // The new state in place of the old.
            let out = random.tensor(device, dtype, x, [tokens, channels]);
            causal_conv1d_into(stream, &xt, &wt, options(&st), &out).unwrap();
            assert_eq!(values_of(stream, &out), values_of(stream, &y));
            assert_eq!(values_of(stream, &st), inputs[tokens * channels..]);
        });
    }

    #[test]
    fn any_chunks_give_the_same_bits(
        tokens in 1usize..70,
        (width, chunk) in (2usize..9, 1usize..40),
        dtype in 0usize..3,
        channels in prop_oneof![Just(33usize), Just(40)],
        seed: u64,
    ) {
        let dtype = DType::FLOATS[dtype];
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let x = tensor_of(device, dtype, &random.values(tokens * channels), [tokens, channels]);
            let w = tensor_of(device, dtype, &random.values(channels * width), [channels, width]);
            let mut run = |chunk: usize| {
                let state = device.zeros(dtype, [width - 1, channels]).unwrap();
                let options = CausalConv1d { bias: None, silu: true, initial_state: Some(&state), final_state: Some(&state) };
                let out = stream.empty(dtype, [tokens, channels]).unwrap();
                for first in (0..tokens).step_by(chunk) {
                    let range = first..tokens.min(first + chunk);
                    let (x, out) = (x.slice(0, range.clone()).unwrap(), out.slice(0, range).unwrap());
                    causal_conv1d_into(stream, &x, &w, options, &out).unwrap();
                }
                (values_of(stream, &out), values_of(stream, &state))
            };
            let whole = run(tokens);
            assert_eq!(run(chunk), whole);
            assert_eq!(run(1), whole);
        });
    }
}

#[test]
fn agrees_with_transformers_and_mlx() {
    let golden = Golden::read("causal_conv1d");
    let cases = golden.cases();
    assert_eq!(cases.len(), 18);
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (case, p) in &cases {
            let name = |name: &str| format!("{case}.{name}");
            let optional = |tensor: &str| golden.has(&name(tensor)).then(|| golden.tensor(device, &name(tensor)));
            let (x, weight) = (golden.tensor(device, &name("x")), golden.tensor(device, &name("weight")));
            let (bias, state) = (optional("bias"), optional("state"));
            let last = stream.empty(x.dtype(), [weight.dim(1) - 1, weight.dim(0)]).unwrap();
            let options = CausalConv1d {
                bias: bias.as_ref(),
                silu: p["silu"].as_bool().unwrap(),
                initial_state: state.as_ref(),
                final_state: Some(&last),
            };
            let y = causal_conv1d(stream, &x, &weight, options).unwrap();
            assert_close(x.dtype(), &values_of(stream, &y), &golden.exact_values(&name("exact")), 4.0);
            assert_eq!(values_of(stream, &last), golden.values(&name("final_state")));
        }
    });
}

#[test]
fn nan_and_infinity_stay_in_their_channel_and_window() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let mut x = vec![1.0f32; 6 * 3];
        (x[3], x[4]) = (f32::NAN, f32::INFINITY);
        let x = device.tensor(&x, [6, 3]).unwrap();
        let w = device.tensor(&[1.0f32; 9], [3, 3]).unwrap();
        let y = causal_conv1d(stream, &x, &w, CausalConv1d::default()).unwrap().to_vec::<f32>(stream).unwrap();
        for (i, y) in y.iter().enumerate() {
            match (i / 3, i % 3) {
                (1..=3, 0) => assert!(y.is_nan()),
                (1..=3, 1) => assert_eq!(*y, f32::INFINITY),
                (t, _) => assert_eq!(*y, (t + 1).min(3) as f32),
            }
        }
    });
}

/// D-10: the new state may lie where the old one is read, for fewer tokens than it has rows and for more.
#[test]
fn d_10_the_new_state_replaces_the_old_in_place() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let (channels, width) = (33, 4);
        let mut random = Random::new(7);
        for tokens in [1, 2, 3, 70] {
            let inputs = random.values((width - 1 + tokens) * channels);
            let w = random.values(channels * width);
            let (old, x) = inputs.split_at((width - 1) * channels);
            let state = device.tensor(old, [width - 1, channels]).unwrap();
            let (xt, wt) =
                (device.tensor(x, [tokens, channels]).unwrap(), device.tensor(&w, [channels, width]).unwrap());
            let options =
                CausalConv1d { bias: None, silu: false, initial_state: Some(&state), final_state: Some(&state) };
            let y = causal_conv1d(stream, &xt, &wt, options).unwrap();
            let want = reference(&inputs, &w, None, false, (channels, width));
            assert_close(DType::F32, &values_of(stream, &y), &want, 4.0);
            assert_eq!(values_of(stream, &state), inputs[tokens * channels..], "{tokens} tokens");
        }
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let zeros = |dtype, shape: [usize; 2]| device.zeros(dtype, shape).unwrap();
    let (x, w) = (zeros(DType::F16, [5, 4]), zeros(DType::F16, [4, 3]));
    let mut error = |x: &Tensor, w: &Tensor, options, out: &Tensor| {
        causal_conv1d_into(stream, x, w, options, out).unwrap_err().to_string()
    };
    let (out, none) = (zeros(DType::F16, [5, 4]), CausalConv1d::default());
    assert_eq!(
        error(&x, &zeros(DType::F16, [4, 9]), none, &out),
        "causal_conv1d: weight: got f16[4, 9], wanted [4, width] with a width of 2..=8"
    );
    assert!(error(&x, &zeros(DType::BF16, [4, 3]), none, &out).contains("weight: got bf16, wanted f16 or f32"));
    assert!(error(&x, &w, none, &zeros(DType::F16, [4, 4])).contains("out: got f16[4, 4], wanted f16[5, 4]"));
    let state = zeros(DType::F16, [3, 4]);
    let options = CausalConv1d { initial_state: Some(&state), ..none };
    assert!(error(&x, &w, options, &out).contains("initial_state: got f16[3, 4], wanted f16[2, 4]"));
    let bias = device.zeros(DType::F32, [4]).unwrap();
    assert!(
        error(&x, &w, CausalConv1d { bias: Some(&bias), ..none }, &out).contains("bias: got f32[4], wanted f16[4]")
    );
    // Tokens are read again by the threads of the next ones.
    assert!(error(&x, &w, none, &x).contains("memory of its own"));
    let short = x.slice(0, 0..2).unwrap();
    let options = CausalConv1d { final_state: Some(&short), ..none };
    assert!(error(&short, &w, options, &zeros(DType::F16, [2, 4])).contains("memory of its own"));
    // A state in place of the old one, but in another order.
    let square = zeros(DType::F16, [2, 2]);
    let turned = square.permute(&[1, 0]).unwrap();
    let options = CausalConv1d { initial_state: Some(&square), final_state: Some(&turned), ..none };
    let (x, w, out) = (zeros(DType::F16, [5, 2]), zeros(DType::F16, [2, 3]), zeros(DType::F16, [5, 2]));
    assert!(error(&x, &w, options, &out).contains("another order"));
}
