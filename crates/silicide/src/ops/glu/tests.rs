use proptest::prelude::*;

use super::*;
use crate::testing::{Golden, Random, assert_close, on_every_device, rounded, tensor_of, values_of};
use crate::{DType, Device};

pub(in crate::ops) const GATES: [Gate; 4] = [Gate::Silu, Gate::GeluTanh, Gate::GeluErf, Gate::Sigmoid];

/// The definition, in f64.
pub(in crate::ops) fn reference(gate: Gate, g: f64, u: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let activated = match gate {
        Gate::Silu => g * sigmoid(g),
        Gate::GeluTanh => 0.5 * g * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3))).tanh()),
        Gate::GeluErf => 0.5 * g * (1.0 + erf(g / 2f64.sqrt())),
        Gate::Sigmoid => sigmoid(g),
    };
    activated * u
}

/// The error function by its Taylor series, which converges fast where the tests look.
fn erf(x: f64) -> f64 {
    // Further out terms cancel, and it is 1 to nine digits.
    if x.abs() > 4.5 {
        return x.signum();
    }
    let (mut sum, mut term) = (x, x);
    for n in 1..200 {
        term *= -x * x / n as f64;
        sum += term / (2 * n + 1) as f64;
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn follows_the_definition(
        rows in 0usize..4,
        len in prop_oneof![Just(0), Just(1), Just(31), Just(33), Just(65), Just(1025)],
        gate in 0usize..4,
        dtype in 0usize..3,
        in_place in 0..3,
        seed: u64,
    ) {
        let (gate, dtype) = (GATES[gate], DType::FLOATS[dtype]);
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let g = rounded(dtype, &random.values(rows * len).iter().map(|v| 2.0 * v).collect::<Vec<_>>());
            let u = rounded(dtype, &random.values(rows * len));
            let gt = random.tensor(device, dtype, &g, [rows, len]);
            let ut = random.tensor(device, dtype, &u, [rows, len]);
            let out = match in_place {
                0 => stream.empty(dtype, [rows, len]).unwrap(),
                1 => gt.clone(),
                _ => ut.clone(),
            };
            glu_into(stream, gate, &gt, &ut, &out).unwrap();
            let want: Vec<f64> = g.iter().zip(&u).map(|(&g, &u)| reference(gate, g as f64, u as f64)).collect();
            assert_close(dtype, &values_of(stream, &out), &want, 0.1);
        });
    }

    #[test]
    fn takes_halves_and_any_order_of_axes(rows in 1usize..4, half in 1usize..40, seed: u64) {
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let x = random.values(rows * 2 * half);
            let xt = random.tensor(device, DType::F32, &x, [rows, 2 * half]);
            let want: Vec<f64> = x
                .chunks(2 * half)
                .flat_map(|r| (0..half).map(|i| reference(Gate::Silu, r[i] as f64, r[half + i] as f64)).collect::<Vec<_>>())
                .collect();
            let y = glu_halves(stream, Gate::Silu, &xt).unwrap();
            assert_close(DType::F32, &values_of(stream, &y), &want, 0.1);

            let turned = |t: &Tensor| t.permute(&[1, 0]).unwrap();
            let (g, u) = (xt.slice(1, 0..half).unwrap(), xt.slice(1, half..2 * half).unwrap());
            let out = stream.empty(DType::F32, [rows, half]).unwrap();
            glu_into(stream, Gate::Silu, &turned(&g), &turned(&u), &turned(&out)).unwrap();
            assert_close(DType::F32, &values_of(stream, &out), &want, 0.1);
        });
    }
}

#[test]
fn agrees_with_torch_at_the_edges_too() {
    let golden = Golden::read("activations");
    let (x, up) = (golden.values("shared.x"), golden.values("shared.up"));
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let gate = tensor_of(device, DType::F32, &x, [x.len()]);
        let up = tensor_of(device, DType::F32, &up, [x.len()]);
        let cases = [
            ("silu", Gate::Silu),
            ("gelu_tanh", Gate::GeluTanh),
            ("gelu_erf", Gate::GeluErf),
            ("sigmoid", Gate::Sigmoid),
        ];
        for (name, kind) in cases {
            let want: Vec<f64> = golden.values(&format!("glu_{name}.exact")).iter().map(|&v| v as f64).collect();
            let y = glu(stream, kind, &gate, &up).unwrap();
            assert_close(DType::F32, &values_of(stream, &y), &want, 0.01);
        }
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let x = device.zeros(DType::F32, [2, 3]).unwrap();
    let y = device.zeros(DType::F16, [2, 3]).unwrap();
    assert_eq!(glu(stream, Gate::Silu, &x, &y).unwrap_err().to_string(), "glu: up: got f16[2, 3], wanted f32[2, 3]");
    assert!(glu_halves(stream, Gate::Silu, &x).unwrap_err().to_string().contains("even last axis"));
    let row = device.zeros(DType::F32, [3]).unwrap().broadcast_to([2, 3]).unwrap();
    assert!(glu_into(stream, Gate::Silu, &x, &x, &row).unwrap_err().to_string().contains("broadcast view"));
}
