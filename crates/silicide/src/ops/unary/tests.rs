use proptest::prelude::*;

use super::*;
use crate::testing::{Golden, Random, assert_close, on_every_device, rounded, tensor_of, values_of};
use crate::{DType, Device};

const ALL: [Unary; 19] = [
    Unary::Neg,
    Unary::Abs,
    Unary::Exp,
    Unary::Log,
    Unary::Sqrt,
    Unary::Rsqrt,
    Unary::Square,
    Unary::Sigmoid,
    Unary::Silu,
    Unary::Tanh,
    Unary::GeluTanh,
    Unary::GeluErf,
    Unary::Relu,
    Unary::Softplus,
    Unary::Sin,
    Unary::Cos,
    Unary::Softcap { cap: 1.5 },
    Unary::ScaleShift { scale: -0.5, shift: 0.25 },
    Unary::Clamp { min: -0.5, max: 1.25 },
];

/// The definition, in f64.
fn reference(function: Unary, x: f64) -> f64 {
    match function {
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        Unary::Exp => x.exp(),
        Unary::Log => x.ln(),
        Unary::Sqrt => x.sqrt(),
        Unary::Rsqrt => 1.0 / x.sqrt(),
        Unary::Square => x * x,
        Unary::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Unary::Silu => x / (1.0 + (-x).exp()),
        Unary::Tanh => x.tanh(),
        Unary::GeluTanh => 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()),
        Unary::GeluErf => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
        Unary::Relu => x.max(0.0),
        Unary::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Softcap { cap } => cap as f64 * (x / cap as f64).tanh(),
        Unary::ScaleShift { scale, shift } => scale as f64 * x + shift as f64,
        Unary::Clamp { min, max } => x.clamp(min as f64, max as f64),
    }
}

/// The error function by its Taylor series, which converges fast where the tests look.
fn erf(x: f64) -> f64 {
    let (mut sum, mut term) = (x, x);
    for n in 1..200 {
        term *= -x * x / n as f64;
        sum += term / (2 * n + 1) as f64;
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn follows_the_definition(
        rows in 0usize..4,
        len in prop_oneof![Just(0), Just(1), Just(31), Just(33), Just(65), Just(1025)],
        function in 0usize..19,
        dtype in 0usize..3,
        (in_place, turned) in any::<(bool, bool)>(),
        seed: u64,
    ) {
        let (function, dtype) = (ALL[function], DType::FLOATS[dtype]);
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let x = rounded(dtype, &random.values(rows * len).iter().map(|v| 2.0 * v).collect::<Vec<_>>());
            let mut xt = random.tensor(device, dtype, &x, [rows, len]);
            let mut out = if in_place { xt.clone() } else { stream.empty(dtype, [rows, len]).unwrap() };
            let whole = out.clone();
            if turned {
                (xt, out) = (xt.permute(&[1, 0]).unwrap(), out.permute(&[1, 0]).unwrap());
            }
            unary_into(stream, function, &xt, &out).unwrap();
            let want: Vec<f64> = x.iter().map(|&x| reference(function, x as f64)).collect();
            assert_close(dtype, &values_of(stream, &whole), &want, 0.1);
        });
    }
}

#[test]
fn agrees_with_torch_at_the_edges_too() {
    let golden = Golden::read("activations");
    let x = golden.values("shared.x");
    let cases = [
        ("silu", Unary::Silu),
        ("gelu_tanh", Unary::GeluTanh),
        ("gelu_erf", Unary::GeluErf),
        ("sigmoid", Unary::Sigmoid),
        ("softplus", Unary::Softplus),
        ("tanh", Unary::Tanh),
        ("exp", Unary::Exp),
        ("relu", Unary::Relu),
    ];
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let xt = tensor_of(device, DType::F32, &x, [x.len()]);
        for (name, function) in cases {
            let want: Vec<f64> = golden.values(&format!("{name}.exact")).iter().map(|&v| v as f64).collect();
            let y = unary(stream, function, &xt).unwrap();
            assert_close(DType::F32, &values_of(stream, &y), &want, 0.01);
        }
    });
}

#[test]
fn small_results_keep_their_relative_accuracy() {
    let x = [-30.0f32, -20.0, -12.5, -9.0, -7.0, -5.0, -3.0];
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let xt = device.tensor(&x, [x.len()]).unwrap();
        for function in [Unary::Softplus, Unary::Sigmoid, Unary::Silu, Unary::Exp] {
            let y = unary(stream, function, &xt).unwrap().to_vec::<f32>(stream).unwrap();
            for (&x, y) in x.iter().zip(y) {
                let want = reference(function, x as f64);
                assert!((y as f64 - want).abs() <= 1e-6 * want.abs(), "{function:?} {x}: {y} {want}");
            }
        }
    });
}

#[test]
fn follows_ieee_outside_the_domain() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let x = device.tensor(&[0.0, -1.0, f32::NAN, f32::INFINITY], [4]).unwrap();
        let mut run = |f| unary(stream, f, &x).unwrap().to_vec::<f32>(stream).unwrap();
        let log = run(Unary::Log);
        assert!(log[0] == f32::NEG_INFINITY && log[1].is_nan() && log[2].is_nan() && log[3] == f32::INFINITY);
        let rsqrt = run(Unary::Rsqrt);
        assert!(rsqrt[0] == f32::INFINITY && rsqrt[1].is_nan() && rsqrt[2].is_nan() && rsqrt[3] == 0.0);
        let cap = run(Unary::Softcap { cap: 30.0 });
        assert!(cap[0] == 0.0 && cap[2].is_nan() && cap[3] == 30.0);
        let relu = run(Unary::Relu);
        assert!(relu[..2] == [0.0, 0.0] && relu[2].is_nan() && relu[3] == f32::INFINITY);
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let x = device.zeros(DType::F32, [4]).unwrap();
    let error = unary(stream, Unary::Softcap { cap: 0.0 }, &x).unwrap_err().to_string();
    assert_eq!(error, "unary: cap: got 0, wanted a number above 0");
    let error = unary(stream, Unary::Clamp { min: 1.0, max: -1.0 }, &x).unwrap_err().to_string();
    assert_eq!(error, "unary: min: got 1, wanted -1 or less, as max is");
    let ids = device.zeros(DType::U32, [4]).unwrap();
    assert!(unary(stream, Unary::Neg, &ids).unwrap_err().to_string().contains("wanted f32, f16 or bf16"));
}
